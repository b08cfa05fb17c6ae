"""VICReg: variance-invariance-covariance regularization (arXiv 2105.04906), in the released code's numbers."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.nn.functional import all_gather


class VICRegTerms(NamedTuple):
    """`loss = sim_weight * sim + std_weight * std + cov_weight * cov`; four scalars of shape `()`, float32."""

    loss: torch.FloatTensor
    sim: torch.FloatTensor
    std: torch.FloatTensor
    cov: torch.FloatTensor


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision raised to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gather_batch(embeddings: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """
    Joins the ranks' equal-sized batches along `dim`, with gradient: under DDP's gradient averaging a loss of the
    result has exactly the gradient of one process on the joint batch. Without a process group, the input itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return embeddings
    return torch.cat(all_gather(embeddings.contiguous()), dim=dim)


def variance_covariance(embeddings: torch.Tensor, eps: float = 1e-4) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The two terms that need the whole batch, per view.

    Args:
        embeddings (`torch.Tensor` of shape `(views, n, width)`): n at least 2.
        eps (`float`): under the square root.

    Returns:
        Hinge of the standard deviation at 1, averaged over dimensions, and the squared off-diagonal covariances summed
        over pairs and divided by the width: two tensors of shape `(views,)`, float32.

    Raises:
        `ValueError`: for fewer than two embeddings.
    """
    n, width = embeddings.shape[1:]
    if n < 2:
        raise ValueError(f"VICReg needs at least 2 embeddings for its variance, got {n}; raise the batch size.")
    embeddings = at_least_float32(embeddings)
    centred = embeddings - embeddings.mean(dim=1, keepdim=True)
    std = torch.sqrt(centred.square().sum(dim=1) / (n - 1) + eps)
    with torch.autocast(centred.device.type, enabled=False):
        # The smaller of covariance (width x width) and Gram matrix (n x n) has the same squared norm.
        product = centred @ centred.mT if n < width else centred.mT @ centred
    squared_norm = (product / (n - 1)).square().sum(dim=(1, 2))
    diagonal = (centred.square().sum(dim=1) / (n - 1)).square().sum(dim=1)
    return F.relu(1 - std).mean(dim=1), (squared_norm - diagonal) / width


def multi_view_vicreg(
    embeddings: torch.Tensor, sim_weight: float = 25.0, std_weight: float = 25.0, cov_weight: float = 1.0
) -> VICRegTerms:
    """
    VICReg averaged over all ordered pairs of views, in closed form: no loop over pairs.

    Args:
        embeddings (`torch.Tensor` of shape `(views, n, width)`): this rank's batch; variance and covariance use all
            ranks' batches, which must be of one size.
        sim_weight, std_weight, cov_weight (`float`): the coefficients.

    Returns:
        [`VICRegTerms`]: `sim` is the mean squared difference of a pair, over n and width; `std` the average and `cov`
        the sum over the two views of a pair.

    Raises:
        `ValueError`: for fewer than two views or embeddings.
    """
    views = embeddings.shape[0]
    if views < 2:
        raise ValueError(f"VICReg compares views with each other and needs at least 2, got {views}.")
    embeddings = at_least_float32(embeddings)
    # mean over i != j of |z_i - z_j|^2 = 2 / (views - 1) * sum_i |z_i - mean|^2
    sim = (embeddings - embeddings.mean(dim=0)).square().mean(dim=(1, 2)).sum() * 2 / (views - 1)
    std, cov = variance_covariance(gather_batch(embeddings, dim=1))
    std, cov = std.mean(), 2 * cov.mean()
    return VICRegTerms(sim_weight * sim + std_weight * std + cov_weight * cov, sim, std, cov)


def vicreg(
    z_a: torch.Tensor,
    z_b: torch.Tensor,
    sim_weight: float = 25.0,
    std_weight: float = 25.0,
    cov_weight: float = 1.0,
) -> VICRegTerms:
    """
    VICReg of two views, in the released code's numbers: invariance is the mean over n and width (the survey sums over
    the width), the variance hinge is the average and the covariance the sum of the two views, unbiased variance, eps
    1e-4 under the root, embeddings gathered over ranks with gradient.

    Args:
        z_a (`torch.Tensor` of shape `(n, width)`), z_b (the same): paired embeddings.
        sim_weight, std_weight, cov_weight (`float`): the coefficients.

    Returns:
        [`VICRegTerms`].

    Raises:
        `ValueError`: for shapes that differ or fewer than two embeddings.
    """
    if z_a.shape != z_b.shape or z_a.ndim != 2:
        raise ValueError(f"Both views must have one shape (n, width), got {tuple(z_a.shape)} and {tuple(z_b.shape)}.")
    return multi_view_vicreg(torch.stack([z_a, z_b]), sim_weight, std_weight, cov_weight)
