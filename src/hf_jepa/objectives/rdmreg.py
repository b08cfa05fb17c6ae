"""RDMReg, rectified distribution matching by sliced squared 2-Wasserstein distance (arXiv 2602.01456)."""

from typing import Literal

import torch
from torch import library
from torch.nn import functional as F

from .distributed import gather_batch
from .generalized_gaussian import SigmaRule, rgg_samples, sigma_for
from .inputs import checked_directions, checked_embeddings
from .sliced_wasserstein import sliced_wasserstein
from .step import CounterBasedRandom

Projection = Literal["random", "svd_random", "svd_bottom_half_random"]

_PROJECTIONS = ("random", "svd_random", "svd_bottom_half_random")


def rdmreg(embeddings: torch.Tensor, target_samples: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """
    Sliced squared 2-Wasserstein distance between embeddings and samples of the wanted distribution: the mean over
    directions and ranks of the squared differences of the sorted projections. Value and gradient are those of the
    joint batch of all processes. Sorted in float32 (float64 stays), inside autocast too.

    Args:
        embeddings (`torch.Tensor` of shape `(..., N, D)`): after the projector's last ReLU. Leading dimensions are
            views: one loss each, averaged, as the released code does.
        target_samples (`torch.Tensor` of shape `(..., N, D)`): as many as embeddings and apart for each view, see
            [`rgg_samples`]. Under DDP either this rank's N or those of the joint batch, the same on all ranks.
        directions (`torch.Tensor` of shape `(S, D)`, or `(..., S, D)` for directions per view): unit rows, the same
            on all ranks.

    Returns:
        `torch.Tensor` of shape `()`. It has a first gradient, by the embeddings, and no second one.

    Raises:
        `ValueError`: for an integer dtype, shapes that do not fit, fewer than two embeddings in all, targets or
            directions that carry a gradient, and on CPU values that are not finite or directions that are not unit.
    """
    embeddings = checked_embeddings(embeddings)
    target_samples = checked_embeddings(target_samples, "Target samples").to(embeddings)
    directions = checked_directions(directions, embeddings)
    if target_samples.requires_grad:
        raise ValueError("RDMReg differentiates by the embeddings only; `.detach()` the target samples.")
    leading, (n, width) = embeddings.shape[:-2], embeddings.shape[-2:]
    joint = gather_batch(embeddings.reshape(-1, n, width), dim=1)
    if target_samples.shape[:-2] != leading or target_samples.shape[-1] != width:
        raise ValueError(
            f"Targets {tuple(target_samples.shape)} do not fit embeddings {tuple(embeddings.shape)}; draw as many."
        )
    if directions.ndim > 2 and directions.shape[:-2] != leading:
        raise ValueError(f"Directions {tuple(directions.shape)} are for other views than {(*leading, n, width)}.")
    target_samples = target_samples.reshape(-1, *target_samples.shape[-2:])
    if target_samples.shape[1] == n:
        target_samples = gather_batch(target_samples, dim=1)
    if target_samples.shape[1] != joint.shape[1]:
        raise ValueError(f"{target_samples.shape[1]} target samples for {joint.shape[1]} embeddings; draw as many.")
    _check_count(joint)
    return sliced_wasserstein(joint, target_samples, directions.reshape(-1, *directions.shape[-2:]))


def _check_count(joint: torch.Tensor) -> None:
    if joint.shape[-2] < 2:
        raise ValueError(f"RDMReg compares samples and needs at least 2 embeddings, got {joint.shape[-2]}.")


def draws_of(
    step: torch.Tensor, joint: torch.Tensor, num_directions: int, p: float, mu: float, sigma: float, rectify: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What a step draws, on the embeddings' device.

    Args:
        step (`torch.Tensor` of shape `()`, or `int`).
        joint (`torch.Tensor` of shape `(V, N, D)`).
        num_directions (`int`), p, mu, sigma (`float`), rectify (`bool`): as in [`RDMReg`].

    Returns:
        Normal directions of shape `(num_directions, D)`, float32, and target samples of `joint`'s shape and dtype.
    """
    generator = torch.Generator(joint.device).manual_seed(int(step))
    shape = num_directions, joint.shape[2]
    directions = torch.randn(shape, generator=generator, device=joint.device, dtype=torch.float32)
    return directions, rgg_samples(tuple(joint.shape), p, mu, sigma, generator, rectify, dtype=joint.dtype)


# A generator is no part of a graph; in one, what it draws is an operator's output.
_draws_of = library.custom_op("hf_jepa::rdmreg_draws", draws_of, mutates_args=())


@_draws_of.register_fake
def _(
    step: torch.Tensor, joint: torch.Tensor, num_directions: int, p: float, mu: float, sigma: float, rectify: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return joint.new_empty((num_directions, joint.shape[2]), dtype=torch.float32), torch.empty_like(joint)


class RDMReg(CounterBasedRandom):
    """
    [`rdmreg`] against a (rectified) generalized Gaussian, drawn together with the directions from a generator on the
    embeddings' device that is seeded with the step: the same on all ranks (the released code draws per rank), and
    continued by a resumed run, since `global_step` (int64, shape `()`) is saved. All views share the directions and
    have targets of their own, as in the released code.

    Args:
        p (`float`), mu (`float`), sigma (`str` or `float`): the target, see [`sigma_for`];
            [`location_for_active_fraction`] gives mu for a wanted sparsity.
        num_projections (`int`): directions per step, 8192 in the released code.
        rectify (`bool`): `False` matches the distribution before the ReLU.
        projection (`str`): `"random"`; `"svd_random"`: the right singular vectors of each view's centred joint batch,
            filled up to `num_projections` with random directions; `"svd_bottom_half_random"`: the same without the
            vectors of the larger half of the singular values, hence, as in the released code, fewer in all.

    Raises:
        `ValueError`: for p or sigma as [`sigma_for`], `num_projections` below 1 or another `projection`.
    """

    def __init__(
        self,
        p: float = 1.0,
        mu: float = 0.0,
        sigma: SigmaRule = "gn",
        num_projections: int = 8192,
        rectify: bool = True,
        projection: Projection = "random",
    ) -> None:
        super().__init__()
        self.p, self.mu, self.sigma = p, mu, sigma_for(p, mu, sigma)
        if num_projections < 1:
            raise ValueError(f"`num_projections` must be positive, got {num_projections}.")
        if projection not in _PROJECTIONS:
            raise ValueError(f"`projection` must be one of {_PROJECTIONS}, got {projection!r}.")
        self.num_projections, self.rectify, self.projection = num_projections, rectify, projection

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """
        Args:
            embeddings (`torch.Tensor` of shape `(..., N, D)`): leading dimensions are views.

        Returns:
            `torch.Tensor` of shape `()`.

        Raises:
            `ValueError`: as [`rdmreg`].
        """
        embeddings = checked_embeddings(embeddings)
        joint = gather_batch(embeddings.reshape(-1, *embeddings.shape[-2:]), dim=1)
        _check_count(joint)
        singular = singular_directions(joint.detach()) if self.projection != "random" else None
        num_random = self.num_projections - (0 if singular is None else singular.shape[1])
        draw = _draws_of if torch.compiler.is_compiling() else draws_of
        target = self.p, self.mu, self.sigma, self.rectify
        directions, targets = draw(self._next_step(), joint.detach(), max(num_random, 0), *target)
        directions = F.normalize(directions, dim=1).to(joint)
        if singular is not None:
            half = singular.shape[1] // 2 if self.projection == "svd_bottom_half_random" else 0
            singular = singular[:, half:][:, : self.num_projections]
            directions = torch.cat([singular, directions.expand(len(joint), -1, -1)], dim=1)
        return sliced_wasserstein(joint, targets, directions)

    def extra_repr(self) -> str:
        return f"p={self.p}, mu={self.mu}, sigma={self.sigma:.6g}, num_projections={self.num_projections}"


def singular_directions(joint: torch.Tensor) -> torch.Tensor:
    """(V, N, D) -> (V, min(N, D), D): right singular vectors of each view's centred batch, largest value first."""
    with torch.autocast(joint.device.type, enabled=False):
        return torch.linalg.svd(joint - joint.mean(dim=1, keepdim=True), full_matrices=False).Vh
