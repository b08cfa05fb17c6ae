"""Pictures of patch features: principal components as colours, and where a prediction looks right."""

from __future__ import annotations

import math
import os
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
    check_mask,
    draw_image,
    image_axes,
    new_figure,
    outline,
    patch_map,
    save_figure,
)

_CELL = 1.45  # inches


def pca_colors(features: Tensor) -> Tensor:
    """
    The first three principal components of all tokens of a batch as colours.

    The components are those of the centred tokens of the whole batch, so that equal colours mean similar features in
    any image; each is stretched from its 1st to its 99th percentile, with the sign that makes its largest loading
    positive.

    Args:
        features (`torch.Tensor` of shape `(B, N, D)`, float):
            Patch features, D >= 3.

    Returns:
        `torch.Tensor` of shape `(B, N, 3)`, float32, in [0, 1]; mid-grey throughout if all tokens are equal.

    Raises:
        ValueError: if the shape does not fit or a value is not finite.
    """
    if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[-1] < 3 or not features.numel():
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"`features` must have shape (B, N, D) with D >= 3, got {shape}.")
    features = check_features(features, len(features), None, "features").double()
    tokens = features.flatten(0, 1)
    tokens = tokens - tokens.mean(0)
    _, axes = torch.linalg.eigh(tokens.T @ tokens)
    axes = axes[:, -3:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    scores = tokens @ (axes * largest.sign())
    low, high = scores.quantile(torch.tensor([0.01, 0.99], dtype=scores.dtype), dim=0)
    # A direction without variance carries only rounding noise, which stretching would turn into colour.
    spread = high - low
    noise = 1e-6 * features.abs().amax()
    scaled = torch.where(spread > noise, (scores - low) / spread.clamp_min(1e-30), torch.full_like(scores, 0.5))
    return scaled.clamp(0, 1).float().view(*features.shape[:2], 3)


def plot_feature_pca(
    images: Tensor,
    features: Tensor,
    grid_size: int | tuple[int, int],
    path: str | os.PathLike,
    max_images: int = 12,
) -> Path:
    """
    Draw every image beside its patch features, whose first three principal components over the batch are shown as red,
    green and blue.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`):
            Pixels, uint8 or float, with one or three channels; normalised pixels are stretched for display.
        features (`torch.Tensor` of shape `(B, N, D)`, float):
            Patch features in row-major order, N = rows x columns.
        grid_size (`int` or `tuple[int, int]`):
            Patch rows and columns of the image.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        max_images (`int`, defaults to 12):
            Images drawn, from the start of the batch; the components are those of the whole batch.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape or the grid does not fit the images, or a feature is not finite.
    """
    pixels = check_images(images)
    grid = check_grid(grid_size, pixels)
    features = check_features(features, len(pixels), grid[0] * grid[1], "features")
    maps = pca_colors(features).view(len(pixels), *grid, 3)
    num_images = min(max_images, len(pixels))
    pairs = min(3, num_images)
    num_rows = math.ceil(num_images / pairs)
    height, width = pixels.shape[1:3]
    figure = new_figure(_CELL * 2 * pairs, _CELL * num_rows * height / width + 0.3)
    axes = image_axes(figure, num_rows, 2 * pairs)
    for number, axis in enumerate(axes.flat):
        if number < 2 * pairs:
            axis.set_title(("image", "features")[number % 2], fontsize=FONT_SIZE, color=INK)
        index = number // 2
        if index >= num_images:
            axis.set_visible(False)
        else:
            draw_image(
                axis,
                maps[index].repeat_interleave(height // grid[0], 0).repeat_interleave(width // grid[1], 1)
                if number % 2
                else pixels[index],
            )
    return save_figure(figure, path)


def plot_prediction_similarity(
    images: Tensor,
    predicted: Tensor,
    target_features: Tensor,
    target_mask: Tensor,
    grid_size: int | tuple[int, int],
    path: str | os.PathLike,
    max_images: int = 12,
) -> Path:
    """
    Draw where in an image the prediction for a hidden block looks right: beside the image, the cosine similarity of
    the mean predicted token with the target features of every patch; the true block is outlined in both.

    The batch mean of the target features is taken from both sides first: what all patches of all images share says
    nothing about a place.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`):
            Pixels, uint8 or float, with one or three channels; normalised pixels are stretched for display.
        predicted (`torch.Tensor` of shape `(B, K, D)`, float):
            Predicted features of one target block, as in `JepaOutput.predictions`.
        target_features (`torch.Tensor` of shape `(B, N, D)`, float):
            Target features of all patches, in the space the loss compares in.
        target_mask (`torch.Tensor` of shape `(B, K)`, int64):
            Patch indices of that block.
        grid_size (`int` or `tuple[int, int]`):
            Patch rows and columns of the image.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        max_images (`int`, defaults to 12):
            Images drawn, from the start of the batch.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if a shape, an index or the grid does not fit the images, or a feature is not finite.
    """
    pixels = check_images(images)
    grid = check_grid(grid_size, pixels)
    target_features = check_features(target_features, len(pixels), grid[0] * grid[1], "target_features")
    target_mask = check_mask(target_mask, len(pixels), grid[0] * grid[1], "target_mask")
    predicted = check_features(predicted, len(pixels), target_mask.shape[1], "predicted")
    if predicted.shape[-1] != target_features.shape[-1]:
        raise ValueError(
            f"`predicted` has {predicted.shape[-1]} features per token and `target_features` "
            f"{target_features.shape[-1]}: they must be in the same space."
        )
    shared = target_features.mean(dim=(0, 1))
    guess = (predicted.mean(1, keepdim=True) - shared).expand_as(target_features)
    similarity = torch.cosine_similarity(guess, target_features - shared, dim=-1).view(len(pixels), *grid)
    limit = max(float(similarity.abs().max()), 1e-3)

    num_images = min(max_images, len(pixels))
    pairs = min(3, num_images)
    num_rows = math.ceil(num_images / pairs)
    height, width = pixels.shape[1:3]
    figure = new_figure(_CELL * 2 * pairs + 0.8, _CELL * num_rows * height / width + 0.3)
    axes = image_axes(figure, num_rows, 2 * pairs)
    for number, axis in enumerate(axes.flat):
        if number < 2 * pairs:
            axis.set_title(("image", "similarity")[number % 2], fontsize=FONT_SIZE, color=INK)
        index = number // 2
        if index >= num_images:
            axis.set_visible(False)
            continue
        if number % 2:
            heat = axis.imshow(
                similarity[index].numpy(), extent=(0, width, height, 0), cmap="RdBu_r", vmin=-limit, vmax=limit
            )
        else:
            draw_image(axis, pixels[index])
        color = "#111111" if number % 2 else PALETTE[4]
        outline(axis, patch_map(target_mask[index], grid), (height, width), color)
    bar = figure.colorbar(heat, ax=axes, shrink=0.7, aspect=25, pad=0.02)
    bar.set_label("cosine similarity with the prediction", fontsize=FONT_SIZE, color=INK)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1, colors=INK)
    bar.outline.set_visible(False)
    return save_figure(figure, path)
