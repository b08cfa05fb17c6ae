from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from .knn import check_split


@dataclass
class ProbeResult:
    """
    What a probe found; `float(result)` is its accuracy.

    Args:
        accuracy (`float`): On the test rows, in [0, 1].
        chosen (`dict`): The setting that was best on the rows held out of train.
        candidates (`list[dict]`): Every setting tried, with its `held_out_accuracy` where it was scored.
    """

    accuracy: float
    chosen: dict[str, Any]
    candidates: list[dict[str, Any]] = field(default_factory=list)

    def __float__(self) -> float:
        return self.accuracy


def held_out_rows(num_rows: int, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two index tensors `(kept,)` and `(held_out,)` that part the rows at random."""
    if not 0 < fraction < 1:
        raise ValueError(f"held_out_fraction must be in (0, 1), got {fraction}.")
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    num_held_out = min(max(1, round(num_rows * fraction)), num_rows - 1)
    return order[num_held_out:], order[:num_held_out]


def standardization(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std `(d,)` of each dimension; constant dimensions get std 1."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * mean.abs() + 1e-12, std, torch.ones_like(std))


def _select(
    fit: Callable[[torch.Tensor, torch.Tensor, Sequence[float]], list[Callable[[torch.Tensor], torch.Tensor]]],
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    penalties: Sequence[float],
    held_out_fraction: float,
    seed: int,
) -> ProbeResult:
    """Picks the penalty on rows held out of train, then fits on all of train."""
    features, labels = train[0].flatten(1).float(), train[1].long()
    test_features, test_labels = test[0].flatten(1).float(), test[1].long()
    check_split(features, labels, "train")
    check_split(test_features, test_labels, "test")
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties must be positive numbers, got {list(penalties)}.")
    candidates = [{"penalty": penalty} for penalty in penalties]
    best = candidates[0]
    if len(penalties) > 1:
        if len(labels) < 2:
            raise ValueError("Choosing a penalty needs 2 train rows: give a single one.")
        kept, held_out = held_out_rows(len(labels), held_out_fraction, seed)
        for candidate, predict in zip(candidates, fit(features[kept], labels[kept], penalties), strict=True):
            right = predict(features[held_out]).argmax(dim=1) == labels[held_out]
            candidate["held_out_accuracy"] = right.double().mean().item()
        # On a tie the stronger penalty, which comes last, is the safer one.
        best = max(reversed(candidates), key=lambda candidate: candidate["held_out_accuracy"])
    (predict,) = fit(features, labels, [best["penalty"]])
    accuracy = (predict(test_features).argmax(dim=1) == test_labels).double().mean().item()
    return ProbeResult(accuracy, best, candidates)


def ridge_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    penalties: Sequence[float] = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0),
    held_out_fraction: float = 0.2,
    seed: int = 0,
) -> ProbeResult:
    """
    Linear probe in closed form: ridge regression onto one-hot labels, features standardised, the penalty picked on
    rows held out of train. Solved in whichever of `d x d` or `n x n` is smaller, so unpooled tokens are fine.

    Args:
        train_features (`torch.FloatTensor` of shape `(n, ...)`): Flattened to vectors if they have more dimensions.
        train_labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 on.
        test_features (`torch.FloatTensor` of shape `(m, ...)`): As `train_features`.
        test_labels (`torch.LongTensor` of shape `(m,)`): As `train_labels`.
        penalties (`Sequence[float]`): Per train row: the solver adds `n * penalty` to the diagonal. Ascending.
        held_out_fraction (`float`): Share of train rows that the penalty is picked on.
        seed (`int`): Seed of that split.

    Returns:
        [`ProbeResult`]: Accuracy on test after a fit on all of train with the chosen penalty.

    Raises:
        ValueError: If shapes do not fit, features are not finite or a penalty is not positive.
    """
    train, test = (train_features, train_labels), (test_features, test_labels)
    return _select(_fit_ridge, train, test, penalties, held_out_fraction, seed)


def _fit_ridge(
    features: torch.Tensor, labels: torch.Tensor, penalties: Sequence[float]
) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    num_rows, width = features.shape
    # In double where it is cheap; wide problems are well conditioned by the penalty and would take minutes.
    dtype = torch.float64 if min(num_rows, width) <= 2048 else torch.float32
    mean, std = standardization(features)
    targets = F.one_hot(labels).to(dtype)
    target_mean = targets.mean(dim=0)
    targets = targets - target_mean
    primal = width <= num_rows
    if primal:
        gram = torch.zeros(width, width, dtype=dtype, device=features.device)
        right_side = torch.zeros(width, targets.shape[1], dtype=dtype, device=features.device)
        for start in range(0, num_rows, 4096):  # never a standardised copy of all rows
            chunk = ((features[start : start + 4096] - mean) / std).to(dtype)
            _add_gram(gram, chunk)
            right_side.addmm_(chunk.T, targets[start : start + 4096])
    else:
        rows = ((features - mean) / std).to(dtype)
        gram, right_side = torch.zeros(num_rows, num_rows, dtype=dtype, device=features.device), targets
        _add_gram(gram, rows.T)
    predictors = []
    # A smaller penalty could not be told from rounding, and the factorisation would break down.
    floor = torch.finfo(dtype).eps * gram.trace().item()
    for penalty in penalties:
        shifted = gram.clone()
        shifted.diagonal().add_(max(num_rows * penalty, floor))
        solution = torch.cholesky_solve(right_side, torch.linalg.cholesky(shifted))
        weight = solution if primal else rows.T @ solution
        predictors.append(_affine(weight.float(), target_mean.float(), mean, std))
    return predictors


def _add_gram(gram: torch.Tensor, rows: torch.Tensor) -> None:
    """Adds the lower triangle of `rows.T @ rows`, all that a Cholesky factorisation reads, in blocks of columns."""
    for start in range(0, len(gram), 1024):
        columns = slice(start, start + 1024)
        gram[start:, columns].addmm_(rows[:, start:].T, rows[:, columns])


def _affine(
    weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    scaled = weight / std[:, None]
    offset = bias - mean @ scaled
    return lambda features: features @ scaled + offset


def logistic_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    penalties: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2),
    held_out_fraction: float = 0.2,
    seed: int = 0,
    max_iterations: int = 200,
) -> ProbeResult:
    """
    Linear probe by multinomial logistic regression (L-BFGS), features standardised, the penalty picked on rows held
    out of train.

    Args:
        train_features (`torch.FloatTensor` of shape `(n, ...)`): Flattened to vectors if they have more dimensions.
        train_labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 on.
        test_features (`torch.FloatTensor` of shape `(m, ...)`): As `train_features`.
        test_labels (`torch.LongTensor` of shape `(m,)`): As `train_labels`.
        penalties (`Sequence[float]`): Factor of `|W|^2 / 2` beside the mean cross entropy; `1 / (n * C)` in
            scikit-learn's terms. Ascending.
        held_out_fraction (`float`): Share of train rows that the penalty is picked on.
        seed (`int`): Seed of that split.
        max_iterations (`int`): Of L-BFGS.

    Returns:
        [`ProbeResult`]: Accuracy on test after a fit on all of train with the chosen penalty.

    Raises:
        ValueError: If shapes do not fit, features are not finite or a penalty is not positive.
    """

    def fit(features: torch.Tensor, labels: torch.Tensor, values: Sequence[float]) -> list:
        mean, std = standardization(features)
        rows = (features - mean) / std
        predictors = []
        # From the strongest penalty down, each fit starting where the last one ended.
        weight = torch.zeros(features.shape[1], int(labels.max()) + 1, device=features.device)
        bias = torch.zeros(weight.shape[1], device=features.device)
        for penalty in sorted(values, reverse=True):
            weight, bias = _fit_logistic(rows, labels, weight, bias, penalty, max_iterations)
            predictors.append(_affine(weight, bias, mean, std))
        order = sorted(range(len(values)), key=lambda i: -values[i])
        return [predictors[order.index(i)] for i in range(len(values))]

    return _select(
        fit, (train_features, train_labels), (test_features, test_labels), penalties, held_out_fraction, seed
    )


@torch.enable_grad()
def _fit_logistic(
    rows: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, penalty: float, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(rows @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()
