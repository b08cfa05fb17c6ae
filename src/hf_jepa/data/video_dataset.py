"""Seeded datasets of clips, and mixtures of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.utils import logging

from ..masking.image import hashed_uniform
from .clip_sampling import ClipSampler
from .dataset import SeededDataset
from .seeding import forked_rng, mix_seed
from .transforms import draws_from_torch_only
from .video_decoding import open_video, video_backend
from .video_readers import StillReader, VideoDecodeError, VideoReader
from .video_transforms import VideoTransform

logger = logging.get_logger(__name__)


class TooManyBadVideosError(RuntimeError):
    """More videos of a dataset cannot be used than `max_bad_fraction` allows."""


class ClipSamples:
    """What the seeded datasets and streams of videos share: the clips of a row, and what sample they make."""

    kind = "video"
    too_many_error = TooManyBadVideosError
    seed: int
    # Of the class that it is mixed into: counts the row of an index that has fewer frames (the second) than its clip.
    _note_padded: Callable[[int, int], None]

    def _sample_clips(
        self, feature: Any, clip_sampler: ClipSampler, transform: VideoTransform, min_frames: int, backend: str | None
    ) -> None:
        """What a constructor adds; `feature` is that of the column."""
        from datasets import Image

        self._holds_images = isinstance(feature, Image)
        if not self._holds_images:
            # Asked before the run, not in its workers.
            backend or video_backend()
        self.clip_sampler = clip_sampler
        self.transform = transform
        self.min_frames = min_frames
        self.backend = backend

    def _load(self, index: int, value: Any, draw: int) -> torch.Tensor:
        """Decodes the clips of a row, `(clips, frames, 3, height, width)`, uint8, or raises."""
        with open_row(value, self._holds_images, self.backend) as video:
            clips, is_padded = read_clips(video, self.clip_sampler, self.min_frames, self.seed, draw)
            if is_padded:
                self._note_padded(index, video.num_frames)
        return clips

    def _sample(self, loaded: torch.Tensor, label: Any, draw: int) -> dict[str, Any]:
        with forked_rng(mix_seed(self.seed, draw), torch_only=draws_from_torch_only(self.transform)):
            views = [self.transform(clip) for clip in loaded]
        pixels = views[0] if len(views) == 1 and views[0].ndim == 4 else torch.stack(views)
        sample = {"pixel_values_videos": pixels, "draw": draw}
        if label is not None:
            sample["label"] = int(label)
        return sample


class SeededVideoDataset(ClipSamples, SeededDataset):
    r"""
    Clips of the videos of a map-style `datasets` dataset, sampled, decoded and transformed so that a sample depends on
    `(seed, index, draw)` alone, as in [`SeededImageDataset`]. Only the frames of the clip are decoded and kept.

    A video that cannot be used (corrupt, truncated, audio only, zero bytes, too short, ...) is counted, named once in
    the log and replaced by the next usable row, label included. Images stand for videos that do not move. A video that
    is shorter than its clip repeats frames; how many did is counted (`num_padded`) and said.

    Args:
        dataset (`datasets.Dataset`): the videos (or images), see [`load_video_dataset`]. Any other column is ignored.
        clip_sampler ([`ClipSampler`]): chooses the frames.
        transform (`Callable`): uint8 `(F, C, H, W)` -> float32 `(F, C, height, width)`, or several views of it, see
            [`video_train_transform`] and [`video_eval_transform`].
        video_column (`str`): column of videos: `Video` features, paths or bytes; or of images.
        label_column (`str`, *optional*): column of integer labels; without it samples have no `"label"`.
        seed (`int`): seed of the clips and the transforms.
        max_bad_fraction (`float`): stop when more than this share of the rows turned out to be unusable.
        min_frames (`int`): videos with fewer frames are unusable. One frame is a broken download more often than a
            still; images are exempt.
        backend (`str`, *optional*): `"torchcodec"` or `"pyav"`; by default what [`video_backend`] finds.

    Returns, for an `index` or `(index, draw)`:
        `dict` with `pixel_values_videos`, float32 `(F, C, height, width)`, or `(clips, F, C, height, width)` if the
            sampler gives several clips, or `(clips, views, F, C, height, width)` if the transform gives several views;
            `draw`; and `label`.

    Raises:
        ValueError: if a column is missing, the dataset is empty or an argument is out of range.
        ImportError: if there is no video decoder.

    Example:

    ```python
    >>> from hf_jepa.data import ClipSampler, SeededVideoDataset, load_video_dataset, video_train_transform
    >>> videos = load_video_dataset("path/to/videos", "train")
    >>> dataset = SeededVideoDataset(videos, ClipSampler(num_frames=16, fps=4), video_train_transform(256))
    >>> dataset[0]["pixel_values_videos"].shape
    torch.Size([16, 3, 256, 256])
    ```
    """

    def __init__(
        self,
        dataset: Any,
        clip_sampler: ClipSampler,
        transform: VideoTransform,
        video_column: str = "video",
        label_column: str | None = None,
        seed: int = 0,
        max_bad_fraction: float = 0.01,
        min_frames: int = 2,
        backend: str | None = None,
    ) -> None:
        super().__init__(dataset, video_column, label_column, seed, max_bad_fraction)
        self._sample_clips(self.dataset.features[video_column], clip_sampler, transform, min_frames, backend)
        self.video_column = video_column
        self._is_padded = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    @property
    def num_padded(self) -> int:
        """`int`: How many videos have shown repeated frames so far, over all workers of this process."""
        return int(self._is_padded.sum())

    def _note_padded(self, index: int, num_frames: int) -> None:
        if not self._is_padded.numpy()[index]:
            self._is_padded[index] = True
            last = f"row {index}, of {num_frames} frames"
            tell_of_padding(self.num_padded, f"of {len(self)} videos", last, self.clip_sampler)


def open_row(value: Any, is_image: bool, backend: str | None = None) -> VideoReader:
    """A reader of one cell of a column of videos, or of images."""
    return StillReader(value) if is_image else open_video(value, backend)


def read_clips(
    video: VideoReader, clip_sampler: ClipSampler, min_frames: int, seed: int, draw: int
) -> tuple[torch.Tensor, bool]:
    """
    The clips of one draw of a video.

    Args:
        video ([`VideoReader`]): open.
        clip_sampler ([`ClipSampler`]): chooses the frames.
        min_frames (`int`): fewer are an error; images are exempt.
        seed, draw (`int`): that the choice depends on.

    Returns:
        `torch.Tensor` of shape `(clips, frames, 3, height, width)`, uint8, and whether a video repeats frames in it.

    Raises:
        VideoDecodeError: for a video that is too short or cannot be decoded.
    """
    # A stream of its own: how often the transform draws must not move the clip.
    generator = np.random.Generator(np.random.PCG64(mix_seed(seed, draw, 1)))
    if video.num_frames < min_frames and not video.is_image:
        raise VideoDecodeError(f"the video has {video.num_frames} frame(s), min_frames is {min_frames}")
    indices = clip_sampler.indices(video.num_frames, video.fps, generator)
    if clip_sampler.fps is None:
        frames = video.frames(indices)
    else:
        frames = video.frames_at((indices.reshape(-1) + 0.5) / video.num_frames)
    return frames.unflatten(0, indices.shape), not video.is_image and bool((np.diff(indices) == 0).any())


def tell_of_padding(count: int, among: str, last: str, sampler: ClipSampler) -> None:
    """Logs the first, the tenth, the hundredth, ... video that repeats frames."""
    if count == 10 ** (len(str(count)) - 1):
        rate = f"a step of {sampler.frame_step}" if sampler.fps is None else f"{sampler.fps} per second"
        logger.warning(
            f"{count} {among} are too short for {sampler.num_clips} clip(s) of {sampler.num_frames} frames, {rate}, "
            f"and repeat frames; the last is {last}."
        )


class MixedVideoDataset(Dataset):
    r"""
    Several datasets as one: sources in proportion, clips of several lengths and rates, videos and images.

    Each draw decides by itself which dataset it comes from, so a mixture resumes and shards like any seeded dataset.

    Args:
        datasets (`Sequence[Dataset]`): datasets that take `(index, draw)`, such as [`SeededVideoDataset`].
        weights (`Sequence[float]`, *optional*): share of the draws that each dataset gets; its rows are then drawn
            with replacement (V-JEPA 2, released code). Without weights the datasets are put end to end, and each row
            comes once per epoch.
        seed (`int`): seed of the choices.
        block_size (`int`): consecutive draws that come from one dataset. With the batch size of a process, each of its
            batches holds clips of one length, or only images, and the processes differ (V-JEPA 2.1 splits ranks so).

    Raises:
        ValueError: for no dataset, weights that do not fit them, or blocks without weights.

    Example:

    ```python
    >>> from hf_jepa.data import MixedVideoDataset
    >>> mixture = MixedVideoDataset([videos, images], weights=[0.75, 0.25], block_size=24)
    ```
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        block_size: int = 1,
    ) -> None:
        if not len(datasets) or min(len(dataset) for dataset in datasets) == 0:
            raise ValueError("MixedVideoDataset needs at least one dataset, and none that is empty.")
        if weights is not None and (len(weights) != len(datasets) or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"weights must be {len(datasets)} non-negative numbers, not all 0, got {list(weights)}.")
        if block_size < 1 or (block_size > 1 and weights is None):
            raise ValueError(f"block_size must be at least 1, and 1 without weights, got {block_size}.")
        self.datasets = list(datasets)
        self.seed = seed
        self.block_size = block_size
        self._ends = np.cumsum([len(dataset) for dataset in datasets])
        shares = None if weights is None else np.cumsum(weights, dtype=np.float64)
        self.shares = None if shares is None else shares / shares[-1]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = (key, key) if isinstance(key, int) else key
        which, row = self.source_of(index, draw)
        return self.datasets[which][row, draw]

    def source_of(self, index: int, draw: int) -> tuple[int, int]:
        """
        Args:
            index (`int`): row of the mixture; ignored with weights.
            draw (`int`): number of the draw.

        Returns:
            `tuple[int, int]`: which dataset the sample comes from, and which of its rows.
        """
        if self.shares is None:
            which = int(np.searchsorted(self._ends, index, side="right"))
            return which, index - int(self._ends[which - 1] if which else 0)
        choice = hashed_uniform(self.seed, 0, np.array([draw // self.block_size]), 1).item()
        place = hashed_uniform(self.seed, 1, np.array([draw]), 1).item()
        which = int(np.searchsorted(self.shares, choice, side="right"))
        return which, int(place * len(self.datasets[which]))
