"""Seeded samples of streams of images and of videos."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers.utils import logging

from ..file_errors import file_at_fault
from .clip_sampling import ClipSampler
from .dataset import ImageSamples, prepare
from .transforms import ImageTransform
from .video_dataset import ClipSamples, tell_of_padding
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

    What they hold, and which sample it makes, is mixed in: `ImageSamples` or `ClipSamples`. A shard that cannot be
    read to its end is a `ValueError` that names it.
    """

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
        for row in self._rows():
            self._num_seen += 1
            if self._num_seen <= num_skipped:
                continue
            draw = (self._yielded * num_workers + worker_id) * world_size + rank
            try:
                loaded = self._load(self._num_seen, row[self.column], draw)
            except ImportError:
                raise
            except Exception as error:  # PIL, zlib, struct, FFmpeg, ...: each has errors of its own for hostile bytes
                self._count_bad(row[self.column], self._num_seen, error)
                continue
            self._yielded += 1
            yield self._sample(loaded, row[self.label_column] if self.label_column else None, draw)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the stream; one that breaks off, at a shard that was cut, is named."""
        try:
            yield from self.dataset
        except Exception as error:  # tarfile, zlib, PyArrow, the network, ...
            raise ValueError(
                f"The stream of {self.kind}s broke off after {self._num_seen} rows{file_at_fault(error)}: {error}. "
                "Mend or remove what is broken; a run goes on from its newest checkpoint."
            ) from error

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


class SeededImageStream(ImageSamples, SeededStream):
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


class SeededVideoStream(ClipSamples, SeededStream):
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
        feature = (self.dataset.features or {}).get(video_column)
        self._sample_clips(feature, clip_sampler, transform, min_frames, backend)
        self.num_padded = 0

    def _note_padded(self, index: int, num_frames: int) -> None:
        self.num_padded += 1
        last = f"row {index}, of {num_frames} frames"
        tell_of_padding(self.num_padded, "videos of the stream", last, self.clip_sampler)
