"""Pictures of joint-embedding training: the views of an image, and what the features find alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ._figure import FONT_SIZE, INK, check_images, draw_image, image_axes, new_figure, save_figure

_CELL = 1.2  # inches


def plot_views(views: Sequence[Tensor], path: str | os.PathLike, max_images: int = 6) -> Path:
    """
    Draw the views of images: one row per image, global views first.

    Args:
        views (`Sequence` of `torch.Tensor` of shape `(B, V, C, H, W)`):
            Global views and, if there are any, local views; normalised pixels are stretched for display.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        max_images (`int`, defaults to 6):
            Images drawn.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape does not fit.
    """
    if not len(views) or any(part.ndim != 5 or len(part) != len(views[0]) for part in views):
        shapes = [tuple(part.shape) for part in views]
        raise ValueError(f"`views` must hold (B, V, C, H, W) tensors of one batch, got {shapes}.")
    columns = []
    for part, name in zip(views, ("global", "local"), strict=False):
        for index in range(part.shape[1]):
            columns.append((f"{name} {index + 1}", check_images(part[:max_images, index], "views")))
    num_rows = min(max_images, len(views[0]))
    figure = new_figure(_CELL * len(columns) + 0.3, _CELL * num_rows + 0.3)
    axes = image_axes(figure, num_rows, len(columns))
    for number, (title, images) in enumerate(columns):
        axes[0, number].set_title(title, fontsize=FONT_SIZE, color=INK)
        for row in range(num_rows):
            draw_image(axes[row, number], images[row])
    return save_figure(figure, path)


def plot_neighbours(
    images: Tensor, features: Tensor, path: str | os.PathLike, num_queries: int = 6, num_neighbours: int = 7
) -> Path:
    """
    Draw images beside those whose features are nearest by cosine similarity.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`):
            Pixels; normalised ones are stretched for display.
        features (`torch.Tensor` of shape `(B, D)`, float):
            One vector per image.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        num_queries (`int`, defaults to 6):
            The first images are queries.
        num_neighbours (`int`, defaults to 7):
            Neighbours drawn, the query itself left out.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape does not fit or a feature is not finite.
    """
    pixels = check_images(images)
    if features.ndim != 2 or len(features) != len(pixels) or len(pixels) < 2:
        raise ValueError(
            f"`features` must have shape ({len(pixels)}, D) for at least two images, got {tuple(features.shape)}."
        )
    if not torch.isfinite(features).all():
        raise ValueError("`features` holds NaN or infinite values.")
    directions = F.normalize(features.detach().cpu().float(), dim=1)
    num_queries = min(num_queries, len(pixels))
    similarity = directions[:num_queries] @ directions.T
    similarity[torch.arange(num_queries), torch.arange(num_queries)] = -torch.inf
    nearest = similarity.topk(min(num_neighbours, len(pixels) - 1), dim=1).indices
    titles = ["image", *(f"nearest {index + 1}" for index in range(nearest.shape[1]))]
    figure = new_figure(_CELL * len(titles) + 0.3, _CELL * num_queries + 0.3)
    axes = image_axes(figure, num_queries, len(titles))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=FONT_SIZE, color=INK)
    for index, row in enumerate(axes):
        for axis, shown in zip(row, [index, *nearest[index].tolist()], strict=True):
            draw_image(axis, pixels[shown])
    return save_figure(figure, path)
