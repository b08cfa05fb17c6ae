"""Which frames of a video make its clips, index for index as the released V-JEPA and V-JEPA 2 data loaders choose."""

import math
from dataclasses import dataclass

import numpy as np


def frame_step_for_fps(video_fps: float, fps: int) -> int:
    """
    Frames between two frames of a clip at about `fps` (V-JEPA 2, released code): `ceil(video_fps) // fps`.

    Args:
        video_fps (`float`): average frames per second of the video.
        fps (`int`): frames per second of the clip.

    Returns:
        `int`: at least 1: a slower video than asked for is taken as it is, where the released code divides by zero.
    """
    return max(math.ceil(video_fps) // fps, 1)


def clip_indices(
    video_length: int,
    num_frames: int,
    frame_step: int,
    num_clips: int = 1,
    allow_overlap: bool = False,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """
    Frames of `num_clips` clips of a video (V-JEPA and V-JEPA 2, released code).

    The video is cut into `num_clips` equal parts, and from each comes a window of `num_frames * frame_step` frames.
    Its `num_frames` indices are spread over the whole window, last frame included, so they lie a little farther apart
    than `frame_step`: `[0, 4, 8, 12, ...]` is `[0, 4, 8, 12, 17, ...]` for 16 frames with a step of 4. A part that is
    no longer than the window gives what it has, `frame_step` apart or a little more, and its last frame repeated.

    Args:
        video_length (`int`): frames of the video.
        num_frames (`int`): frames of a clip.
        frame_step (`int`): frames between two frames of a clip, about.
        num_clips (`int`): parts the video is cut into.
        allow_overlap (`bool`): where the parts are too short, let windows reach into the next part instead of
            repeating frames; evaluation does so.
        generator (`np.random.Generator`, *optional*): draws where in its part each window starts; otherwise all start
            with their part.

    Returns:
        `np.ndarray` of shape `(num_clips, num_frames)`, int64, each row ascending.

    Raises:
        ValueError: if a number is below 1.
    """
    if min(video_length, num_frames, frame_step, num_clips) < 1:
        raise ValueError(
            "video_length, num_frames, frame_step and num_clips must be at least 1, "
            f"got {video_length}, {num_frames}, {frame_step} and {num_clips}."
        )
    window, part = num_frames * frame_step, video_length // num_clips
    firsts = part * np.arange(num_clips)[:, None]
    if part > window:
        if generator is not None:
            # A window that ends with its part is never drawn: the released code's upper bound is exclusive.
            firsts = firsts + generator.integers(part - window, size=(num_clips, 1))
        return firsts + np.linspace(0, window, num=num_frames).clip(max=window - 1).astype(np.int64)
    if not allow_overlap:
        # A video with fewer frames than clips has parts without any: they show what there is.
        return np.minimum(firsts + _padded(part, num_frames, frame_step), video_length - 1)
    available = min(window, video_length) - 1
    stride = (video_length - window) // (num_clips - 1) if video_length > window else 0
    return stride * np.arange(num_clips)[:, None] + _padded(available, num_frames, frame_step)


def _padded(length: int, num_frames: int, frame_step: int) -> np.ndarray:
    """The frames that a part of `length` frames has, `frame_step` apart, then the last one repeated."""
    last = max(length - 1, 0)
    there = np.linspace(0, length, num=length // frame_step).clip(max=last).astype(np.int64)
    return np.concatenate([there, np.full(num_frames - len(there), last)])


@dataclass(frozen=True)
class ClipSampler:
    r"""
    How clips are taken from a video; goes into [`SeededVideoDataset`]. An image is a video of one frame: its clips
    repeat it, or show it once with `num_frames=1`.

    Args:
        num_frames (`int`): frames of a clip.
        frame_step (`int`, *optional*): frames between two frames of a clip (V-JEPA 1: 4).
        fps (`int`, *optional*): frames per second of the clip instead (V-JEPA 2: 4). The step is then the released
            code's `ceil(video_fps) // fps`, and videos of variable frame rate are read by their clock.
        num_clips (`int`): clips per video, each from a part of its own; several are the segments of an evaluation.
        allow_overlap (`bool`): where the parts are too short, let clips overlap instead of repeating frames.
        random_start (`bool`): draw where in its part a clip starts; otherwise it starts with its part.

    Raises:
        ValueError: for numbers below 1, and unless one of `frame_step` and `fps` is given.

    Example:

    ```python
    >>> from hf_jepa.data import ClipSampler
    >>> training = ClipSampler(num_frames=16, fps=4)
    >>> evaluation = ClipSampler(num_frames=16, frame_step=4, num_clips=8, allow_overlap=True, random_start=False)
    ```
    """

    num_frames: int = 16
    frame_step: int | None = None
    fps: int | None = None
    num_clips: int = 1
    allow_overlap: bool = False
    random_start: bool = True

    def __post_init__(self) -> None:
        if (self.frame_step is None) == (self.fps is None):
            raise ValueError(f"Give one of frame_step and fps, got {self.frame_step} and {self.fps}.")
        for name in ("num_frames", "frame_step", "fps", "num_clips"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def indices(self, video_length: int, video_fps: float, generator: np.random.Generator | None = None) -> np.ndarray:
        """
        Args:
            video_length (`int`): frames of the video.
            video_fps (`float`): its average frames per second.
            generator (`np.random.Generator`, *optional*): for the starts; not needed without `random_start`.

        Returns:
            `np.ndarray` of shape `(num_clips, num_frames)`, int64.

        Raises:
            ValueError: with `random_start` and no generator.
        """
        if self.random_start and generator is None:
            raise ValueError("random_start needs a generator; pass one, or set random_start=False.")
        step = self.frame_step or frame_step_for_fps(video_fps, self.fps)
        generator = generator if self.random_start else None
        return clip_indices(video_length, self.num_frames, step, self.num_clips, self.allow_overlap, generator)
