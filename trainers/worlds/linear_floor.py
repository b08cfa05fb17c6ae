"""What a VL-JEPA predictor has to beat: the best linear map from mean vision tokens to text embeddings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

PENALTIES = (30, 100, 300, 1000, 3000, 10000)
Tests = dict[str, tuple[torch.Tensor, torch.Tensor]]
Scores = dict[str, dict[str, float]]
Score = Callable[[torch.Tensor, torch.Tensor], dict[str, float]]


@dataclass
class Fold:
    """
    Args:
        train (`torch.Tensor` of shape `(styles, views, concepts, tokens, width)`): vision tokens.
        targets (`torch.Tensor` of shape `(concepts, 384)`): their names' embeddings.
        tests (`dict`): name -> vision tokens `(n, tokens, width)` of another style, and which concepts they are.
    """

    train: torch.Tensor
    targets: torch.Tensor
    tests: Tests

    def pooled(self) -> "Fold":
        """The same with the mean of each picture's tokens, which is what the linear map sees."""
        tests = {name: (tokens.float().mean(dim=1), rows) for name, (tokens, rows) in self.tests.items()}
        return Fold(torch.stack([part.float().mean(dim=2) for part in self.train]), self.targets, tests)


def linear_floor(fold: Fold, validation: Fold, score: Score) -> Scores:
    """
    The best linear map between the same features, each number with the penalty and the views (plain alone, or all)
    that are best for it on the validation fold.
    """
    chosen: dict[tuple[str, str], tuple] = {}
    for views in (1, validation.train.shape[1]):
        for penalty in PENALTIES:
            fitted = ridge(validation.train[:, :views], validation.targets, penalty)
            for name, (features, rows) in validation.tests.items():
                for metric, value in score(fitted(features), rows).items():
                    chosen[name, metric] = max(chosen.get((name, metric), (-float("inf"),)), (value, views, penalty))
    found: Scores = {name: {} for name in fold.tests}
    for views, penalty in sorted({best[1:] for best in chosen.values()}):
        fitted = ridge(fold.train[:, :views], fold.targets, penalty)
        for name, (features, rows) in fold.tests.items():
            for metric, value in score(fitted(features), rows).items():
                if chosen[name, metric][1:] == (views, penalty):
                    found[name][metric] = value
    return found


def ridge(features: torch.Tensor, targets: torch.Tensor, penalty: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear map from mean tokens `(styles, views, concepts, width)` to `(concepts, 384)`, in closed form."""
    copies = features.shape[0] * features.shape[1]
    features, targets = features.flatten(0, 2), targets.repeat(copies, 1)
    mean, target_mean = features.mean(dim=0), targets.mean(dim=0)
    centred = (features - mean).double()
    gram = centred.T @ centred + penalty * copies * torch.eye(features.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, centred.T @ (targets - target_mean).double()).float()
    return lambda rows: (rows - mean) @ weights + target_mean
