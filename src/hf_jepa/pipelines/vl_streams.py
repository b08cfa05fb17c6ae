"""A video as a stream: windows that slide over it, and the texts that are found along it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..data.video_decoding import open_video
from ..data.vl_media import read_clip
from ..streaming import SelectiveDecoding


@dataclass
class StreamText:
    """
    One text of a stream.

    Args:
        text (`str`).
        second (`float`): when it is made; the window's middle.
        begin (`float`), end (`float`): what it stands for, in seconds.
    """

    text: str
    second: float
    begin: float
    end: float


@dataclass
class Stream:
    """
    What [`VLJepaPipeline.stream`] found.

    Args:
        texts (`list[StreamText]`).
        decoding ([`~hf_jepa.streaming.SelectiveDecoding`]): which windows were decoded, and the shift of each.
        embeds (`torch.FloatTensor` of shape `(windows, projection_dim)`): normalised.
        seconds (`torch.FloatTensor` of shape `(windows,)`): the middle of each window.
    """

    texts: list[StreamText]
    decoding: SelectiveDecoding
    embeds: torch.FloatTensor
    seconds: torch.FloatTensor


def video_windows(video: Any, window: int, stride: int, batch_size: int) -> Iterator[tuple[list[float], list[Any]]]:
    """
    Windows that slide over a video, in batches. Frames are read as they are needed.

    Args:
        video: one video, as [`VLJepaProcessor`] takes it; of frames without a file, a second is one frame.
        window (`int`): frames of each; a shorter video is one window.
        stride (`int`): frames from one to the next.
        batch_size (`int`): windows at a time.

    Yields:
        `tuple`: seconds of the windows' middles, and `(frames, 3, height, width)` uint8 clips.

    Raises:
        `ValueError`: for a video that cannot be read.
    """

    def starts(length: int) -> list[list[int]]:
        every = list(range(0, max(length - window, 0) + 1, stride))
        return [every[place : place + batch_size] for place in range(0, len(every), batch_size)]

    if isinstance(video, torch.Tensor) or hasattr(video, "__array__") or isinstance(video, (list, tuple)):
        frames = read_clip(video, None)
        for group in starts(len(frames)):
            clips = [frames[start : start + window] for start in group]
            yield [start + (len(clip) - 1) / 2 for start, clip in zip(group, clips, strict=True)], clips
        return
    try:
        reader = open_video(video)
    except (OSError, TypeError) as error:
        raise ValueError(f"The video cannot be read: {error}") from error
    with reader:
        length = min(window, reader.num_frames)
        for group in starts(reader.num_frames):
            # Once each, though windows overlap.
            first, last = group[0], group[-1] + length
            frames = reader.frames(list(range(first, last)))
            clips = [frames[start - first : start - first + length] for start in group]
            yield [(start + (length - 1) / 2) / (reader.fps or 1) for start in group], clips
