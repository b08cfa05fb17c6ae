"""InfoNCE with negatives from all processes, in chunks (CLIP's symmetric form, arXiv 2103.00020; VL-JEPA)."""

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from .contrast import chunked_cross_entropy
from .distributed import all_reduce_sum, batch_sizes, gather_batch, world_size
from .inputs import checked_embeddings

Direction = Literal["both", "predicted_to_target", "target_to_predicted"]


def _inverse(temperature: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if isinstance(temperature, torch.Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            raise ValueError(f"`temperature` must be one floating-point number, got {tuple(temperature.shape)}.")
        if temperature.device.type == "cpu" and not torch.compiler.is_compiling() and not temperature > 0:
            raise ValueError(f"`temperature` must be positive and finite, got {temperature.item()}.")
        return temperature.to(like).reshape(()).reciprocal()
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"`temperature` must be positive and finite, got {temperature}.")
    return torch.full((), 1 / temperature, device=like.device, dtype=like.dtype)


def _pair(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"Pairs must have one shape (n, width), got {tuple(first.shape)} and {tuple(second.shape)}; row i of one "
            "belongs to row i of the other."
        )
    first, second = (checked_embeddings(embeddings) for embeddings in (first, second))
    dtype = torch.promote_types(first.dtype, second.dtype)
    return F.normalize(first.to(dtype), dim=1), F.normalize(second.to(dtype), dim=1)


def _place(n: int, device: torch.device) -> tuple[list[int], torch.Tensor]:
    """The ranks' batch sizes, and where this rank's rows stand in the joint batch."""
    sizes = batch_sizes(n)
    if sum(sizes) < 2:
        raise ValueError(f"InfoNCE needs negatives: at least 2 pairs, got {sum(sizes)}; raise the batch size.")
    start = sum(sizes[: torch.distributed.get_rank()]) if world_size() > 1 else 0
    return sizes, torch.arange(start, start + n, device=device)


def info_nce(
    predicted: torch.Tensor,
    target: torch.Tensor,
    temperature: float | torch.Tensor = 0.07,
    direction: Direction = "both",
    target_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Cross-entropy of cosine similarity over temperature: each prediction should pick its target among all processes'
    targets, and each target its prediction. Value and gradient are those of the joint batch, of any batch sizes;
    memory grows linearly with it. Computed in float32 (float64 stays), inside autocast too.

    Args:
        predicted (`torch.Tensor` of shape `(N, D)`), target (the same): pairs by row, normalised here. `.detach()` the
            target for a stop-gradient.
        temperature (`float` or `torch.Tensor` of shape `()`): divides the cosine; a tensor gets a gradient.
        direction (`str`): `"both"`, the average of the two (CLIP, VL-JEPA), or one of them:
            `"predicted_to_target"` (LLM-JEPA's ablation), `"target_to_predicted"`.
        target_ids (`torch.LongTensor` of shape `(N,)`, *optional*): pairs of one number, on any process, have the same
            target and are left out of each other's denominators, as they are no negatives.

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        `ValueError`: for another direction, an integer dtype, shapes that differ, fewer than two pairs in all, a
            temperature that is not positive, ids of another shape, and on CPU embeddings that are not finite.
    """
    if direction not in ("both", "predicted_to_target", "target_to_predicted"):
        raise ValueError(f"`direction` must be both, predicted_to_target or target_to_predicted, got {direction!r}.")
    predicted, target = _pair(predicted, target)
    scale = _inverse(temperature, predicted)
    if target_ids is not None and (target_ids.shape != predicted.shape[:1] or target_ids.dtype != torch.int64):
        raise ValueError(
            f"`target_ids` must be int64 of shape ({len(predicted)},), got {target_ids.dtype} of shape "
            f"{tuple(target_ids.shape)}."
        )
    sizes, place = _place(len(predicted), predicted.device)
    ids = None if target_ids is None else (target_ids, gather_batch(target_ids, sizes=sizes))
    if direction == "target_to_predicted":
        predicted, target = target, predicted
    both = direction == "both"
    by_row, _, by_column = chunked_cross_entropy(
        predicted, gather_batch(target, sizes=sizes), scale, place, ids, by_column=both
    )
    loss = by_row.sum()
    if both:
        loss = 0.5 * (loss + by_column[place].sum())
    return all_reduce_sum(loss) / sum(sizes)


def nt_xent(z_a: torch.Tensor, z_b: torch.Tensor, temperature: float | torch.Tensor = 0.5) -> torch.Tensor:
    """
    SimCLR's form of InfoNCE (arXiv 2002.05709): each of the 2 N embeddings should pick its other view among the
    2 N - 1 others. Exact across processes and chunked, as [`info_nce`].

    Args:
        z_a (`torch.Tensor` of shape `(N, D)`), z_b (the same): two views by row, normalised here.
        temperature (`float` or `torch.Tensor` of shape `()`).

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        `ValueError`: as [`info_nce`].
    """
    z_a, z_b = _pair(z_a, z_b)
    scale = _inverse(temperature, z_a)
    sizes, place = _place(len(z_a), z_a.device)
    total = sum(sizes)
    views = torch.stack([z_a, z_b])
    own, other = torch.cat([place, place + total]), torch.cat([place + total, place])
    by_row, _, _ = chunked_cross_entropy(
        views.flatten(0, 1),
        gather_batch(views, dim=1, sizes=sizes).flatten(0, 1),
        scale,
        other,
        ids=(own, torch.arange(2 * total, device=own.device)),
    )
    return all_reduce_sum(by_row.sum()) / (2 * total)


class InfoNCE(nn.Module):
    """
    [`info_nce`] with a temperature learned as CLIP's is: `logit_scale` (shape `()`) holds log(1 / temperature).

    Args:
        temperature (`float`): at the start; 0.07 in CLIP.
        max_scale (`float`): largest 1 / temperature, 100 in CLIP. The parameter itself is clamped before its use in
            training, so that it can come back; a clamp in the graph would hold it there without gradient.
        learnable (`bool`): `False` keeps the temperature.
        direction (`str`): see [`info_nce`].

    Raises:
        `ValueError`: for a temperature that is not positive or below `1 / max_scale`.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        learnable: bool = True,
        direction: Direction = "both",
    ) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0 and 1 / temperature <= max_scale):
            raise ValueError(f"`temperature` must be at least 1 / max_scale = {1 / max_scale:g}, got {temperature}.")
        self.max_scale, self.direction = max_scale, direction
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learnable)

    def forward(
        self, predicted: torch.Tensor, target: torch.Tensor, target_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            predicted (`torch.Tensor` of shape `(N, D)`), target (the same): pairs by row.
            target_ids (`torch.LongTensor` of shape `(N,)`, *optional*): see [`info_nce`].

        Returns:
            `torch.Tensor` of shape `()`.

        Raises:
            `ValueError`: as [`info_nce`].
        """
        if self.training:
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(self.max_scale))
        return info_nce(predicted, target, torch.exp(-self.logit_scale), self.direction, target_ids)
