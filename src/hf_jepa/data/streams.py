"""Seeded samples of streams of images and of videos."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch.utils.data import IterableDataset
from transformers.utils import logging

from .clip_sampling import ClipSampler
from .dataset import TooManyBadImagesError, prepare, sample_of
from .decoding import decode_image
from .transforms import ImageTransform
from .video_dataset import TooManyBadVideosError, clip_sample, open_row, read_clips, tell_of_padding
from .video_decoding import video_backend
from .video_transforms import VideoTransform

logger = logging.get_logger(__name__)


class SeededStream(IterableDataset):
    """
    What the seeded streams of images and of videos share: samples of a streaming `datasets` dataset that depend on
    `(seed, row, draw)` alone; what cannot be loaded is counted, named in the log and skipped.

    A sample's `draw` counts the samples that this worker has yielded, times the number of workers and processes, plus
    its own number among them: no two share it, and samples repeat exactly for the same number of both. A stream is
    split over processes by `datasets.distributed.split_dataset_by_node`. `state_dict` and `load_state_dict` (of
    `torchdata`'s stateful loaders, or called directly when the loader has no workers) resume the stream, shuffled or
    not, without decoding what was seen.

    Subclasses say what they hold (`kind`), which error ends a run (`too_many_error`), how the cell of a row is loaded,
    and what sample it makes.
    """

    kind: str
    too_many_error: type[RuntimeError]

    def __init__(
        self, dataset: Any, column: str, label_column: str | None, seed: int, max_bad_fraction: float
    ) -> None:
        import datasets

        if not isinstance(dataset, datasets.IterableDataset):
            raise ValueError(f"dataset must be a datasets.IterableDataset, got {type(dataset).__name__}.")
        if not 0 <= max_bad_fraction < 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1), got {max_bad_fraction}.")
        self.dataset = prepare(dataset, column, label_column, f"{self.kind}_column")
        self.column = column
        self.label_column = label_column
        self.seed = seed
        self.max_bad_fraction = max_bad_fraction
        self.num_bad = 0
        self._yielded = self._num_seen = self._num_skipped = 0

    def _load(self, value: Any, draw: int) -> Any:
        """Decodes the cell of a row, or raises."""
        raise NotImplementedError

    def _sample(self, loaded: Any, label: Any, draw: int) -> dict[str, Any]:
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """
        Reshuffles a shuffled stream.

        Args:
            epoch (`int`): Epoch, from 0.
        """
        self.dataset.set_epoch(epoch)

    @property
    def at_start(self) -> bool:
        """`bool`: Whether the next iteration begins with the first row."""
        return self._num_skipped == 0

    def state_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: Position of the stream: plain numbers, strings and lists.
        """
        return {
            "epoch": self.dataset.epoch,
            "seen": self._num_seen,
            "yielded": self._yielded,
            "num_bad": self.num_bad,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Makes the next iteration go on where `state_dict` was taken; the one after it starts anew.

        Args:
            state_dict (`dict`): What [`~SeededStream.state_dict`] gave.
        """
        self.dataset.set_epoch(state_dict["epoch"])
        self._num_skipped = self._num_seen = state_dict["seen"]
        self._yielded, self.num_bad = state_dict["yielded"], state_dict["num_bad"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        processes = getattr(self.dataset, "_distributed", None)
        rank, world_size = (0, 1) if processes is None else (processes.rank, processes.world_size)
        # Rows are counted, not the stream's own state kept: that one loses what lies in a shuffling buffer.
        num_skipped, self._num_skipped, self._num_seen = self._num_skipped, 0, 0
        for row in self.dataset:
            self._num_seen += 1
            if self._num_seen <= num_skipped:
                continue
            draw = (self._yielded * num_workers + worker_id) * world_size + rank
            try:
                loaded = self._load(row[self.column], draw)
            except ImportError:
                raise
            except Exception as error:  # PIL, zlib, struct, FFmpeg, ...: each has errors of its own for hostile bytes
                self._count_bad(row[self.column], self._num_seen, error)
                continue
            self._yielded += 1
            yield self._sample(loaded, row[self.label_column] if self.label_column else None, draw)

    def _count_bad(self, value: Any, num_seen: int, error: Exception) -> None:
        self.num_bad += 1
        path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
        name = path or f"{self.kind} {num_seen} of the stream"
        logger.warning(f"Unusable {self.kind}, skipped: {name}: {error}")
        if self.num_bad > self.max_bad_fraction * max(num_seen, 1000):
            raise self.too_many_error(
                f"{self.num_bad} of the first {num_seen} {self.kind}s cannot be used, more than max_bad_fraction="
                f"{self.max_bad_fraction:g} allows; the last was {name}: {error}."
            ) from error


class SeededImageStream(SeededStream):
    r"""
    Images of a streaming `datasets` dataset, with the samples, conversions and guards of [`SeededImageDataset`];
    draws, splitting and resuming as in [`SeededStream`].

    Args:
        dataset (`datasets.IterableDataset`): The images; shuffle it with `dataset.shuffle(seed, buffer_size)`.
        transform (`Callable`): PIL image -> float32 tensor `(C, H, W)`.
        image_column (`str`): Column of images.
        label_column (`str`, *optional*): Column of integer labels; without it samples have no `"label"`.
        seed (`int`): Seed of the transforms.
        max_bad_fraction (`float`): Stop when more than this share of the images seen (of at least 1,000) is unusable.

    Raises:
        ValueError: If a column is missing or the dataset is not a streaming one.
    """

    kind = "image"
    too_many_error = TooManyBadImagesError

    def __init__(
        self,
        dataset: Any,
        transform: ImageTransform,
        image_column: str = "image",
        label_column: str | None = None,
        seed: int = 0,
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__(dataset, image_column, label_column, seed, max_bad_fraction)
        self.transform = transform

    def _load(self, value: Any, draw: int) -> Image.Image:
        return decode_image(value)

    def _sample(self, loaded: Image.Image, label: Any, draw: int) -> dict[str, Any]:
        return sample_of(loaded, label, draw, self.seed, self.transform)


class SeededVideoStream(SeededStream):
    r"""
    Clips of the videos of a streaming `datasets` dataset, with the samples and guards of [`SeededVideoDataset`];
    draws, splitting and resuming as in [`SeededStream`]. A video that lies elsewhere is read whole before its clip is
    decoded.

    Args:
        dataset (`datasets.IterableDataset`): the videos (or images); shuffle it with
            `dataset.shuffle(seed, buffer_size)`.
        clip_sampler, transform, label_column, seed, min_frames, backend: as of [`SeededVideoDataset`].
        video_column (`str`): column of videos: `Video` features, paths, addresses or bytes; or of images.
        max_bad_fraction (`float`): stop when more than this share of the videos seen (of at least 1,000) is unusable.

    Raises:
        ValueError: if a column is missing or the dataset is not a streaming one.
        ImportError: if there is no video decoder.
    """

    kind = "video"
    too_many_error = TooManyBadVideosError

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
        from datasets import Image as ImageFeature

        super().__init__(dataset, video_column, label_column, seed, max_bad_fraction)
        self._holds_images = isinstance((self.dataset.features or {}).get(video_column), ImageFeature)
        if not self._holds_images:
            # Asked before the run, not in its workers.
            backend or video_backend()
        self.clip_sampler = clip_sampler
        self.transform = transform
        self.min_frames = min_frames
        self.backend = backend
        self.num_padded = 0

    def _load(self, value: Any, draw: int) -> torch.Tensor:
        with open_row(value, self._holds_images, self.backend) as video:
            clips, is_padded = read_clips(video, self.clip_sampler, self.min_frames, self.seed, draw)
            if is_padded:
                self.num_padded += 1
                last = f"row {self._num_seen}, of {video.num_frames} frames"
                tell_of_padding(self.num_padded, "videos of the stream", last, self.clip_sampler)
        return clips

    def _sample(self, loaded: torch.Tensor, label: Any, draw: int) -> dict[str, Any]:
        return clip_sample(loaded, label, draw, self.seed, self.transform)
