"""Groups of clips of one length and size, and what is predicted of them."""

from typing import NamedTuple

import torch

from .configuration_vjepa import VJepaConfig
from .encoder_vjepa import Grid, check_each_mask, grid_of
from .modeling_vjepa import check_pairs


class Pair(NamedTuple):
    """
    A context mask and the target mask it predicts, of one group of clips.

    Args:
        group (`int`), mask (`int`): which group of clips, and which mask of it.
        grid (`tuple[int, int, int]`): time slots, rows and columns of the clips.
        is_image (`bool`): whether the clips have one frame.
        context, target (`torch.Tensor` of shape `(batch, kept)`): int64 token indices.
    """

    group: int
    mask: int
    grid: Grid
    is_image: bool
    context: torch.Tensor
    target: torch.Tensor


def pair_masks(
    config: VJepaConfig,
    clips: list[torch.Tensor],
    context_mask: list[list[torch.Tensor]],
    target_mask: list[list[torch.Tensor]],
) -> list[Pair]:
    """
    The pairs of every group, group by group.

    Args:
        config ([`VJepaConfig`]): of the encoder.
        clips (`list` of `torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): one per group.
        context_mask, target_mask (`list` of lists of int64 tensors of shape `(batch, kept)`): a list per group.

    Raises:
        `ValueError`: for clips or masks that do not fit.
    """
    if not len(clips) == len(context_mask) == len(target_mask) > 0:
        raise ValueError(
            f"Every group of clips needs a list of context masks and one of target masks, got {len(clips)} groups, "
            f"{len(context_mask)} in `context_mask` and {len(target_mask)} in `target_mask`."
        )
    pairs = []
    for group, (part, contexts, targets) in enumerate(zip(clips, context_mask, target_mask, strict=True)):
        grid = grid_of(config, part)
        check_each_mask("context_mask", contexts, part.shape[0], grid)
        check_each_mask("target_mask", targets, part.shape[0], grid)
        check_pairs(contexts, targets)
        pairs += [
            Pair(group, mask, grid, part.shape[1] == 1, context, target)
            for mask, (context, target) in enumerate(zip(contexts, targets, strict=True))
        ]
    return pairs


def causal_masks(
    batch_size: int, grid: Grid, device: torch.device
) -> tuple[list[torch.LongTensor], list[torch.LongTensor]]:
    """Context and target masks that predict every time slot but the first from all slots before it."""
    slots, rows, columns = grid
    if slots < 2:
        raise ValueError(f"A clip of {slots} time slot has no past to predict from; pass masks or a longer clip.")
    tokens = torch.arange(slots * rows * columns, device=device).expand(batch_size, -1)
    area = rows * columns
    return (
        [tokens[:, : slot * area] for slot in range(1, slots)],
        [tokens[:, slot * area : (slot + 1) * area] for slot in range(1, slots)],
    )
