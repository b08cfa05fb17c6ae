"""What a run logs about its steps, gathered on the device and read only when something is logged."""

from collections import Counter, deque
from typing import Any

import torch
from accelerate import Accelerator

from ...objectives.distributed import all_reduce_sum, gather_batch
from ..base_metrics import RunningTerms, non_finite_entry

# Singular values of this many rows say as much, and cost milliseconds.
_MAX_RANK_ROWS = 1024
_MAX_IMAGES = 64
_MAX_CLIPS = 8
# Micro-batches whose projections are looked at: two numbers of each view and dimension are kept of each.
_MAX_MOMENTS = 64


class StepMetrics(RunningTerms):
    """
    Sums of what the training steps return, kept as detached tensors on the device: no update waits for the device.
    """

    def __init__(self) -> None:
        self.last_pixels: torch.Tensor | None = None
        super().__init__()

    def _reset(self) -> None:
        super()._reset()
        self._images = 0
        self._moments: deque[tuple[int, torch.Tensor, torch.Tensor]] = deque(maxlen=_MAX_MOMENTS)

    @torch.no_grad()
    def update(self, outputs: Any, pixel_values: torch.Tensor | list[torch.Tensor] | None, step: int) -> None:
        """
        Adds one micro-batch.

        Args:
            outputs ([`~hf_jepa.modeling_jepa.JepaOutput`]): what the model returned.
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`, or `(batch, views,
                channels, height, width)` from a joint-embedding model, or `(batch, frames, channels, height, width)`
                from a video model, or a `list` of those): what it was given. `None` where that was no pixels.
            step (`int`): 0-based index of the optimizer update.
        """
        values = dict(outputs.loss_components or {})
        for name, tensors in (("prediction_token_std", outputs.predictions), ("target_token_std", outputs.targets)):
            if tensors:
                values[name] = torch.stack([_token_std(tensor) for tensor in tensors]).mean()
        if getattr(outputs, "projections", None) is not None:
            projections = outputs.projections.detach().float()
            mean = projections.mean(dim=1)
            # The batch is that of all processes, whose moments are joined only when something is logged.
            self._moments.append((projections.shape[1], mean, (projections - mean[:, None]).square().sum(dim=1)))
        self.add(values, outputs.loss, step)
        if pixel_values is None:
            self._images += len(outputs.targets[0])
            return
        groups = [pixel_values] if isinstance(pixel_values, torch.Tensor) else pixel_values
        self._images += sum(map(len, groups))
        # Clips of one size can be compared; the largest group stands for all.
        images = max(groups, key=len)
        # Of several views (batch, views, C, H, W), the first stands for the image.
        if getattr(outputs, "projections", None) is not None:
            images = images[:, 0]
        self.last_pixels = images[: _MAX_IMAGES if images.ndim == 4 else _MAX_CLIPS].detach()

    def drain(self, accelerator: Accelerator, features: torch.Tensor | None) -> dict[str, float]:
        """
        Means since the last call over micro-batches and processes, and a fresh start.

        Args:
            accelerator (`Accelerator`): gathers across processes; every process has to call this.
            features (`torch.FloatTensor` of shape `(batch, tokens, width)`, *optional*): of some images of this
                process.

        Returns:
            `dict[str, float]`: the terms of the loss, stds (`projector_std` is that of the joint batches of all
            processes, of at most the last 64), `images_per_second` (clips, of a video model), what [`joint_spread`]
            says of the features and, if there was one, `non_finite_step`.
        """
        if not self._micro_batches:
            return {}
        names = sorted(self._sums)
        values = [self._sums[name] / self._micro_batches for name in names]
        shape = [0, 0, 0] if features is None else list(features.shape)
        row = torch.stack([*values, self._first_bad]).float()
        # One gather and one transfer for everything; images, tokens and width stand last.
        table = accelerator.gather(torch.cat([row, row.new_tensor(shape)])[None]).cpu()
        result = dict(zip(names, table[:, : len(names)].mean(0).tolist(), strict=True))
        result |= joint_spread(row.new_zeros(shape) if features is None else features, table[:, -3:].int().tolist())
        if self._moments:
            result["projector_std"] = _joint_std(*zip(*self._moments, strict=True)).item()
        result |= non_finite_entry(table[:, -4])
        result["images_per_second"] = round(self._images * accelerator.num_processes / self._seconds(), 3)
        self._reset()
        return result


def _token_std(tokens: torch.Tensor) -> torch.Tensor:
    tokens = tokens.detach().float().flatten(0, -2)
    return tokens.std(dim=0, correction=0).mean()


def _joint_std(
    sizes: tuple[int, ...], means: tuple[torch.Tensor, ...], squares: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """
    Standard deviation over the joint batch of all processes, averaged, of every micro-batch's size, mean and sum of
    squared deviations in this process. Every process has to call this.
    """
    mean = torch.stack(means)
    size = mean.new_tensor(sizes).view(-1, *[1] * (mean.ndim - 1))
    total = all_reduce_sum(size)
    joint = all_reduce_sum(size * mean) / total
    # Around the joint mean, beside which the spread of collapsed projections is small.
    return (all_reduce_sum(torch.stack(squares) + size * (mean - joint).square()) / total).sqrt().mean()


def joint_spread(features: torch.Tensor, shapes: list[list[int]]) -> dict[str, float]:
    """
    Standard deviation across images, at each position and dimension, averaged, and RankMe, of the features of all
    processes as one batch, from reduced moments and a sample of tokens. An encoder that has collapsed to positions has
    varied tokens and a healthy-looking loss, but a std near zero. Where images and clips, or clips of several lengths,
    are on processes of their own, those of which there are most stand for all. Every process has to call this.

    Args:
        features (`torch.FloatTensor` of shape `(batch, tokens, width)`): target features of this process; may be
            empty.
        shapes (`list[list[int]]`): those of all processes, by rank.

    Returns:
        `dict[str, float]`: `target_std` and `target_rankme`, between 1 and the width (NaN if a feature is); nothing
        for fewer than two images.
    """
    from ...evaluation.diagnostics import rankme

    images = Counter()
    for batch, length, _ in shapes:
        images[length] += batch
    (length, total), width = images.most_common(1)[0], max(shape[-1] for shape in shapes)
    if total < 2:
        return {}
    features = features.float() if features.shape[1] == length else features.new_zeros(0, length, width).float()
    # In two passes: a collapsed encoder's mean is large beside its spread.
    mean = all_reduce_sum(features.sum(dim=0)) / total
    std = (all_reduce_sum((features - mean).square().sum(dim=0)) / total).sqrt().mean()
    every = -(-total * length // _MAX_RANK_ROWS)
    sizes = [-(-batch * length // every) if tokens == length else 0 for batch, tokens, _ in shapes]
    tokens = gather_batch(features.flatten(0, 1)[::every], sizes=sizes)
    return {"target_std": std.item(), "target_rankme": rankme(tokens) if tokens.isfinite().all() else float("nan")}
