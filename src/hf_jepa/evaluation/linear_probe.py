from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from tqdm.auto import tqdm

from .closed_form import ProbeResult, held_out_rows
from .knn import check_split


class _Heads:
    """Linear heads on one kind of input, trained side by side; a head is one (learning rate, weight decay)."""

    def __init__(self, name: str, width: int, num_classes: int, batch_norm: bool, grid: list[tuple[float, float]]):
        self.grid = [
            {"features": name, "batch_norm": batch_norm, "learning_rate": lr, "weight_decay": wd} for lr, wd in grid
        ]
        self.name = name
        # Without affine: a scale and shift before a linear layer add nothing.
        self.norm = nn.BatchNorm1d(width, affine=False) if batch_norm else nn.Identity()
        self.weight = torch.zeros(len(grid), width, num_classes)
        self.bias = torch.zeros(len(grid), 1, num_classes)
        self.velocity = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
        self.learning_rate = torch.tensor([lr for lr, _ in grid]).view(-1, 1, 1)
        self.weight_decay = torch.tensor([wd for _, wd in grid]).view(-1, 1, 1)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(features) @ self.weight + self.bias

    def step(self, features: torch.Tensor, labels: torch.Tensor, rate: float, lars: bool) -> None:
        """One step of momentum SGD; the gradient of cross entropy is written out, so all heads share one product."""
        inputs = self.norm(features)
        error = (inputs @ self.weight + self.bias).softmax(dim=-1)
        error[:, torch.arange(len(labels)), labels] -= 1
        error /= len(labels)
        gradient = inputs.T @ error + self.weight_decay * self.weight
        if lars:
            norms = [tensor.flatten(1).norm(dim=1).view(-1, 1, 1) for tensor in (self.weight, gradient)]
            trust = 0.001 * norms[0] / norms[1].clamp_min(1e-12)
            gradient = gradient * torch.where(norms[0] > 0, trust, torch.ones_like(trust))
        for tensor, velocity, change in zip(
            (self.weight, self.bias), self.velocity, (gradient, error.sum(dim=1, keepdim=True)), strict=True
        ):
            velocity.mul_(0.9).add_(change)
            tensor.sub_(rate * self.learning_rate * velocity)

    @torch.no_grad()
    def accuracies(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.norm.eval()
        right = torch.zeros(len(self.grid), dtype=torch.float64)
        for start in range(0, len(labels), 4096):
            predictions = self.logits(features[start : start + 4096]).argmax(dim=-1)
            right += (predictions == labels[start : start + 4096]).sum(dim=1).double()
        self.norm.train()
        return right / len(labels)


@torch.no_grad()
def linear_probe(
    train_features: torch.Tensor | Mapping[str, torch.Tensor],
    train_labels: torch.Tensor,
    test_features: torch.Tensor | Mapping[str, torch.Tensor],
    test_labels: torch.Tensor,
    learning_rates: Sequence[float] = (1.0, 0.1, 0.05, 0.01, 0.001),
    weight_decays: Sequence[float] = (0.0, 5e-4),
    batch_norm: Sequence[bool] = (False, True),
    epochs: int = 50,
    batch_size: int = 256,
    optimizer: Literal["sgd", "lars"] = "sgd",
    held_out_fraction: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> ProbeResult:
    """
    I-JEPA's linear evaluation recipe: the best of several heads, with and without batch norm before the
    linear layer, over a grid of learning rates and weight decays, on the last layer and on the last four; learning
    rate divided by 10 every 15 of 50 epochs. All heads are trained in one pass.

    Two things differ from the paper: the best head is picked on rows held out of train, never on test; and the default
    is momentum SGD on batches of 256, because the paper's LARS on batches of 16,384 hardly moves on small datasets.
    For its setting give `optimizer="lars", batch_size=16384`; learning rates are multiplied by `batch_size / 256`.

    Args:
        train_features (`torch.FloatTensor` of shape `(n, D)`, or a mapping of names to such): Pooled features, for
            example `{"last": ..., "last4": ...}`; the head may choose among them.
        train_labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 on.
        test_features: As `train_features`, with `m` rows.
        test_labels (`torch.LongTensor` of shape `(m,)`): As `train_labels`.
        learning_rates (`Sequence[float]`): Per 256 rows of a batch. The paper has the last three; small datasets, with
            their short runs, need the others.
        weight_decays (`Sequence[float]`): Of the weights.
        batch_norm (`Sequence[bool]`): Which kinds of heads to train.
        epochs (`int`): Passes over the kept rows of train.
        batch_size (`int`): Rows per step, at most the kept rows.
        optimizer (`str`): `"sgd"` or `"lars"` (trust coefficient 0.001; biases without), momentum 0.9.
        held_out_fraction (`float`): Share of train rows that the head is picked on.
        seed (`int`): Seed of that split, the initialisation and the order of rows.
        progress (`bool`): Show a progress bar.

    Returns:
        [`ProbeResult`]: Test accuracy of the head that was best on the held-out rows.

    Raises:
        ValueError: If shapes do not fit, features are not finite, or an argument is out of range.
    """
    train = train_features if isinstance(train_features, Mapping) else {"features": train_features}
    test = test_features if isinstance(test_features, Mapping) else {"features": test_features}
    if train.keys() != test.keys():
        raise ValueError(f"train has features {sorted(train)}, test has {sorted(test)}.")
    if optimizer not in ("sgd", "lars"):
        raise ValueError(f'optimizer must be "sgd" or "lars", got {optimizer!r}.')
    if epochs < 1 or batch_size < 2 or not learning_rates or not weight_decays or not batch_norm:
        raise ValueError("linear_probe needs epochs >= 1, batch_size >= 2 and non-empty grids.")
    train = {name: features.flatten(1).float() for name, features in train.items()}
    test = {name: features.flatten(1).float() for name, features in test.items()}
    for name in train:
        check_split(train[name], train_labels, f"train ({name})")
        check_split(test[name], test_labels, f"test ({name})")
    kept, held_out = held_out_rows(len(train_labels), held_out_fraction, seed)
    if len(kept) < 2:
        raise ValueError(f"{len(train_labels)} train rows are too few for a probe.")
    batch_size = min(batch_size, len(kept))
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    grid = [(lr * batch_size / 256, wd) for lr in learning_rates for wd in weight_decays]
    generator = torch.Generator().manual_seed(seed)
    groups = [_Heads(name, train[name].shape[1], num_classes, norm, grid) for name in train for norm in batch_norm]
    for heads in groups:
        # One initialisation for all heads of a group: they differ in their settings alone.
        heads.weight[:] = 0.01 * torch.randn(heads.weight.shape[1:], generator=generator)

    for epoch in tqdm(range(epochs), desc="linear probe", disable=not progress):
        order = kept[torch.randperm(len(kept), generator=generator)]
        # 15 of the paper's 50 epochs, at any number of epochs.
        rate = 0.1 ** (epoch * 50 // (epochs * 15))
        for rows in order[: len(order) // batch_size * batch_size].view(-1, batch_size):
            labels = train_labels[rows]
            for heads in groups:
                heads.step(train[heads.name][rows], labels, rate, optimizer == "lars")

    candidates, accuracies = [], []
    for heads in groups:
        held_out_accuracy = heads.accuracies(train[heads.name][held_out], train_labels[held_out])
        accuracies += heads.accuracies(test[heads.name], test_labels).tolist()
        for settings, (learning_rate, _), score in zip(heads.grid, grid, held_out_accuracy.tolist(), strict=True):
            settings["learning_rate"] = learning_rate * 256 / batch_size
            candidates.append(settings | {"held_out_accuracy": score})
    best = max(range(len(candidates)), key=lambda index: candidates[index]["held_out_accuracy"])
    return ProbeResult(accuracies[best], candidates[best], candidates)
