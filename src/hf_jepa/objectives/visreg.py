"""
VISReg, variance-invariance-sketching regularization (arXiv 2606.02572): scale and shape of the embeddings are
regularized apart, so that what pulls a collapsed batch open does not fade with it.
"""

from typing import NamedTuple

import torch

from .distributed import gather_batch
from .inputs import checked_directions, checked_embeddings
from .sigreg import step_directions
from .sliced_wasserstein import sliced_wasserstein
from .step import CounterBasedRandom

_EPSILON = 1e-6


class VISRegTerms(NamedTuple):
    """`loss = centre + scale + shape`; four scalars of shape `()`, float32, or float64 for float64 embeddings."""

    loss: torch.FloatTensor
    centre: torch.FloatTensor
    scale: torch.FloatTensor
    shape: torch.FloatTensor


def gaussian_quantiles(count: int, like: torch.Tensor) -> torch.Tensor:
    """`(count,)`: the standard normal's quantiles at i / (count + 1), ascending, in `like`'s dtype and device."""
    levels = torch.arange(1, count + 1, dtype=torch.float64, device="cpu") * 2 / (count + 1) - 1
    return (2**0.5 * torch.erfinv(levels)).to(like)


def visreg(embeddings: torch.Tensor, directions: torch.Tensor) -> VISRegTerms:
    """
    VISReg's three terms, per view and averaged. `centre`: the mean squared mean of a dimension. `scale`: the mean of
    (std - 1)^2 over dimensions. `shape`: the sliced squared 2-Wasserstein distance between the standardised embeddings
    and the quantiles of a standard normal; no gradient goes through the std that they are divided by. Value and
    gradient are those of the joint batch of all processes, of any sizes.

    However small embeddings that differ are, the gradient of `scale` by an embedding is of order 1 / (N D), and that
    of `shape` grows as 1 / std (up to a std of 1e-6): optimisers that normalise gradients suit it. Embeddings that are
    equal exactly have no direction to leave in, and get none.

    Args:
        embeddings (`torch.Tensor` of shape `(..., N, D)`): leading dimensions are views. Half precision is raised to
            float32, inside autocast too.
        directions (`torch.Tensor` of shape `(S, D)`): unit rows, the same on all ranks.

    Returns:
        [`VISRegTerms`], differentiable once.

    Raises:
        `ValueError`: for integer or empty embeddings, directions of another width, fewer than two embeddings in all,
            and on the CPU values that are not finite and directions that are not unit.
    """
    embeddings = checked_embeddings(embeddings)
    directions = checked_directions(directions, embeddings)
    if directions.ndim != 2:
        raise ValueError(f"VISReg's views share their directions: pass (S, D), got {tuple(directions.shape)}.")
    joint = gather_batch(embeddings.reshape(-1, *embeddings.shape[-2:]), dim=1)
    count = joint.shape[1]
    if count < 2:
        raise ValueError(f"VISReg compares a distribution: it needs at least 2 embeddings, got {count}.")
    mean = joint.mean(dim=1, keepdim=True)
    centred = joint - mean
    std = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / count**0.5 + _EPSILON
    targets = gaussian_quantiles(count, joint).expand(len(joint), -1)
    shape = sliced_wasserstein(centred / std.detach(), targets, directions)
    centre, scale = mean.square().mean(), (std - 1).square().mean()
    return VISRegTerms(centre + scale + shape, centre, scale, shape)


class VISReg(CounterBasedRandom):
    """
    The sum of [`visreg`]'s terms with fresh directions in every training step, seeded with the step: the same on all
    ranks, and continued by a resumed run, since `global_step` (int64, shape `()`) is saved.

    Args:
        num_slices (`int`): directions per step, 256 in the paper's loss, whose total is
            `0.98 * invariance + 0.02 * visreg`.

    Raises:
        `ValueError`: for `num_slices` below 1.
    """

    def __init__(self, num_slices: int = 256) -> None:
        super().__init__()
        if num_slices < 1:
            raise ValueError(f"`num_slices` must be at least 1, got {num_slices}.")
        self.num_slices = num_slices

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """
        Args:
            embeddings (`torch.Tensor` of shape `(..., N, D)`): leading dimensions are views.

        Returns:
            `torch.Tensor` of shape `()`.

        Raises:
            `ValueError`: as [`visreg`].
        """
        embeddings = checked_embeddings(embeddings)
        return visreg(embeddings, step_directions(self._next_step(), self.num_slices, embeddings)).loss

    def extra_repr(self) -> str:
        return f"num_slices={self.num_slices}"
