from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.utils import logging

from .decoding import decode_image
from .seeding import forked_rng, mix_seed
from .transforms import ImageTransform, draws_from_torch_only

logger = logging.get_logger(__name__)


class TooManyBadImagesError(RuntimeError):
    """More images of a dataset cannot be used than `max_bad_fraction` allows."""


def prepare(dataset: Any, column: str, label_column: str | None, argument: str = "image_column") -> Any:
    """Keeps the named columns and turns decoding off, so that a broken file cannot raise inside `datasets`."""
    from datasets import Image as ImageFeature
    from datasets import Video as VideoFeature

    check_columns(dataset, column, label_column, argument)
    columns = [column] if label_column is None else [column, label_column]
    dataset = dataset.select_columns(columns)
    feature = (dataset.features or {}).get(column)
    if isinstance(feature, (ImageFeature, VideoFeature)):
        dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


class MissingLabelsError(ValueError):
    """A dataset without the column of labels that was asked for."""


def check_columns(dataset: Any, column: str, label_column: str | None, argument: str = "image_column") -> None:
    """
    Checks that a `datasets` dataset has the named columns.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The dataset.
        column (`str`): Column of images or videos.
        label_column (`str`, *optional*): Column of integer labels.
        argument (`str`): What the user calls `column`, for the message.

    Raises:
        ValueError: If a column is missing (the message lists the columns there are), the one of labels by
            [`MissingLabelsError`], or the labels are not integers.
    """
    names = dataset.column_names
    if names is None:
        names = list(next(iter(dataset), {}))
    for name, value, error in ((argument, column, ValueError), ("label_column", label_column, MissingLabelsError)):
        if value is not None and value not in names:
            hint = "name yours."
            if error is MissingLabelsError:
                hint = "name yours, or put the files into two or more folders, one per class, which become labels."
            raise error(f"{name}={value!r} is not a column of this dataset, which has {sorted(names)}: {hint}")
    feature = (dataset.features or {}).get(label_column)
    if not getattr(feature, "dtype", "int64").startswith(("int", "uint", "bool")):
        raise ValueError(
            f"label_column={label_column!r} holds {feature.dtype}, not integers: "
            f"apply dataset.class_encode_column({label_column!r}) first, or write whole numbers or names to the file."
        )


class ImageSamples:
    """What the seeded datasets and streams of images share: how a row is decoded, and what sample it makes."""

    kind = "image"
    too_many_error = TooManyBadImagesError
    transform: ImageTransform
    seed: int

    def _load(self, index: int, value: Any, draw: int) -> Image.Image:
        """Decodes the cell of a row, or raises."""
        return decode_image(value)

    def _sample(self, loaded: Image.Image, label: Any, draw: int) -> dict[str, Any]:
        with forked_rng(mix_seed(self.seed, draw), torch_only=draws_from_torch_only(self.transform)):
            views = self.transform(loaded)
        sample = {**(views if isinstance(views, dict) else {"pixel_values": views}), "draw": draw}
        if label is not None:
            sample["label"] = int(label)
        return sample


class SeededDataset(Dataset):
    """
    What the seeded datasets of images and of videos share: rows of a map-style `datasets` dataset by `index` or
    `(index, draw)`; what cannot be loaded is counted, named once in the log and replaced by the next usable row.

    What they hold, and which sample it makes, is mixed in: [`ImageSamples`] or `ClipSamples`.
    """

    def __init__(
        self, dataset: Any, column: str, label_column: str | None, seed: int, max_bad_fraction: float
    ) -> None:
        import datasets

        if not isinstance(dataset, datasets.Dataset):
            raise ValueError(
                f"dataset must be a datasets.Dataset, got {type(dataset).__name__}: take one split of a DatasetDict, "
                f"wrap a streamed one in Seeded{self.kind.capitalize()}Stream, build others with Dataset.from_dict or "
                "from_generator."
            )
        if len(dataset) == 0:
            raise ValueError("The dataset has no rows.")
        if not 0 <= max_bad_fraction < 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1), got {max_bad_fraction}.")
        prepared = prepare(dataset.with_format(None), column, label_column, f"{self.kind}_column")
        # Arrow rows come out about three times as fast as python ones.
        self.dataset = prepared.with_format("arrow")
        self.column = column
        self.label_column = label_column
        self.seed = seed
        self.max_bad_fraction = max_bad_fraction
        # In shared memory: workers see each other's finds, so each is named once and the threshold is exact.
        self._is_bad = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    @property
    def num_bad(self) -> int:
        """`int`: How many rows turned out to be unusable so far, over all workers of this process."""
        return int(self._is_bad.sum())

    def __len__(self) -> int:
        return len(self._is_bad)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[int | tuple[int, int]]) -> list[dict[str, Any]]:
        # torch's DataLoader calls this with a batch of keys: one Arrow read for all of them.
        pairs = [(key, key) if isinstance(key, int) else key for key in keys]
        rows = self._read([index for index, _ in pairs])
        samples = []
        for (index, draw), row in zip(pairs, rows, strict=True):
            loaded = self._load_or_count(index, row[0], draw)
            while loaded is None:
                index = (index + 1) % len(self)
                row = self._read([index])[0]
                loaded = self._load_or_count(index, row[0], draw)
            samples.append(self._sample(loaded, row[1], draw))
        return samples

    def _read(self, indices: list[int]) -> list[tuple[Any, Any]]:
        table = self.dataset[indices]
        cells = table.column(self.column).to_pylist()
        labels = table.column(self.label_column).to_pylist() if self.label_column else [None] * len(cells)
        return list(zip(cells, labels, strict=True))

    def _load_or_count(self, index: int, value: Any, draw: int) -> Any | None:
        # Tried every time, known or not: another clip of the same video may be whole, and a sample that depended on
        # which draws came before would not be the same after a resume.
        try:
            return self._load(index, value, draw)
        except ImportError:
            raise
        except Exception as error:  # PIL, zlib, struct, FFmpeg, ...: each has errors of its own for hostile bytes
            path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
            name = f"row {index}" + (f" ({path})" if path else "")
            if not self._is_bad.numpy()[index]:
                self._is_bad[index] = True
                logger.warning(f"Unusable {self.kind} in {name}: {error}. The next usable row takes its place.")
            if self.num_bad > self.max_bad_fraction * len(self):
                raise self.too_many_error(
                    f"{self.num_bad} of {len(self)} {self.kind}s cannot be used, more than max_bad_fraction="
                    f"{self.max_bad_fraction:g} allows; the last was {name}: {error}. "
                    "Clean the dataset or raise max_bad_fraction."
                ) from error
            return None


class SeededImageDataset(ImageSamples, SeededDataset):
    r"""
    Images of a map-style `datasets` dataset, decoded and transformed so that a sample depends on `(seed, index, draw)`
    alone: not on workers, order or the global random state, which stays untouched. This is what makes a resumed run
    equal an uninterrupted one.

    An image that cannot be used (truncated, zero bytes, not an image, 1 pixel, ...) is counted, named once in the log
    and replaced by the next usable row, label included.

    Args:
        dataset (`datasets.Dataset`): The images. Any other column is ignored.
        transform (`Callable`): PIL image (mode `"L"` or `"RGB"`) -> float32 tensor `(C, H, W)`, see
            [`train_transform`] and [`eval_transform`], or a dict of tensors, see [`MultiViewTransform`]. It may draw
            from torch's, numpy's and python's global generators.
        image_column (`str`): Column of images.
        label_column (`str`, *optional*): Column of integer labels; without it samples have no `"label"`.
        seed (`int`): Seed of the transforms.
        max_bad_fraction (`float`): Stop when more than this share of the rows turned out to be unusable.

    Raises:
        ValueError: If a column is missing, the dataset is empty or an argument is out of range.
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
        self.image_column = image_column
