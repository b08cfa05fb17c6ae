"""What every picture shares: figures without global state, image conversion, argument checks, patch outlines."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's palette: distinguishable with colour-blind eyes and in grey print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F5F5F", "#B8A800")
INK = "#333333"
# Bluish, because grey would read as part of a grey-scale photo.
HIDDEN = (0.78, 0.84, 0.92)
FONT_SIZE = 9


def check_matplotlib() -> None:
    """`ImportError` without matplotlib: for whoever draws after long work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("Pictures need matplotlib, which is not installed: `pip install 'hf-jepa[viz]'`.")


def new_figure(width: float, height: float, layout: str = "compressed") -> Figure:
    """A figure bound to the Agg canvas: no display, and no pyplot state shared with the caller's own plots."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write `figure` to `path` (the suffix names the format), making its folder; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def image_axes(figure: Figure, num_rows: int, num_columns: int) -> np.ndarray:
    """A `(num_rows, num_columns)` array of axes without ticks, framed by a hairline."""
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set(color="#BBBBBB", linewidth=0.6)
    return axes


def check_images(images: Tensor, name: str = "images") -> Tensor:
    """
    `(B, C, H, W)` pixels with one or three channels as `(B, H, W, 3)` float32 in [0, 1].

    uint8 is divided by 255, floats already inside [0, 1] are kept, and anything else (normalised pixels) is stretched
    image by image, which undoes a mean/std normalisation up to contrast.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"`{name}` must be a non-empty (B, C, H, W) tensor with C = 1 or 3, got {shape}.")
    pixels = images.detach().cpu().float()
    if not torch.isfinite(pixels).all():
        raise ValueError(f"`{name}` holds NaN or infinite pixels.")
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    elif pixels.min() < 0 or pixels.max() > 1:
        low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
        pixels = (pixels - low) / (high - low).clamp_min(1e-6)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()


def check_grid(grid_size: int | tuple[int, int], images: Tensor) -> tuple[int, int]:
    """`grid_size` as (rows, columns), which must divide the height and width of `images` `(B, H, W, 3)`."""
    rows, columns = (grid_size, grid_size) if isinstance(grid_size, int) else tuple(grid_size)
    height, width = images.shape[1:3]
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(
            f"`grid_size` {(rows, columns)} does not divide images of {height} x {width} pixels: "
            "pass the number of patch rows and columns."
        )
    return rows, columns


def check_mask(mask: Tensor, batch_size: int, num_patches: int, name: str) -> Tensor:
    """A `(B, K)` integer tensor of patch indices in [0, num_patches), on the CPU as int64."""
    integral = isinstance(mask, Tensor) and not mask.is_floating_point() and mask.dtype != torch.bool
    if not integral or mask.ndim != 2 or mask.shape[0] != batch_size or mask.shape[1] == 0:
        shape = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"`{name}` must be integer patch indices of shape ({batch_size}, K), got {shape}.")
    mask = mask.detach().cpu().long()
    if mask.min() < 0 or mask.max() >= num_patches:
        raise ValueError(
            f"`{name}` holds indices from {int(mask.min())} to {int(mask.max())}, outside the {num_patches} patches "
            "of the grid."
        )
    return mask


def check_features(features: Tensor, batch_size: int, num_tokens: int | None, name: str) -> Tensor:
    """A finite `(B, N, D)` tensor as float32 on the CPU."""
    valid = isinstance(features, Tensor) and features.ndim == 3 and features.shape[0] == batch_size
    if not valid or (num_tokens is not None and features.shape[1] != num_tokens):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"`{name}` must have shape ({batch_size}, {num_tokens or 'N'}, D), got {shape}.")
    features = features.detach().cpu().float()
    if not torch.isfinite(features).all():
        raise ValueError(f"`{name}` holds NaN or infinite values.")
    return features


def patch_map(indices: Tensor, grid: tuple[int, int]) -> Tensor:
    """`(rows, columns)` bool map, true at the patches `indices` `(K,)` names in row-major order."""
    selected = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    selected[indices] = True
    return selected.view(grid)


def show_only(image: Tensor, selected: Tensor, fade: float = 1.0) -> Tensor:
    """
    `image` `(H, W, 3)` with the patches outside the bool map `selected` `(rows, columns)` replaced by a pale blue.

    `fade` below 1 mixes that colour with the image instead, so that what surrounds the patches stays recognisable.
    """
    height, width = image.shape[:2]
    pixels = selected.repeat_interleave(height // selected.shape[0], 0)
    pixels = pixels.repeat_interleave(width // selected.shape[1], 1).unsqueeze(-1)
    return torch.where(pixels, image, image + fade * (image.new_tensor(HIDDEN) - image))


def draw_image(axis: Axes, image: Tensor) -> None:
    """Show `(H, W, 3)` pixels in pixel coordinates with the origin at the upper left corner."""
    height, width = image.shape[:2]
    # Small images are enlarged a lot: anything but nearest would blur where a patch ends.
    axis.imshow(image.clamp(0, 1).numpy(), extent=(0, width, height, 0), interpolation="nearest")


def outline(axis: Axes, selected: Tensor, image_size: tuple[int, int], color: str, linewidth: float = 2.0) -> None:
    """Draw the border of the bool map `selected` `(rows, columns)` over an image of (height, width) pixels."""
    from matplotlib.collections import LineCollection

    dy, dx = image_size[0] / selected.shape[0], image_size[1] / selected.shape[1]
    padded = torch.nn.functional.pad(selected, (1, 1, 1, 1))
    below = (padded[1:, 1:-1] != padded[:-1, 1:-1]).nonzero().tolist()
    beside = (padded[1:-1, 1:] != padded[1:-1, :-1]).nonzero().tolist()
    segments = [[(col * dx, row * dy), ((col + 1) * dx, row * dy)] for row, col in below]
    segments += [[(col * dx, row * dy), (col * dx, (row + 1) * dy)] for row, col in beside]
    lines = LineCollection(segments, colors=color, linewidths=linewidth, capstyle="projecting", clip_on=False)
    axis.add_collection(lines, autolim=False)
