from collections.abc import Callable
from dataclasses import dataclass

import torch

from .closed_form import ridge_probe
from .knn import check_split


@dataclass
class LowShotResult:
    """
    Accuracy with few labels.

    Args:
        mean (`float`): Over the draws, in [0, 1].
        std (`float`): Over the draws (unbiased); 0 for one draw.
        accuracies (`list[float]`): One per draw.
        num_labels (`int`): Labelled rows in each draw.
    """

    mean: float
    std: float
    accuracies: list[float]
    num_labels: int

    def __float__(self) -> float:
        return self.mean


def draw_labelled_rows(labels: torch.Tensor, amount: float | int, generator: torch.Generator) -> torch.Tensor:
    """
    Draws the same number, or share, of rows from each class.

    Args:
        labels (`torch.LongTensor` of shape `(n,)`): Classes.
        amount (`float` or `int`): A float in (0, 1] is a share of each class, at least one row; an int is rows per
            class.
        generator (`torch.Generator`): Of the draw.

    Returns:
        `torch.LongTensor` of shape `(drawn,)`: Indices.

    Raises:
        ValueError: If the amount is out of range or a class has too few rows.
    """
    is_count = isinstance(amount, int)
    if (is_count and amount < 1) or (not is_count and not 0 < amount <= 1):
        raise ValueError(f"amount must be a share in (0, 1] as a float or rows per class as an int, got {amount!r}.")
    drawn = []
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        count = amount if is_count else max(1, round(amount * len(rows)))
        if count > len(rows):
            raise ValueError(f"class {int(label)} has {len(rows)} rows, fewer than {count}.")
        drawn.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(drawn)


def low_shot_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    amount: float | int = 0.01,
    num_draws: int = 5,
    seed: int = 0,
    probe: Callable[..., float] = ridge_probe,
) -> LowShotResult:
    """
    Mean accuracy of a probe trained on a few labels, over seeded draws of them.

    Args:
        train_features (`torch.FloatTensor` of shape `(n, ...)`): Where labelled rows are drawn from.
        train_labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 on.
        test_features (`torch.FloatTensor` of shape `(m, ...)`): As `train_features`.
        test_labels (`torch.LongTensor` of shape `(m,)`): As `train_labels`.
        amount (`float` or `int`): A float is a share of each class (0.01 is the field's 1 %), an int rows per class.
        num_draws (`int`): Draws.
        seed (`int`): Draw `i` uses seed `seed + i`.
        probe (`Callable`): Such as [`ridge_probe`], [`logistic_probe`], [`knn_accuracy`] or [`attentive_probe`]:
            called with train features, train labels, test features, test labels.

    Returns:
        [`LowShotResult`]

    Raises:
        ValueError: If shapes do not fit, or a class has too few rows.
    """
    check_split(train_features, train_labels, "train")
    check_split(test_features, test_labels, "test")
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}.")
    accuracies = []
    for draw in range(num_draws):
        rows = draw_labelled_rows(train_labels, amount, torch.Generator().manual_seed(seed + draw))
        accuracies.append(float(probe(train_features[rows], train_labels[rows], test_features, test_labels)))
    values = torch.tensor(accuracies, dtype=torch.float64)
    std = values.std().item() if num_draws > 1 else 0.0
    return LowShotResult(values.mean().item(), std, accuracies, len(rows))
