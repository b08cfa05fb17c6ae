"""Pictures of clips: principal components of the features over time, and how surprising each moment is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ._figure import (
    FONT_SIZE,
    INK,
    PALETTE,
    check_features,
    check_grid,
    check_images,
    draw_image,
    image_axes,
    new_figure,
    save_figure,
)
from .features import pca_colors

_CELL = 1.25  # inches
_GAP = 0.22  # inches between the curve and the frames above it
_VIOLATION = PALETTE[1]
# Not the colour of the violation: a curve must not look like its mark.
_CURVES = (PALETTE[0], PALETTE[2], PALETTE[3], PALETTE[4])


def _check_videos(videos: Tensor, num_slots: int) -> Tensor:
    """`(B, F, C, H, W)` pixels as `(B, F, H, W, 3)` in [0, 1], stretched clip by clip; `num_slots` must divide F."""
    if not isinstance(videos, Tensor) or videos.ndim != 5 or not videos.numel():
        shape = tuple(videos.shape) if isinstance(videos, Tensor) else type(videos).__name__
        raise ValueError(f"`videos` must be a non-empty (B, F, C, H, W) tensor, got {shape}.")
    if num_slots < 1 or videos.shape[1] % num_slots:
        raise ValueError(f"{num_slots} time slots do not divide clips of {videos.shape[1]} frames.")
    # As one tall image per clip: frames stretched one by one would flicker.
    tall = check_images(videos.transpose(1, 2).flatten(2, 3), "videos")
    return tall.unflatten(1, (videos.shape[1], videos.shape[3]))


def _slot_frames(num_frames: int, num_slots: int) -> list[int]:
    """The last frame of every time slot: it shows whatever happened in the slot."""
    length = num_frames // num_slots
    return [(slot + 1) * length - 1 for slot in range(num_slots)]


def _evenly(num_items: int, limit: int) -> list[int]:
    """At most `limit` of `num_items` indices, first and last included."""
    if num_items <= limit:
        return list(range(num_items))
    return torch.linspace(0, num_items - 1, max(limit, 1)).round().long().tolist()


def plot_video_pca(
    videos: Tensor,
    features: Tensor,
    grid_size: tuple[int, int, int],
    path: str | os.PathLike,
    max_videos: int = 4,
    max_slots: int = 10,
) -> Path:
    """
    Draw clips as strips over time: a frame of each time slot, and below it the slot's features, whose first three
    principal components are shown as red, green and blue. The components are those of all tokens of all clips and
    times, so a thing that keeps its colour keeps its features.

    Args:
        videos (`torch.Tensor` of shape `(B, F, C, H, W)`):
            Pixels, uint8 or float, with one or three channels; normalised pixels are stretched for display.
        features (`torch.Tensor` of shape `(B, N, D)`, float):
            An encoder's tokens in (time, row, column) order, N = slots x rows x columns.
        grid_size (`tuple[int, int, int]`):
            Time slots, patch rows and patch columns; slots divide F.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        max_videos (`int`, defaults to 4):
            Clips drawn, from the start of the batch; the components are those of the whole batch.
        max_slots (`int`, defaults to 10):
            Time slots drawn, evenly spread with the first and the last.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape or the grid does not fit the clips, or a feature is not finite.
    """
    num_slots, *patches = grid_size
    frames = _check_videos(videos, num_slots)
    rows, columns = check_grid(tuple(patches), frames[0])
    features = check_features(features, len(frames), num_slots * rows * columns, "features")
    maps = pca_colors(features).view(len(frames), num_slots, rows, columns, 3)
    num_videos, slots = min(max_videos, len(frames)), _evenly(num_slots, max_slots)
    height, width = frames.shape[2:4]
    of_slot = _slot_frames(frames.shape[1], num_slots)

    figure = new_figure(_CELL * len(slots) + 0.6, 2 * _CELL * num_videos * height / width + 0.4)
    axes = image_axes(figure, 2 * num_videos, len(slots))
    for video in range(num_videos):
        above, below = axes[2 * video], axes[2 * video + 1]
        above[0].set_ylabel("frame", fontsize=FONT_SIZE, color=INK)
        below[0].set_ylabel("features", fontsize=FONT_SIZE, color=INK)
        for column, slot in enumerate(slots):
            if video == 0:
                title = f"{of_slot[slot]}" if column else f"frame {of_slot[slot]}"
                above[column].set_title(title, fontsize=FONT_SIZE, color=INK)
            draw_image(above[column], frames[video, of_slot[slot]])
            colors = maps[video, slot].repeat_interleave(height // rows, 0).repeat_interleave(width // columns, 1)
            draw_image(below[column], colors)
    return save_figure(figure, path)


def plot_surprise(
    videos: Tensor,
    energy: Tensor,
    path: str | os.PathLike,
    labels: Sequence[str] | None = None,
    violation: int | None = None,
    max_slots: int = 12,
) -> Path:
    """
    Draw how surprising each moment of a clip is: the energy of every time slot as a curve, below frames that stand
    where their slot is. Clips of one batch share the axes, so that an impossible clip lies beside its possible twin.

    Args:
        videos (`torch.Tensor` of shape `(B, F, C, H, W)`):
            Pixels, uint8 or float, with one or three channels; normalised pixels are stretched for display. At most 4.
        energy (`torch.Tensor` of shape `(B, T)`, float):
            Energy per time slot, as from a model's `energy`; T divides F. NaN where nothing was predicted.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        labels (`Sequence[str]`, *optional*):
            Name of each clip.
        violation (`int`, *optional*):
            Time slot of the violation in the last clip, from 0, to be marked.
        max_slots (`int`, defaults to 12):
            Time slots whose frames are drawn, evenly spread with the first and the last.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape does not fit, the violation lies outside the clip, or no energy is finite.
    """
    if not isinstance(energy, Tensor) or energy.ndim != 2 or not energy.numel():
        shape = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
        raise ValueError(f"`energy` must be a non-empty (B, T) tensor, got {shape}.")
    energy = energy.detach().cpu().float()
    num_slots = energy.shape[1]
    frames = _check_videos(videos, num_slots)
    if len(frames) != len(energy) or len(frames) > len(_CURVES):
        raise ValueError(
            f"`videos` holds {len(frames)} clips and `energy` {len(energy)} curves: give the same number, at most "
            f"{len(_CURVES)}."
        )
    if energy.isinf().any() or energy.isnan().all(dim=1).any():
        raise ValueError("`energy` holds infinite values, or a clip without any.")
    if violation is not None and not 0 <= violation < num_slots:
        raise ValueError(f"`violation` must be a time slot from 0 to {num_slots - 1}, got {violation}.")
    labels = [f"clip {number + 1}" for number in range(len(frames))] if labels is None else list(labels)
    if len(labels) != len(frames):
        raise ValueError(f"`labels` must name {len(frames)} clips, got {labels}.")
    return _draw_surprise(frames, energy, path, labels, violation, _evenly(num_slots, max_slots))


def _draw_surprise(
    frames: Tensor,
    energy: Tensor,
    path: str | os.PathLike,
    labels: list[str],
    violation: int | None,
    slots: list[int],
) -> Path:
    from matplotlib.lines import Line2D

    num_videos, num_slots = energy.shape
    height, width = frames.shape[2:4]
    of_slot = _slot_frames(frames.shape[1], num_slots)
    if violation is not None:  # its frame must be among those drawn
        nearest = min(range(len(slots)), key=lambda index: abs(slots[index] - violation))
        slots[nearest] = violation
    # In inches, so that a frame is square to the eye and stands above its slot.
    left, right, bottom, curve, top = 0.75, 0.15, 0.5, 2.1, 0.15
    strip = max(_CELL * len(slots), 6.0)
    side = 0.94 * strip / len(slots)
    row = side * height / width + 0.06
    figure_width, figure_height = left + strip + right, bottom + curve + _GAP + num_videos * row + top
    figure = new_figure(figure_width, figure_height, layout="none")

    def axes_at(x: float, y: float, w: float, h: float):
        return figure.add_axes((x / figure_width, y / figure_height, w / figure_width, h / figure_height))

    axis = axes_at(left, bottom, strip, curve)
    steps = torch.arange(num_slots) + 0.5
    for number, label in enumerate(labels):
        values = energy[number].numpy()
        axis.plot(steps, values, color=_CURVES[number], linewidth=1.8, marker="o", markersize=3.5, label=label)
    axis.set_xlim(0, num_slots)
    axis.margins(y=0.15)
    axis.set_xticks([slot + 0.5 for slot in slots], [str(of_slot[slot]) for slot in slots])
    axis.set_xlabel("frame", fontsize=FONT_SIZE, color=INK)
    axis.set_ylabel("surprise (energy)", fontsize=FONT_SIZE, color=INK)
    axis.tick_params(labelsize=FONT_SIZE - 1, colors=INK)
    axis.grid(color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if violation is not None:
        axis.axvspan(violation, violation + 1, color=_VIOLATION, alpha=0.18, linewidth=0, label="violation")
    if num_videos > 1 or violation is not None:
        axis.legend(fontsize=FONT_SIZE - 1, frameon=False, labelcolor=INK, loc="best")

    for column, slot in enumerate(slots):
        # Where some slots have no frame, the frames are wider than slots: a line leads from each to its own.
        ends = [left + strip * (column + 0.5) / len(slots), left + strip * (slot + 0.5) / num_slots]
        heights = [bottom + curve + _GAP, bottom + curve]
        line = Line2D(
            [x / figure_width for x in ends], [y / figure_height for y in heights], color="#999999", linewidth=0.8
        )
        figure.add_artist(line)
    for number, label in enumerate(labels):
        y = bottom + curve + _GAP + (num_videos - 1 - number) * row
        for column, slot in enumerate(slots):
            centre = left + strip * (column + 0.5) / len(slots)
            picture = axes_at(centre - side / 2, y, side, row - 0.06)
            picture.set_xticks([])
            picture.set_yticks([])
            draw_image(picture, frames[number, of_slot[slot]])
            violated = number == num_videos - 1 and slot == violation
            for spine in picture.spines.values():
                spine.set(color=_VIOLATION if violated else "#BBBBBB", linewidth=2.5 if violated else 0.6)
            if column == 0:
                picture.set_ylabel(label, fontsize=FONT_SIZE, color=_CURVES[number], weight="bold")
    return save_figure(figure, path)
