"""
What a method's batches are made of: transforms and collators for a model, with the settings that a recipe may change.
The programs build from a recipe with these; [`JepaTrainer`] uses them as they are for a plain `datasets` dataset.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image

from ..masking import (
    IMAGE_BLOCKS,
    BlockwiseMaskGenerator,
    MultiBlock3DMaskGenerator,
    MultiBlockMaskGenerator,
    TubeMaskGenerator,
)
from ..methods import method_of_model
from .clip_sampling import ClipSampler
from .collators import MaskCollator, MultiViewCollator
from .dataset import SeededImageDataset, SeededImageStream
from .processing import processor_transform
from .transforms import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, train_transform
from .video_collator import VideoMaskCollator
from .video_dataset import SeededVideoDataset
from .video_transforms import VideoTransform, video_eval_transform, video_train_transform
from .views import MultiViewTransform, ViewAugmentation

Pair = Sequence[float]
Statistics = Sequence[float] | None


def input_size(model: Any) -> int | tuple[int, int]:
    """Side of the images or frames that a model is trained at, in pixels; `(height, width)` if not square."""
    for config in (model.config, getattr(model.config, "encoder_config", None)):
        for name in ("trained_size", "image_size", "crop_size"):
            if (size := getattr(config, name, None)) is not None:
                return size if isinstance(size, int) or size[0] != size[1] else size[0]
    raise ValueError(f"{type(model).__name__} does not say the size of its images; pass `data_collator` and samples.")


def num_channels(model: Any) -> int:
    """Channels of the images that a model was built for; 3 if it does not say."""
    config = getattr(model.config, "encoder_config", None) or model.config
    found = (getattr(config, name, None) for name in ("num_channels", "in_chans"))
    return next((count for count in found if count), 3)


def statistics(model: Any, image_mean: Statistics, image_std: Statistics) -> dict[str, Sequence[float]]:
    """Mean and deviation per channel; of RGB images ImageNet's where none are given, of others 0.5."""
    count = num_channels(model)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if count == 3 else ((0.5,) * count, (0.5,) * count)
    return {"mean": mean if image_mean is None else image_mean, "std": std if image_std is None else image_std}


# ---- Masks: I-JEPA, C-JEPA ----


def crop_transform(
    model: Any,
    *,
    crop_scale: Pair = (0.3, 1.0),
    horizontal_flip: bool = False,
    image_mean: Statistics = None,
    image_std: Statistics = None,
) -> ImageTransform:
    """One random crop per image."""
    chosen = statistics(model, image_mean, image_std)
    return train_transform(input_size(model), crop_scale=tuple(crop_scale), hflip=horizontal_flip, **chosen)


def multiblock_collator(
    model: Any,
    *,
    seed: int = 0,
    context_scale: Pair = (0.85, 1.0),
    target_scale: Pair = (0.15, 0.2),
    target_aspect_ratio: Pair = (0.75, 1.5),
    num_target_masks: int = 4,
    min_keep: int | None = None,
    mask_mode: str = "balanced",
) -> MaskCollator:
    """Multi-block masks for the model's grid; `min_keep` is by default the published 10, or what a small grid has."""
    options = {
        "context_scale": tuple(context_scale),
        "target_scale": tuple(target_scale),
        "target_aspect_ratio": tuple(target_aspect_ratio),
        "num_target_masks": num_target_masks,
        "mode": mask_mode,
        "seed": seed,
    }
    shape = input_size(model), model.config.encoder_config.patch_size
    for fewer in range(10, 0, -1) if min_keep is None else ():
        with contextlib.suppress(ValueError):
            return MaskCollator(MultiBlockMaskGenerator(*shape, min_keep=fewer, **options))
    return MaskCollator(MultiBlockMaskGenerator(*shape, min_keep=min_keep or 0, **options))


# ---- Block-wise masks: data2vec ----


def single_view(image: Image.Image, views: MultiViewTransform) -> torch.Tensor:
    """The only view that `views` makes of an image."""
    return views(image)["pixel_values"][0]


def jittered_crop_transform(
    model: Any,
    *,
    crop_scale: Pair = (0.3, 1.0),
    horizontal_flip: bool = False,
    color_jitter: Pair = (0.4, 0.4, 0.2, 0.1),
    color_jitter_probability: float = 0.8,
    image_mean: Statistics = None,
    image_std: Statistics = None,
) -> ImageTransform:
    """One bicubic crop per image, jittered and mirrored (the released code jitters before it crops)."""
    view = ViewAugmentation(
        input_size(model),
        crop_scale=tuple(crop_scale),
        color_jitter=tuple(color_jitter),
        color_jitter_probability=color_jitter_probability,
        grayscale_probability=0.0,
        blur_probability=0.0,
        flip_probability=0.5 * horizontal_flip,
        bicubic=True,
    )
    views = MultiViewTransform([view], [], **statistics(model, image_mean, image_std))
    transform = partial(single_view, views=views)
    transform.draws_from_torch_only = True
    return transform


def blockwise_collator(
    model: Any, *, seed: int = 0, num_masked: int | None = None, min_block: int = 16, mask_mode: str = "balanced"
) -> MaskCollator:
    """Block-wise masks for the model's grid."""
    generator = BlockwiseMaskGenerator(
        input_size(model),
        model.config.encoder_config.patch_size,
        num_masked=num_masked,
        min_block=min_block,
        mode=mask_mode,
        seed=seed,
    )
    return MaskCollator(generator)


# ---- Views: LeJEPA, Rectified LpJEPA, VICReg, SimSiam ----


def view_transform(
    model: Any,
    *,
    num_views: int = 2,
    num_local_views: int = 0,
    local_image_size: int = 96,
    crop_scale: Pair = (0.3, 1.0),
    local_crop_scale: Pair = (0.05, 0.3),
    color_jitter: Pair = (0.4, 0.4, 0.2, 0.1),
    color_jitter_probability: float = 0.8,
    grayscale_probability: float = 0.2,
    blur_probability: Pair = (0.5,),
    blur_kernel_size: int | None = None,
    solarize_probability: Pair = (0.0,),
    horizontal_flip: bool = False,
    bicubic: bool = False,
    image_mean: Statistics = None,
    image_std: Statistics = None,
) -> MultiViewTransform:
    """Global and local views of an image."""

    def nth(values: Pair, index: int, name: str) -> float:
        if len(values) not in (1, num_views):
            raise ValueError(f"`{name}` has {len(values)} values; give one, or one per view ({num_views}).")
        return values[min(index, len(values) - 1)]

    def views(count: int, size: int | tuple[int, int], scale: Pair) -> list[ViewAugmentation]:
        return [
            ViewAugmentation(
                size,
                crop_scale=tuple(scale),
                color_jitter=tuple(color_jitter),
                color_jitter_probability=color_jitter_probability,
                grayscale_probability=grayscale_probability,
                blur_probability=nth(blur_probability, index, "blur_probability"),
                blur_kernel_size=blur_kernel_size,
                solarize_probability=nth(solarize_probability, index, "solarize_probability"),
                flip_probability=0.5 * horizontal_flip,
                bicubic=bicubic,
            )
            for index in range(count)
        ]

    return MultiViewTransform(
        views(num_views, input_size(model), crop_scale),
        views(num_local_views, local_image_size, local_crop_scale),
        **statistics(model, image_mean, image_std),
    )


def view_collator(model: Any, *, seed: int = 0) -> MultiViewCollator:
    """Views are made by the transform; nothing is left to draw."""
    return MultiViewCollator()


# ---- Clips: V-JEPA, V-JEPA 2, V-JEPA 2.1 ----


def clip_transform(
    model: Any,
    *,
    crop_scale: Pair = (0.3, 1.0),
    crop_ratio: Pair = (0.75, 1.35),
    horizontal_flip: bool = True,
    image_mean: Statistics = None,
    image_std: Statistics = None,
) -> VideoTransform:
    """One random crop per clip."""
    chosen = statistics(model, image_mean, image_std)
    return video_train_transform(input_size(model), tuple(crop_scale), tuple(crop_ratio), horizontal_flip, **chosen)


def clip_sampler(
    num_frames: int, fps: int | None = None, frame_step: int | None = None, **options: Any
) -> ClipSampler:
    """How clips are taken; of one frame, which needs no rate, and at V-JEPA 2's rate if none is given."""
    if num_frames == 1:
        return ClipSampler(1, frame_step=1, **options)
    return ClipSampler(num_frames, frame_step, fps if fps or frame_step else 4, **options)


def clip_collator(
    model: Any,
    *,
    seed: int = 0,
    num_frames: Sequence[int] | None = None,
    num_blocks: Sequence[int] = (8, 2),
    spatial_scale: Pair = (0.15, 0.7),
    temporal_scale: Pair = (1.0,),
    max_temporal_keep: Pair = (1.0,),
    full_complement: bool = False,
    pred_full_complement: bool = False,
    tube_ratio: float | None = None,
    mask_mode: str = "balanced",
) -> VideoMaskCollator:
    """The mask recipes for every clip length (by default the model's). Still images have V-JEPA 2.1's recipe."""
    config = model.config.encoder_config

    def generators(frames: int) -> list[MultiBlock3DMaskGenerator | TubeMaskGenerator]:
        shape = {"image_size": input_size(model), "patch_size": config.patch_size, "mode": mask_mode, "seed": seed}
        if frames == 1:
            return [MultiBlock3DMaskGenerator(**shape, **IMAGE_BLOCKS)]
        shape |= {"num_frames": frames, "tubelet_size": config.tubelet_size}
        if tube_ratio is not None:
            return [TubeMaskGenerator(**shape, ratio=tube_ratio)]
        columns = [
            one_for_each(values, len(num_blocks), name)
            for name, values in (
                ("spatial_scale", spatial_scale),
                ("temporal_scale", temporal_scale),
                ("max_temporal_keep", max_temporal_keep),
            )
        ]
        return [
            MultiBlock3DMaskGenerator(
                **shape,
                num_blocks=blocks,
                spatial_scale=(area, area),
                temporal_scale=(length, length),
                max_temporal_keep=keep,
                full_complement=full_complement,
                pred_full_complement=pred_full_complement,
            )
            for blocks, area, length, keep in zip(num_blocks, *columns, strict=True)
        ]

    lengths = sorted(set(num_frames or [config.frames_per_clip]), reverse=True)
    by_length = {frames: generators(frames) for frames in lengths}
    return VideoMaskCollator(by_length if len(by_length) > 1 else next(iter(by_length.values())))


def one_for_each(values: Sequence | None, count: int, name: str) -> list:
    """A recipe's list with one entry per dataset or mask; a single one, or none, counts for all."""
    values = [None] if values is None else list(values)
    if len(values) not in (1, count):
        raise ValueError(f"`{name}` has {len(values)} entries for {count}; give one, or one for each.")
    return values * (count // len(values))


# ---- Plain datasets ----


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
        ValueError: for a model of no method, columns that do not fit, or streamed videos.
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
    if is_stream:
        raise ValueError("Streamed videos cannot be sampled here; load the dataset without `streaming=True`.")
    sampler = clip_sampler(model.config.encoder_config.frames_per_clip, random_start=label is None)
    return SeededVideoDataset(dataset, sampler, transform, column, label, seed=seed)
