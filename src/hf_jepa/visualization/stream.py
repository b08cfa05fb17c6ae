"""Pictures of a VL-JEPA: where a stream shifts and is decoded, and which texts an image brings to mind."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ._figure import FONT_SIZE, INK, PALETTE, check_images, draw_image, image_axes, new_figure, save_figure


def plot_stream(
    frames: Tensor,
    seconds: Sequence[float],
    shift: Tensor,
    decoded: Sequence[int],
    starts: Sequence[int],
    texts: Sequence[str],
    path: str | os.PathLike,
) -> Path:
    """
    Draw how far the embedding of a stream shifts over time, and the moments that are decoded: their frames and texts
    above the curve, in a row; dashed lines where segments begin.

    Args:
        frames (`torch.Tensor` of shape `(decodes, C, H, W)`):
            Pixels at the decoded moments, uint8 or float.
        seconds (`Sequence[float]`):
            Of each window.
        shift (`torch.Tensor` of shape `(windows,)`):
            See [`~hf_jepa.streaming.embedding_shift`].
        decoded (`Sequence[int]`), starts (`Sequence[int]`):
            Windows that are decoded, and that begin segments, as in [`~hf_jepa.streaming.SelectiveDecoding`].
        texts (`Sequence[str]`):
            One per decoded moment.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if numbers do not fit each other, or the shift is not finite.
    """
    if len(seconds) != len(shift) or not len(shift) or not torch.isfinite(shift).all():
        raise ValueError(f"`shift` must be finite, one per window, got {len(shift)} for {len(seconds)} windows.")
    if not len(frames) == len(decoded) == len(texts) or not all(0 <= place < len(shift) for place in decoded):
        raise ValueError(
            f"Each decoded window needs a frame and a text, got {len(decoded)} windows, {len(frames)} frames and "
            f"{len(texts)} texts."
        )
    pixels = check_images(frames)
    columns = len(pixels)
    width = max(6.0, 1.55 * columns)
    cell = width / columns * pixels.shape[1] / pixels.shape[2]
    figure = new_figure(width, cell + 2.9)
    above, below = figure.subfigures(2, 1, height_ratios=[cell + 0.7, 2.2])
    for number, (axis, picture, text) in enumerate(zip(image_axes(above, 1, columns)[0], pixels, texts, strict=True)):
        draw_image(axis, picture)
        axis.set_title(f"{number + 1}", fontsize=FONT_SIZE, color=PALETTE[1], fontweight="bold")
        axis.set_xlabel(_wrapped(text, 20), fontsize=FONT_SIZE - 1, color=INK)
    axis = below.subplots()
    axis.plot(seconds, shift.tolist(), color=PALETTE[0], linewidth=1.4)
    for start in list(starts)[1:]:
        axis.axvline(seconds[start], color="#999999", linewidth=0.8, linestyle="--")
    high = max(float(shift.max()), 1e-6)
    for number, place in enumerate(decoded):
        axis.plot(seconds[place], float(shift[place]), "o", color=PALETTE[1], markersize=5)
        axis.annotate(
            f"{number + 1}",
            (seconds[place], float(shift[place]) + 0.05 * high),
            ha="center",
            fontsize=FONT_SIZE,
            color=PALETTE[1],
            fontweight="bold",
        )
    axis.set_ylim(0, 1.2 * high)
    axis.set_xlabel("seconds; dots are decoded, dashes begin segments", fontsize=FONT_SIZE, color=INK)
    axis.set_ylabel("1 - cosine with\nwhat was before", fontsize=FONT_SIZE, color=INK)
    axis.tick_params(labelsize=FONT_SIZE - 1, colors=INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return save_figure(figure, path)


def plot_ranked_texts(
    images: Tensor, texts: Sequence[Sequence[str]], right: Sequence[str], path: str | os.PathLike, num_columns: int = 8
) -> Path:
    """
    Draw images with the texts that a model ranks first; green where the first is right, otherwise the right one stands
    below.

    Args:
        images (`torch.Tensor` of shape `(n, C, H, W)`):
            Pixels, uint8 or float.
        texts (`Sequence[Sequence[str]]`):
            Per image, best first.
        right (`Sequence[str]`):
            The right text of each.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        num_columns (`int`, defaults to 8):
            Images in a row.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if numbers do not fit each other, or an image has no text.
    """
    if not len(images) == len(texts) == len(right) or not all(len(ranked) for ranked in texts):
        raise ValueError(f"Got {len(images)} images, {len(texts)} rankings and {len(right)} right texts.")
    pixels = check_images(images)
    columns = min(num_columns, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    lines = max(len(ranked) for ranked in texts) + 1
    figure = new_figure(1.6 * columns, (1.0 + 0.27 * lines) * rows)
    axes = image_axes(figure, rows, columns)
    for number, axis in enumerate(axes.flat):
        if number >= len(pixels):
            axis.set_visible(False)
            continue
        draw_image(axis, pixels[number])
        hit = texts[number][0] == right[number]
        label = [_wrapped(text, 24, lines=1) for text in texts[number]]
        if not hit:
            label.append(f"({_wrapped(right[number], 22, lines=1)})")
        axis.set_xlabel("\n".join(label), fontsize=FONT_SIZE - 2, color=PALETTE[2] if hit else INK)
    return save_figure(figure, path)


def _wrapped(text: str, width: int, lines: int = 3) -> str:
    import textwrap

    parts = textwrap.wrap(text, width, max_lines=lines, placeholder="...")
    return "\n".join(parts)
