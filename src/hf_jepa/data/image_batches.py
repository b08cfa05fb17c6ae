"""
What a method's batches of images are made of: transforms and collators for a model, with the settings that a recipe
may change.
"""

import contextlib
from functools import partial
from typing import Any

import torch
from PIL import Image

from ..masking import BlockwiseMaskGenerator, MultiBlockMaskGenerator
from .collators import MaskCollator, MultiViewCollator
from .model_sizes import Pair, Statistics, input_size, statistics
from .transforms import ImageTransform, train_transform
from .views import MultiViewTransform, ViewAugmentation

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
        views(num_local_views, local_image_size, (0.05, 0.3)),
        **statistics(model, image_mean, image_std),
    )


def view_collator(model: Any, *, seed: int = 0) -> MultiViewCollator:
    """Views are made by the transform; nothing is left to draw."""
    return MultiViewCollator()
