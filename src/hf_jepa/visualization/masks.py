"""Pictures over single images and patches: masks, and the hidden-part retrieval of the demo."""

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
    check_images,
    check_mask,
    draw_image,
    image_axes,
    new_figure,
    outline,
    patch_map,
    save_figure,
    show_only,
)

_CELL = 1.35  # inches
_CORRECT = "#009E73"


def plot_masks(
    images: Tensor,
    context_mask: Sequence[Tensor],
    target_mask: Sequence[Tensor],
    grid_size: int | tuple[int, int],
    path: str | os.PathLike,
    max_images: int = 6,
) -> Path:
    """
    Draw what the context encoder sees and what the predictor is asked for: a row per image, with the image, the
    visible context, and every target block outlined in a colour of its own.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`):
            Pixels, uint8 or float, with one or three channels; normalised pixels are stretched for display.
        context_mask, target_mask (`Sequence[torch.Tensor]` of shape `(B, K)`, int64):
            Patch indices in row-major order, as `IJepaForPreTraining.forward` takes them.
        grid_size (`int` or `tuple[int, int]`):
            Patch rows and columns of the image.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        max_images (`int`, defaults to 6):
            Rows drawn, from the start of the batch.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape, an index or the grid does not fit the images.
    """
    pixels = check_images(images)
    grid = check_grid(grid_size, pixels)
    if isinstance(context_mask, Tensor) or isinstance(target_mask, Tensor) or not context_mask or not target_mask:
        raise ValueError("`context_mask` and `target_mask` must be non-empty lists of (B, K) index tensors.")
    num_images, height, width = pixels.shape[:3]
    num_patches = grid[0] * grid[1]
    contexts = [check_mask(m, num_images, num_patches, f"context_mask[{i}]") for i, m in enumerate(context_mask)]
    targets = [check_mask(m, num_images, num_patches, f"target_mask[{i}]") for i, m in enumerate(target_mask)]

    titles = ["image", *_numbered("context", len(contexts)), *_numbered("target", len(targets))]
    num_rows = min(max_images, num_images)
    figure = new_figure(_CELL * len(titles), _CELL * num_rows * height / width + 0.3)
    axes = image_axes(figure, num_rows, len(titles))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=FONT_SIZE, color=INK)
    for index, row in enumerate(axes):
        image = pixels[index]
        draw_image(row[0], image)
        for axis, mask in zip(row[1:], contexts, strict=False):
            draw_image(axis, show_only(image, patch_map(mask[index], grid)))
        for number, mask in enumerate(targets):
            axis, selected = row[1 + len(contexts) + number], patch_map(mask[index], grid)
            draw_image(axis, show_only(image, selected, fade=0.75))
            outline(axis, selected, (height, width), PALETTE[number % len(PALETTE)])
    return save_figure(figure, path)


def plot_retrieval(
    images: Tensor,
    query: Tensor,
    retrieved: Tensor,
    target_mask: Tensor,
    grid_size: int | tuple[int, int],
    path: str | os.PathLike,
    context_mask: Tensor | None = None,
    rank: Tensor | None = None,
) -> Path:
    """
    Draw hidden-part retrieval: per query the image with the hidden block cut out, the true block, and the blocks that
    were ranked nearest to the prediction, best first; the correct one is framed in green.

    Args:
        images (`torch.Tensor` of shape `(n, C, H, W)`):
            The candidates, the queries' own images among them: uint8 or float pixels, one or three channels.
        query (`torch.Tensor` of shape `(Q,)`, int64):
            Index into `images` of every query.
        retrieved (`torch.Tensor` of shape `(Q, R)`, int64):
            Indices into `images` of the blocks found, nearest first. A block is correct when it is the query's own.
        target_mask (`torch.Tensor` of shape `(Q, K)`, int64):
            Patch indices of the hidden block of every query; candidates show the block at the same place.
        grid_size (`int` or `tuple[int, int]`):
            Patch rows and columns of the image.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        context_mask (`torch.Tensor` of shape `(Q, Kc)`, int64, *optional*):
            The patches the model saw; everything but the hidden block by default.
        rank (`torch.Tensor` of shape `(Q,)`, int64, *optional*):
            Place of the true block among all candidates, from 1; written beside the row.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape, an index or the grid does not fit the images.
    """
    pixels = check_images(images)
    grid = check_grid(grid_size, pixels)
    num_images, height, width = pixels.shape[:3]
    if not isinstance(query, Tensor) or query.ndim != 1 or not len(query):
        raise ValueError(f"`query` must be a non-empty 1-D tensor of image indices, got {query!r}.")
    query = check_mask(query.unsqueeze(1), len(query), num_images, "query").squeeze(1)
    retrieved = check_mask(retrieved, len(query), num_images, "retrieved")
    target_mask = check_mask(target_mask, len(query), grid[0] * grid[1], "target_mask")
    if context_mask is not None:
        context_mask = check_mask(context_mask, len(query), grid[0] * grid[1], "context_mask")
    if rank is not None and tuple(rank.shape) != tuple(query.shape):
        raise ValueError(f"`rank` must have shape {tuple(query.shape)}, got {tuple(rank.shape)}.")

    titles = ["model sees", "true block", *(f"found {i + 1}" for i in range(retrieved.shape[1]))]
    figure = new_figure(_CELL * len(titles) + 0.3, _CELL * len(query) * height / width + 0.3)
    axes = image_axes(figure, len(query), len(titles))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=FONT_SIZE, color=INK)
    for index, row in enumerate(axes):
        image, block = pixels[query[index]], patch_map(target_mask[index], grid)
        visible = ~block if context_mask is None else patch_map(context_mask[index], grid)
        draw_image(row[0], show_only(image, visible))
        outline(row[0], block, (height, width), PALETTE[1], linewidth=1.6)
        draw_image(row[1], show_only(image, block, fade=0.8))
        outline(row[1], block, (height, width), PALETTE[1], linewidth=1.6)
        for axis, found in zip(row[2:], retrieved[index].tolist(), strict=True):
            draw_image(axis, show_only(pixels[found], block, fade=0.8))
            if found == int(query[index]):
                for spine in axis.spines.values():
                    spine.set(color=_CORRECT, linewidth=3.5)
        if rank is not None:
            row[0].set_ylabel(f"rank {int(rank[index])}", fontsize=FONT_SIZE, color=INK)
    return save_figure(figure, path)


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name} {i + 1}" for i in range(count)]
