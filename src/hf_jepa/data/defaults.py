"""Plain `datasets` rows for [`JepaTrainer`]: the transform and the collator of a model's method, as they are."""

from collections.abc import Callable
from typing import Any

from ..methods import method_of_model
from .clip_batches import clip_sampler
from .dataset import SeededImageDataset
from .model_sizes import input_size, statistics
from .processing import processor_transform
from .streams import SeededImageStream, SeededVideoStream
from .video_dataset import SeededVideoDataset
from .video_transforms import video_eval_transform


def is_plain(dataset: Any) -> bool:
    """Whether rows of a `datasets` dataset still hold images or videos, which nothing prepares."""
    import datasets

    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        return False
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom":
        return False
    names = dataset.column_names or list(next(iter(dataset), {}))
    return not {"pixel_values", "pixel_values_videos"} & set(names)


def media_column(dataset: Any) -> str:
    """
    The column of images or videos of a `datasets` dataset.

    Raises:
        ValueError: for none, or several.
    """
    import datasets

    features = dataset.features or {}
    found = [name for name, kind in features.items() if isinstance(kind, datasets.Image | datasets.Video)]
    names = list(features) or dataset.column_names or list(next(iter(dataset), {}))
    found = found or [name for name in ("image", "video") if name in names]
    if len(found) != 1:
        raise ValueError(
            f"A dataset of images or videos needs one column of them, {'several are' if found else 'none is'} here: "
            f"{', '.join(found or names)}. Choose with `select_columns`, or pass a SeededImageDataset."
        )
    return found[0]


def label_column(dataset: Any) -> str:
    """
    The column of classes of a `datasets` dataset.

    Raises:
        ValueError: for none.
    """
    import datasets

    names = [name for name, kind in (dataset.features or {}).items() if isinstance(kind, datasets.ClassLabel)]
    names += [name for name in ("label", "labels") if name in (dataset.column_names or ())]
    if not names:
        raise ValueError(f"Probes need a column of labels; this dataset has {', '.join(dataset.column_names or ())}.")
    return names[0]


def has_defaults(model: Any) -> bool:
    """Whether a model is of a method whose batches are made of images or clips."""
    method = method_of_model(model)
    return method is not None and method.batches in ("masks", "views", "clips")


def default_collator(model: Any, seed: int = 0) -> Callable:
    """
    The collator of a model's method, with its default settings.

    Raises:
        ValueError: for a model of no method, or one that has none.
    """
    method = method_of_model(model)
    if method is None:
        raise ValueError(
            f"{type(model).__name__} is of no known method, so that JepaTrainer needs a `data_collator`, such as "
            "MaskCollator(MultiBlockMaskGenerator(image_size=..., patch_size=...)); or add it: `register_method`."
        )
    return method.load("collator")(model, seed=seed)


def training_samples(model: Any, dataset: Any, processor: Any = None, seed: int = 0) -> Any:
    """
    A plain `datasets` dataset of images or videos, map-style or streaming, as samples of the default transform of the
    model's method; anything else as it is.

    Args:
        model (`PreTrainedModel`): whose size and channels the samples get.
        dataset (`Any`): the rows.
        processor (*optional*): whose statistics the samples get.
        seed (`int`): of the transforms.

    Raises:
        ValueError: for a model of no method, or columns that do not fit.
    """
    if not is_plain(dataset):
        return dataset
    method = method_of_model(model)
    if method is None:
        raise ValueError(f"{type(model).__name__} is of no known method: pass samples, such as a SeededImageDataset.")
    options = {name: getattr(processor, name, None) for name in ("image_mean", "image_std")}
    transform = method.load("transform")(model, **options)
    return _seeded(model, dataset, transform, None, seed)


def labelled_samples(model: Any, dataset: Any, processor: Any) -> Any:
    """As [`training_samples`], through the processor and with labels, for probes; of a dict, each of its datasets."""
    if isinstance(dataset, dict):
        return {name: labelled_samples(model, part, processor) for name, part in dataset.items()}
    if not is_plain(dataset):
        return dataset
    if method_of_model(model).batches == "clips":
        chosen = statistics(model, getattr(processor, "image_mean", None), getattr(processor, "image_std", None))
        transform = video_eval_transform(input_size(model), **chosen)
    else:
        transform = processor_transform(processor)
    return _seeded(model, dataset, transform, label_column(dataset), 0)


def _seeded(model: Any, dataset: Any, transform: Any, label: str | None, seed: int) -> Any:
    import datasets

    column, is_stream = media_column(dataset), isinstance(dataset, datasets.IterableDataset)
    if method_of_model(model).batches != "clips":
        kind = SeededImageStream if is_stream else SeededImageDataset
        return kind(dataset, transform, column, label, seed=seed)
    kind = SeededVideoStream if is_stream else SeededVideoDataset
    sampler = clip_sampler(model.config.encoder_config.frames_per_clip, random_start=label is None)
    return kind(dataset, sampler, transform, column, label, seed=seed)
