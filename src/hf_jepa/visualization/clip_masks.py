"""Pictures of a clip's masks over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ._figure import (
    FONT_SIZE,
    INK,
    PALETTE,
    check_grid,
    check_mask,
    draw_image,
    image_axes,
    new_figure,
    outline,
    patch_map,
    save_figure,
    show_only,
)
from .video import _check_videos, _evenly, _slot_frames

_CELL = 1.25  # inches


def plot_clip_masks(
    clip: Tensor,
    context_mask: Sequence[Tensor],
    target_mask: Sequence[Tensor],
    grid_size: tuple[int, int, int],
    path: str | os.PathLike,
    index: int = 0,
    max_slots: int = 8,
) -> Path:
    """
    Draw what the context encoder sees of a clip and what the predictor is asked for, over time: the frames, and for
    every pair of masks a strip of what is visible and a strip of what is predicted.

    Args:
        clip (`torch.Tensor` of shape `(F, C, H, W)`):
            Pixels, uint8 or float, with one or three channels; normalised pixels are stretched for display.
        context_mask, target_mask (`Sequence[torch.Tensor]` of shape `(B, K)`, int64):
            Token indices in (time, row, column) order, as `VJepaForPreTraining.forward` takes them.
        grid_size (`tuple[int, int, int]`):
            Time slots, patch rows and patch columns; slots divide F.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        index (`int`, defaults to 0):
            The clip's place in the batch that the masks are of.
        max_slots (`int`, defaults to 8):
            Time slots drawn, evenly spread with the first and the last.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape, an index or the grid does not fit the clip, or the masks do not pair up.
    """
    num_slots, *patches = grid_size
    frames = _check_videos(clip[None], num_slots)[0]
    rows, columns = check_grid(tuple(patches), frames)
    if not len(context_mask) == len(target_mask) > 0:
        raise ValueError(f"Give as many context as target masks, got {len(context_mask)} and {len(target_mask)}.")
    slots, of_slot = _evenly(num_slots, max_slots), _slot_frames(len(frames), num_slots)
    height, width = frames.shape[1:3]
    figure = new_figure(_CELL * len(slots) + 0.6, _CELL * (1 + 2 * len(context_mask)) * height / width + 0.4)
    axes = image_axes(figure, 1 + 2 * len(context_mask), len(slots))
    axes[0][0].set_ylabel("clip", fontsize=FONT_SIZE, color=INK)
    for column, slot in enumerate(slots):
        title = f"{of_slot[slot]}" if column else f"frame {of_slot[slot]}"
        axes[0][column].set_title(title, fontsize=FONT_SIZE, color=INK)
        draw_image(axes[0][column], frames[of_slot[slot]])
    for number, pair in enumerate(zip(context_mask, target_mask, strict=True)):
        for offset, (name, mask) in enumerate(zip(("context", "target"), pair, strict=True)):
            row = axes[1 + 2 * number + offset]
            row[0].set_ylabel(f"{name} {number + 1}", fontsize=FONT_SIZE, color=INK)
            tokens = check_mask(mask, len(mask), num_slots * rows * columns, f"{name}_mask[{number}]")[index]
            for axis, slot in zip(row, slots, strict=True):
                inside = tokens[tokens // (rows * columns) == slot] % (rows * columns)
                selected = patch_map(inside, (rows, columns))
                draw_image(axis, show_only(frames[of_slot[slot]], selected, fade=0.75 if offset else 1.0))
                if offset:
                    outline(axis, selected, (height, width), PALETTE[number % len(PALETTE)], linewidth=1.2)
    return save_figure(figure, path)
