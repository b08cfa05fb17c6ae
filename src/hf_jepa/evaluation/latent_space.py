"""What latents know: a linear probe of the state, and whether a planner's cost orders states as true distance does."""

import torch
from torch import Tensor


def state_probe(features: Tensor, states: Tensor, test_features: Tensor, test_states: Tensor) -> Tensor:
    """
    How well a ridge regression tells the state: R2 on other data, per dimension.

    Args:
        features (`(n, width)` float32), states (`(n, state_dim)` float32): What it is fitted on.
        test_features, test_states: What it is scored on.

    Returns:
        `(state_dim,)` float64; 1 is perfect, 0 as good as the mean.

    Raises:
        ValueError: If a state never changes in the test data.
    """
    x, y, test_x, test_y = (each.double() for each in (features, states, test_features, test_states))
    center, scale = x.mean(0), x.std(0).clamp_min(1e-8)
    x, test_x = (x - center) / scale, (test_x - center) / scale
    mean = y.mean(0)
    gram = x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device) / x.shape[1]
    predicted = test_x @ torch.linalg.solve(gram, x.T @ (y - mean)) + mean
    spread = (test_y - test_y.mean(0)).square().sum(0)
    if (spread == 0).any():
        raise ValueError("A dimension of the state never changes in the test data, so that R2 is undefined.")
    return 1 - (test_y - predicted).square().sum(0) / spread


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """
    Spearman's correlation of two `(n,)` tensors; ties share their mean rank.

    Raises:
        ValueError: If the tensors differ in length, or one is constant.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Both must be (n,), got {tuple(first.shape)} and {tuple(second.shape)}.")
    ranks = [_ranks(each.double()) for each in (first, second)]
    centered = [each - each.mean() for each in ranks]
    norm = (centered[0].square().sum() * centered[1].square().sum()).sqrt()
    if norm == 0:
        raise ValueError("A constant has no rank correlation.")
    return ((centered[0] * centered[1]).sum() / norm).item()


def _ranks(values: Tensor) -> Tensor:
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts - 1) / 2)[index]
