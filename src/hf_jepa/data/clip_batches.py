"""
What the batches of V-JEPA, V-JEPA 2 and V-JEPA 2.1 are made of: transform, clip sampler and collator for a model, with
the settings that a recipe may change.
"""

from collections.abc import Sequence
from typing import Any

from ..masking import IMAGE_BLOCKS, MultiBlock3DMaskGenerator, TubeMaskGenerator
from .clip_sampling import ClipSampler
from .model_sizes import Pair, Statistics, input_size, statistics
from .video_collator import VideoMaskCollator
from .video_transforms import VideoTransform, video_train_transform


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
