"""Seeded samples of streams."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers.utils import logging

from .dataset import TooManyBadImagesError, prepare, sample_of
from .decoding import decode_image
from .transforms import ImageTransform

logger = logging.get_logger(__name__)


class SeededImageStream(IterableDataset):
    """
    Images of a streaming `datasets` dataset, with the samples, conversions and guards of [`SeededImageDataset`].

    A sample's `draw` counts the images that this worker has yielded, times the number of workers and processes, plus
    its own number among them: no two share it, and samples repeat exactly for the same number of both. A stream is
    split over processes by `datasets.distributed.split_dataset_by_node`. Unusable images are skipped. `state_dict` and
    `load_state_dict` (of `torchdata`'s stateful loaders, or called directly when the loader has no workers) resume the
    stream, shuffled or not, without decoding what was seen.

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
        import datasets

        if not isinstance(dataset, datasets.IterableDataset):
            raise ValueError(f"dataset must be a datasets.IterableDataset, got {type(dataset).__name__}.")
        if not 0 <= max_bad_fraction < 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1), got {max_bad_fraction}.")
        self.dataset = prepare(dataset, image_column, label_column)
        self.transform = transform
        self.image_column = image_column
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
            state_dict (`dict`): What [`~SeededImageStream.state_dict`] gave.
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
            try:
                image = decode_image(row[self.image_column])
            except Exception as error:
                self._count_bad(row[self.image_column], self._num_seen, error)
                continue
            draw = (self._yielded * num_workers + worker_id) * world_size + rank
            self._yielded += 1
            label = row[self.label_column] if self.label_column else None
            yield sample_of(image, label, draw, self.seed, self.transform)

    def _count_bad(self, value: Any, num_seen: int, error: Exception) -> None:
        self.num_bad += 1
        path = value.get("path") if isinstance(value, dict) else None
        name = path or f"image {num_seen} of the stream"
        logger.warning(f"Unusable image, skipped: {name}: {error}")
        if self.num_bad > self.max_bad_fraction * max(num_seen, 1000):
            raise TooManyBadImagesError(
                f"{self.num_bad} of the first {num_seen} images cannot be used, more than max_bad_fraction="
                f"{self.max_bad_fraction:g} allows; the last was {name}: {error}."
            ) from error
