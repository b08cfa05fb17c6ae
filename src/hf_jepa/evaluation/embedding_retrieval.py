"""Retrieval between predicted and target embeddings, with targets that occur more than once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

# Similarities that exist at one time.
_CHUNK_ELEMENTS = 1 << 24


@torch.no_grad()
def retrieval_ranks(
    predicted: torch.Tensor, target: torch.Tensor, groups: torch.Tensor | None = None
) -> torch.LongTensor:
    """
    Where each prediction's own target stands among all targets, by cosine.

    Args:
        predicted (`torch.FloatTensor` of shape `(n, width)`), target (the same): pairs by row.
        groups (`torch.LongTensor` of shape `(n,)`, *optional*): pairs of one number have the same target, and each of
            its copies is right.

    Returns:
        `torch.LongTensor` of shape `(n,)`: how many targets of other groups are at least as near as the nearest own
        copy; 0 is found. Ties count against the prediction, so that collapsed embeddings score nothing.

    Raises:
        `ValueError`: for shapes that differ, or fewer than two pairs.
    """
    if predicted.shape != target.shape or predicted.ndim != 2 or len(predicted) < 2:
        raise ValueError(
            f"Embeddings must be two (n >= 2, width) matrices of one shape, got {tuple(predicted.shape)} and "
            f"{tuple(target.shape)}."
        )
    if groups is None:
        groups = torch.arange(len(predicted), device=predicted.device)
    predicted, target = (F.normalize(part.float(), dim=1) for part in (predicted, target))
    rows = max(1, _CHUNK_ELEMENTS // len(target))
    ranks = []
    for start in range(0, len(predicted), rows):
        similarity = predicted[start : start + rows] @ target.T
        same = groups[start : start + rows, None] == groups
        own = similarity.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True)
        # Rounding must not decide between equal embeddings.
        ranks.append(((similarity >= own - 1e-6) & ~same).sum(dim=1))
    return torch.cat(ranks)


def retrieval_report(
    predicted: torch.Tensor,
    target: torch.Tensor,
    groups: torch.Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """
    Recall of targets by predictions, and of predictions by targets.

    Args:
        predicted, target, groups: as in [`retrieval_ranks`].
        ks (`Sequence[int]`): how many of the nearest count.

    Returns:
        `dict[str, float]`: `retrieval_at_{k}` and `reverse_retrieval_at_{k}`, shares in [0, 1], and the median ranks
        `retrieval_median_rank` and `reverse_retrieval_median_rank`, from 1.

    Raises:
        `ValueError`: as [`retrieval_ranks`].
    """
    report = {}
    for prefix, pair in (("", (predicted, target)), ("reverse_", (target, predicted))):
        ranks = retrieval_ranks(*pair, groups)
        report |= {f"{prefix}retrieval_at_{k}": (ranks < k).float().mean().item() for k in ks}
        report[f"{prefix}retrieval_median_rank"] = ranks.median().item() + 1.0
    return report
