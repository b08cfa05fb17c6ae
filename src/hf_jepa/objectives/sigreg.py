"""
SIGReg, sketched isotropic Gaussian regularization (LeJEPA, arXiv 2511.08544): along many random directions, the
Epps-Pulley distance between the characteristic function of the embeddings and that of a standard normal.
"""

import math
from typing import Literal

import torch
from torch import library
from transformers.utils import logging

from .characteristic import characteristic_sums
from .distributed import all_reduce_sum, world_size
from .inputs import checked_directions, checked_embeddings
from .step import CounterBasedRandom

logger = logging.get_logger(__name__)

SIGRegForm = Literal["package", "paper", "survey"]

# t_max and num_points of each form where the caller gives none.
_GRIDS = {"package": (3.0, 17), "paper": (5.0, 17), "survey": (3.0, 17)}
_COLLAPSED_SCALE = 1e-4


def _grid(form: SIGRegForm, t_max: float | None, num_points: int | None) -> tuple[float, float, list[float]]:
    """
    First positive knot, distance of two knots and a weight per positive knot: the integrand is even in t, and zero at
    t = 0.
    """
    if form not in _GRIDS:
        raise ValueError(f"`form` must be one of {sorted(_GRIDS)}, got {form!r}.")
    t_max = _GRIDS[form][0] if t_max is None else t_max
    num_points = _GRIDS[form][1] if num_points is None else num_points
    if not (math.isfinite(t_max) and t_max > 0):
        raise ValueError(f"`t_max` must be positive and finite, got {t_max}.")
    if num_points < 2:
        raise ValueError(f"`num_points` must be at least 2, got {num_points}.")
    step = (2 if form == "paper" else 1) * t_max / (num_points - 1)
    count = num_points // 2 if form == "paper" else num_points - 1
    first = step / 2 if form == "paper" and num_points % 2 == 0 else step
    if form == "survey":
        return first, step, [1.0] * count
    # Trapezoid rule over both halves of the axis: twice the step inside, the step at the end.
    targets = _targets(first, step, count)
    return first, step, [2 * step * target for target in targets[:-1]] + [step * targets[-1]]


def _targets(first: float, step: float, count: int) -> list[float]:
    """The standard normal's characteristic function at the knots; the window of package and paper is the same."""
    return [math.exp(-0.5 * (first + k * step) ** 2) for k in range(count)]


def _scaled(form: SIGRegForm, scale_by_batch: bool | None) -> bool:
    return form != "survey" if scale_by_batch is None else scale_by_batch


def _statistic(
    embeddings: torch.Tensor,
    directions: torch.Tensor,
    t_max: float | None,
    num_points: int | None,
    form: SIGRegForm,
    scale_by_batch: bool | None,
) -> torch.Tensor:
    *leading, length, width = embeddings.shape
    if length == 1 and world_size() == 1:
        raise ValueError("SIGReg compares a distribution: it needs a batch of at least 2 embeddings, got 1.")
    _warn_of_collapse(embeddings)
    first, step, weights = _grid(form, t_max, num_points)
    with torch.autocast(embeddings.device.type, enabled=False):
        projections = embeddings.reshape(-1, length, width) @ directions.T
        sums = characteristic_sums(projections, first, step, len(weights))
        n: int | torch.Tensor = length
        if world_size() > 1:
            # Sums and count, not means: unequal batches of the ranks then weigh what they hold.
            total = all_reduce_sum(torch.cat([sums.flatten(), sums.new_full((1,), length)]))
            sums, n = total[:-1].view_as(sums), total[-1]
        constants = torch.tensor([_targets(first, step, len(weights)), weights], dtype=sums.dtype)
        target, weight = constants.to(sums.device, non_blocking=True).unsqueeze(-1)
        cos, sin = (sums / n).unbind(1)
        statistic = (weight * ((cos - target).square() + sin.square())).sum(1)
    return (statistic * n if _scaled(form, scale_by_batch) else statistic).view(*leading, -1)


def _warn_of_collapse(embeddings: torch.Tensor) -> None:
    # On the CPU only: elsewhere looking at values makes the device wait. A part of the batch tells the scale.
    if embeddings.device.type != "cpu" or torch.compiler.is_compiling() or embeddings.shape[-2] < 2:
        return
    if embeddings.detach()[..., :64, :256].std(-2).mean() < _COLLAPSED_SCALE:
        logger.warning_once(
            f"Embeddings vary by less than {_COLLAPSED_SCALE} within a batch. SIGReg's gradient shrinks with their "
            "scale and is all but zero here, so they recover slowly or not at all. End the projector in a "
            "normalisation, or raise its last layer's initial weights or SIGReg's weight."
        )


def random_directions(num_slices: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """
    Directions uniform on the sphere, bit-equal to the released package's for a CPU generator seeded with its step.

    Args:
        num_slices (`int`), width (`int`).
        generator (`torch.Generator`): its device is the directions'; under DDP, in one state on all ranks.

    Returns:
        `torch.FloatTensor` of shape `(num_slices, width)`: unit rows, float32.
    """
    columns = torch.randn(width, num_slices, generator=generator, device=generator.device, dtype=torch.float32)
    return (columns / columns.norm(p=2, dim=0)).T


def directions_of(step: torch.Tensor, num_slices: int, width: int) -> torch.Tensor:
    """[`random_directions`] of a step (an int64 tensor of shape `()`, or an `int`), on the CPU."""
    return random_directions(num_slices, width, torch.Generator().manual_seed(int(step)))


# A generator is no part of a graph; in one, what it draws is an operator's output.
_directions_of = library.custom_op("hf_jepa::sigreg_directions", directions_of, mutates_args=())


@_directions_of.register_fake
def _(step: torch.Tensor, num_slices: int, width: int) -> torch.Tensor:
    return torch.empty(width, num_slices).T


def step_directions(step: int | torch.Tensor, num_slices: int, like: torch.Tensor) -> torch.Tensor:
    """[`directions_of`] for embeddings `like` `(..., D)`, in their dtype and on their device."""
    draw = _directions_of if torch.compiler.is_compiling() else directions_of
    return draw(step, num_slices, like.shape[-1]).to(like.device, like.dtype, non_blocking=True)


def epps_pulley(
    embeddings: torch.Tensor,
    directions: torch.Tensor,
    t_max: float | None = None,
    num_points: int | None = None,
    form: SIGRegForm = "package",
    scale_by_batch: bool | None = None,
) -> torch.Tensor:
    """
    The statistic of each direction: n * sum_k w_k |mean_n exp(i t_k <direction, z_n>) - exp(-t_k^2/2)|^2.

    Args:
        embeddings, directions, t_max, num_points, form, scale_by_batch: as in [`sigreg`], whose value is the mean.

    Returns:
        `torch.Tensor` of shape `(..., S)`: float32, or float64 for float64 embeddings.

    Raises:
        `ValueError`: as [`sigreg`].
    """
    embeddings = checked_embeddings(embeddings)
    directions = checked_directions(directions, embeddings)
    if directions.ndim != 2:
        raise ValueError(f"SIGReg's views share their directions: pass (S, D), got {tuple(directions.shape)}.")
    return _statistic(embeddings, directions, t_max, num_points, form, scale_by_batch)


def sigreg(
    embeddings: torch.Tensor,
    directions: torch.Tensor | None = None,
    t_max: float | None = None,
    num_points: int | None = None,
    form: SIGRegForm = "package",
    flatten_views: bool = False,
    scale_by_batch: bool | None = None,
    num_slices: int = 1024,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Epps-Pulley statistic against N(0, I), averaged over directions. In the package form it is about 1.05 for a batch
    of independent Gaussians of any size and 0.402 n for a collapsed one. Value and gradient are those of the joint
    batch of all processes, of any sizes.

    Args:
        embeddings (`torch.Tensor` of shape `(..., N, D)`): leading dimensions are views (or time steps): one statistic
            each, averaged. Half precision is raised to float32, inside autocast too.
        directions (`torch.Tensor` of shape `(S, D)`, *optional*): unit rows, the same on all ranks.
        t_max (`float`, *optional*): largest knot; 3, in the paper's form 5.
        num_points (`int`, *optional*): knots of the grid; 17.
        form (`str`): `"package"`: the released code and its MINIMAL.md: trapezoid rule on [0, t_max], doubled, window
            exp(-t^2/2), factor n. `"paper"`: Algorithm 1, the same on [-t_max, t_max]. `"survey"`: eq. 18, plain sum
            on [0, t_max] without window and n. EB-JEPA's: `"paper"` with `t_max=3, num_points=10,
            scale_by_batch=False`.
        flatten_views (`bool`): all views as one sample of V * N embeddings, as in stable-pretraining.
        scale_by_batch (`bool`, *optional*): the factor n; all forms but the survey's have it.
        num_slices (`int`), generator (`torch.Generator`, *optional*): directions to draw where none are given.

    Returns:
        `torch.Tensor` of shape `()`: float32, or float64 for float64 embeddings. Differentiable twice.

    Raises:
        `ValueError`: for integer or empty embeddings, one embedding in all, directions of another width, neither
            directions nor a generator, a bad grid; on the CPU for values that are not finite and directions that are
            not unit (elsewhere looking would make the device wait).
    """
    if directions is None:
        if generator is None:
            raise ValueError("Pass `directions` of shape (S, D), or a seeded `generator` to draw them from.")
        directions = random_directions(num_slices, embeddings.shape[-1], generator)
    if flatten_views:
        embeddings = embeddings.flatten(0, -2)
    return epps_pulley(embeddings, directions, t_max, num_points, form, scale_by_batch).mean()


class SIGReg(CounterBasedRandom):
    """
    [`sigreg`] with fresh directions in every training step, drawn on the CPU from a generator seeded with the step:
    bit-equal to the released package's there, the same on all ranks without communication, and continued by a resumed
    run, since `global_step` (int64, shape `()`) is saved.

    Args:
        num_slices (`int`): directions per step. The paper recommends 1024, MINIMAL.md uses 256.
        t_max, num_points, form, flatten_views, scale_by_batch: as in [`sigreg`].

    Raises:
        `ValueError`: for `num_slices` below 1 or a bad grid.
    """

    def __init__(
        self,
        num_slices: int = 1024,
        t_max: float | None = None,
        num_points: int | None = None,
        form: SIGRegForm = "package",
        flatten_views: bool = False,
        scale_by_batch: bool | None = None,
    ) -> None:
        super().__init__()
        if num_slices < 1:
            raise ValueError(f"`num_slices` must be at least 1, got {num_slices}.")
        _grid(form, t_max, num_points)
        self.num_slices, self.form, self.flatten_views = num_slices, form, flatten_views
        self.t_max, self.num_points, self.scale_by_batch = t_max, num_points, scale_by_batch

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """
        Args:
            embeddings (`torch.Tensor` of shape `(..., N, D)`).

        Returns:
            `torch.Tensor` of shape `()`.

        Raises:
            `ValueError`: as [`sigreg`].
        """
        embeddings = checked_embeddings(embeddings)
        directions = step_directions(self._next_step(), self.num_slices, embeddings)
        if self.flatten_views:
            embeddings = embeddings.flatten(0, -2)
        grid = self.t_max, self.num_points, self.form, self.scale_by_batch
        return _statistic(embeddings, directions, *grid).mean()

    def extra_repr(self) -> str:
        return f"num_slices={self.num_slices}, form={self.form!r}, flatten_views={self.flatten_views}"


def collapse_ratio(
    weight: float,
    batch_size: int,
    t_max: float | None = None,
    num_points: int | None = None,
    form: SIGRegForm = "package",
    scale_by_batch: bool | None = None,
    convex: bool = True,
) -> float:
    """
    How hard SIGReg pushes a nearly collapsed batch apart, over how hard the invariance term pulls views together.
    Training resists collapse where this exceeds the share of the embeddings' variance that lies within images. That
    share is at most 1, so 1 is always enough; views / global views is, of a centre of the global views with gradient.

    Both forces are linear in small embeddings z of width D. For V views of N images the statistic is about
    N (const - c2 mean_n <z_n, direction>^2) with c2 = sum_k w_k t_k^2 (1 - exp(-t_k^2/2)), 1.546 in the package form,
    which pushes with 2 weight c2 / (V D) * z; the mean squared distance to the views' centre pulls with
    2 (1 - weight) / (V N D) * (z - centre).

    Args:
        weight (`float`): SIGReg's weight, lambda.
        batch_size (`int`): embeddings in one statistic, over all ranks: N, or V * N where views are flattened.
        t_max, num_points, form, scale_by_batch: as in [`sigreg`].
        convex (`bool`): total (1 - weight) * invariance + weight * SIGReg; otherwise invariance + weight * SIGReg.
            Divide the ratio by D for an invariance term that sums over the width.

    Returns:
        `float`: weight * c2 * batch_size / (1 - weight), without the factors that do not apply.

    Raises:
        `ValueError`: for a weight below 0 or, if convex, above 1, a batch below 2, a bad grid.
    """
    if not 0 <= weight <= (1 if convex else math.inf):
        raise ValueError(f"`weight` must be at least 0, and at most 1 in the convex total, got {weight}.")
    if batch_size < 2:
        raise ValueError(f"`batch_size` must be at least 2, got {batch_size}.")
    first, step, weights = _grid(form, t_max, num_points)
    targets = _targets(first, step, len(weights))
    c2 = sum(w * (first + k * step) ** 2 * (1 - targets[k]) for k, w in enumerate(weights))
    push = weight * c2 * (batch_size if _scaled(form, scale_by_batch) else 1)
    pull = 1 - weight if convex else 1
    return push / pull if pull else math.inf
