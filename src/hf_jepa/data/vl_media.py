"""Images and clips of any kind as frames."""

from typing import Any

import numpy as np
import torch

from .decoding import decode_image
from .video_decoding import open_video


def as_images(given: Any) -> list[Any]:
    """One image, a list of them, or an array with a batch dimension, as a list."""
    if given is None:
        return []
    if isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) == 4:
        return list(given)
    return [given]


def as_clips(given: Any) -> list[Any]:
    """One clip (also as a list of frames), a list of them, or an array with a batch dimension, as a list."""
    if given is None:
        return []
    if isinstance(given, (list, tuple)):
        frames = given and all(hasattr(part, "convert") or getattr(part, "ndim", 0) == 3 for part in given)
        return [given] if frames else list(given)
    return list(given) if getattr(given, "ndim", 0) == 5 else [given]


def read_image(image: Any, place: int = 0) -> torch.Tensor:
    """
    Args:
        image: PIL, a `(H, W, 3)` or `(H, W)` uint8 array, a `(3, H, W)` uint8 tensor, a path, bytes, or a cell of a
            `datasets` image column.
        place (`int`): its number, for the message.

    Returns:
        `torch.Tensor` of shape `(3, H, W)`, uint8.

    Raises:
        `ValueError`: naming what cannot be read.
    """
    if isinstance(image, torch.Tensor):
        return _checked(image[None], f"Image {place}")[0]
    try:
        pixels = np.array(decode_image(str(image) if hasattr(image, "__fspath__") else image).convert("RGB"))
    except (ValueError, OSError, TypeError) as error:
        raise ValueError(f"Image {place} cannot be read: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_clip(video: Any, num_frames: int | None, place: int = 0) -> torch.Tensor:
    """
    Frames spread evenly over a video: the middles of `num_frames` equal parts of it. A video with fewer frames repeats
    some.

    Args:
        video: a `(frames, H, W, 3)` uint8 array, a `(frames, 3, H, W)` uint8 tensor, a list of images, a path, bytes,
            or a cell of a `datasets` video column.
        num_frames (`int`, *optional*): `None` for all.
        place (`int`): its number, for the message.

    Returns:
        `torch.Tensor` of shape `(num_frames, 3, H, W)`, uint8.

    Raises:
        `ValueError`: naming what cannot be read, or has no frames.
    """
    name = f"Video {place}"
    if isinstance(video, np.ndarray):
        if video.ndim != 4 or video.shape[3] != 3 or video.dtype != np.uint8:
            raise ValueError(f"{name} must be uint8 (frames, H, W, 3), got {video.dtype} of shape {video.shape}.")
        video = torch.from_numpy(video).permute(0, 3, 1, 2)
    if isinstance(video, torch.Tensor):
        return _checked(video, name)[even_indices(len(video), num_frames)]
    if isinstance(video, (list, tuple)):
        if not len(video):
            raise ValueError(f"{name} has no frames.")
        frames = [read_image(video[index], index) for index in even_indices(len(video), num_frames)]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError(f"{name} has frames of different sizes: {sorted({tuple(f.shape[1:]) for f in frames})}.")
        return torch.stack(frames)
    try:
        with open_video(video) as reader:
            return reader.frames(even_indices(reader.num_frames, num_frames))
    except (ValueError, OSError, TypeError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def even_indices(length: int, num_frames: int | None) -> list[int]:
    """Numbers of `num_frames` frames in the middles of equal parts of a video of `length` frames; all for `None`."""
    if num_frames is None:
        return list(range(length))
    return [(2 * number + 1) * length // (2 * num_frames) for number in range(num_frames)]


def _checked(clip: torch.Tensor, name: str) -> torch.Tensor:
    if clip.ndim != 4 or clip.shape[1] != 3 or clip.dtype != torch.uint8 or not len(clip):
        shape = tuple(clip.shape)
        raise ValueError(f"{name} must be a uint8 tensor (frames, 3, H, W) with frames, got {clip.dtype} of {shape}.")
    return clip
