"""Variance hinge, and alignment and uniformity on the sphere."""

import math

import torch
from torch.nn import functional as F

from .contrast import chunked_cross_entropy
from .distributed import all_reduce_sum, batch_sizes, gather_batch, world_size
from .inputs import checked_embeddings


def _matrix(embeddings: torch.Tensor) -> torch.Tensor:
    embeddings = checked_embeddings(embeddings)
    if embeddings.ndim != 2:
        raise ValueError(f"Embeddings must have shape (n, width), got {tuple(embeddings.shape)}.")
    return embeddings


def _joint_sizes(n: int, name: str) -> list[int]:
    sizes = batch_sizes(n)
    if sum(sizes) < 2:
        raise ValueError(f"{name} needs at least 2 embeddings, got {sum(sizes)}; raise the batch size.")
    return sizes


def variance_hinge(z: torch.Tensor, gamma: float = 1.0, eps: float = 1e-4) -> torch.Tensor:
    """
    VICReg's variance term of one view (arXiv 2105.04906, eq. 1): mean over dimensions of
    `relu(gamma - sqrt(var + eps))`, unbiased variance over the joint batch of all processes. Alone it keeps the scale
    and not the rank of the embeddings.

    Args:
        z (`torch.Tensor` of shape `(N, D)`).
        gamma (`float`): the wanted standard deviation.
        eps (`float`): under the root, positive: it bounds the gradient of a collapsed dimension.

    Returns:
        `torch.Tensor` of shape `()`, float32 (float64 stays).

    Raises:
        `ValueError`: for an integer dtype, another shape, fewer than two embeddings in all, gamma or eps not positive,
            and on CPU embeddings that are not finite.
    """
    if not (gamma > 0 and eps > 0):
        raise ValueError(f"`gamma` and `eps` must be positive, got {gamma} and {eps}.")
    z = _matrix(z)
    count = sum(_joint_sizes(len(z), "The variance hinge"))
    centred = z - all_reduce_sum(z.sum(dim=0)) / count
    variance = all_reduce_sum(centred.square().sum(dim=0)) / (count - 1)
    return F.relu(gamma - torch.sqrt(variance + eps)).mean()


def alignment(x: torch.Tensor, y: torch.Tensor, alpha: float = 2) -> torch.Tensor:
    """
    Mean of `|x_i - y_i|^alpha` over the pairs of all processes, rows normalised (Wang & Isola, arXiv 2005.10242).

    Args:
        x (`torch.Tensor` of shape `(N, D)`), y (the same): pairs by row, normalised here.
        alpha (`float`): at least 1.

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        `ValueError`: for an integer dtype, shapes that differ, alpha below 1 (its gradient is infinite for equal
            pairs), and on CPU embeddings that are not finite.
    """
    if not (math.isfinite(alpha) and alpha >= 1):
        raise ValueError(f"`alpha` must be at least 1 and finite, got {alpha}.")
    if x.shape != y.shape:
        raise ValueError(f"Pairs must have one shape (n, width), got {tuple(x.shape)} and {tuple(y.shape)}.")
    x, y = (F.normalize(_matrix(embeddings), dim=1) for embeddings in (x, y))
    distances = torch.linalg.vector_norm(x - y, dim=1)
    return all_reduce_sum(distances.pow(alpha).sum()) / sum(batch_sizes(len(x)))


def uniformity(x: torch.Tensor, t: float = 2) -> torch.Tensor:
    """
    `log mean_{i < j} exp(-t |x_i - x_j|^2)` over all pairs of all processes, rows normalised (Wang & Isola, arXiv
    2005.10242): 0 for a collapsed batch, lower is more uniform. Memory is linear in the batch.

    Args:
        x (`torch.Tensor` of shape `(N, D)`): normalised here.
        t (`float`): positive; 2 in the paper, 1 in lightly's hypersphere loss.

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        `ValueError`: for an integer dtype, another shape, fewer than two embeddings in all, t that is not positive,
            and on CPU embeddings that are not finite.
    """
    if not (math.isfinite(t) and t > 0):
        raise ValueError(f"`t` must be positive and finite, got {t}.")
    x = F.normalize(_matrix(x), dim=1)
    sizes = _joint_sizes(len(x), "Uniformity")
    total = sum(sizes)
    start = sum(sizes[: torch.distributed.get_rank()]) if world_size() > 1 else 0
    place = torch.arange(start, start + len(x), device=x.device)
    # |x - y|^2 = 2 - 2 x y. The positive is another row, so that the row itself is what its id leaves out.
    by_row, positive, _ = chunked_cross_entropy(
        x,
        gather_batch(x, sizes=sizes),
        x.new_full((), 2 * t),
        (place + 1) % total,
        ids=(place, torch.arange(total, device=x.device)),
    )
    return gather_batch(by_row + positive, sizes=sizes).logsumexp(dim=0) - 2 * t - math.log(total * (total - 1))
