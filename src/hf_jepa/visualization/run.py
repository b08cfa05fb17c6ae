"""Pictures of a checkpoint on given images or videos: what `hf-jepa visualize` draws."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..file_errors import naming

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMAGE_KINDS = ("pca", "masks", "similarity")
VIDEO_KINDS = ("pca", "masks", "surprise")


def visualize(
    repo: str,
    files: Sequence[Path],
    kind: str = "pca",
    output: Path | None = None,
    *,
    num_frames: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    subfolder: str = "",
    imagenet_statistics: bool = False,
) -> Path:
    """
    Draws what a model makes of images, or a video model of videos.

    Args:
        repo (`str`): repository or folder of the model.
        files (`Sequence` of `Path`): images, or videos for a video model.
        kind (`str`): `"pca"`: principal components of the features, over time for videos. `"masks"`: what is visible
            and what is asked, `"similarity"`: predicted against target features of images, `"surprise"`: the energy
            over time of at most 4 videos. All but `"pca"` need a pretraining model.
        output (`Path`, *optional*): the picture; defaults to `KIND.png`.
        num_frames (`int`, *optional*): of a clip, spread over the whole video; defaults to the model's.
        seed (`int`): of the masks.
        revision (`str`, *optional*), subfolder (`str`): of the model in its repository.
        imagenet_statistics (`bool`): normalise images with ImageNet's statistics instead of the processor's.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if the model, a file or the kind does not fit.
    """
    from ..encoders import is_video_encoder
    from ..evaluation import load_encoder
    from ..modeling_jepa import JepaPreTrainedModel

    model = load_encoder(repo, revision, subfolder)
    is_video = is_video_encoder(model)
    kinds = VIDEO_KINDS if is_video else IMAGE_KINDS
    if kind not in kinds:
        raise ValueError(
            f"--kind {kind} is not for {'video' if is_video else 'image'} models such as {type(model).__name__}; "
            f"choose {', '.join(kinds)}."
        )
    if kind != "pca" and not isinstance(model, JepaPreTrainedModel):
        raise ValueError(
            f"--kind {kind} needs the whole model, and {repo} holds a {type(model).__name__}: "
            "pass --subfolder pretraining, or the folder of a training checkpoint."
        )
    output = output or Path(f"{kind}.png")
    if is_video:
        return _draw_videos(model, _read_clips(repo, model, files, num_frames, revision), kind, output, seed)
    return _draw_images(model, _read_images(repo, model, files, revision, imagenet_statistics), kind, output, seed)


def _patch_size(model: PreTrainedModel) -> tuple[int, int]:
    size = getattr(model.config, "encoder_config", model.config).patch_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _read_images(
    repo: str, model: PreTrainedModel, files: Sequence[Path], revision: str | None, imagenet_statistics: bool
) -> torch.Tensor:
    from ..data import decode_image
    from ..evaluation import load_image_transform

    transform = load_image_transform(repo, model, revision, imagenet_statistics)
    images = []
    for path in files:
        with naming(path):
            images.append(transform(decode_image(str(path))))
    return torch.stack(images)


def _draw_images(model: PreTrainedModel, pixels: torch.Tensor, kind: str, output: Path, seed: int) -> Path:
    from ..evaluation import pooled_features
    from ..masking import BlockwiseMaskGenerator, MultiBlockMaskGenerator, visible_indices
    from ..models.data2vec_vision import Data2VecVisionForPreTraining
    from ..objectives.distances import normalize_targets
    from ..token_layouts import token_grid
    from . import plot_feature_pca, plot_masks, plot_prediction_similarity

    size = tuple(pixels.shape[-2:])
    if kind == "pca":
        features = pooled_features(model, pixels, "none")
        return plot_feature_pca(pixels, features, token_grid(features.shape[1], *size, type(model).__name__), output)
    if "context_mask" not in inspect.signature(model.forward).parameters and not isinstance(
        model, Data2VecVisionForPreTraining
    ):
        raise ValueError(f"--kind {kind} is for models that predict masked patches, not for {type(model).__name__}.")
    patch = _patch_size(model)
    grid = (size[0] // patch[0], size[1] // patch[1])
    # A picture wants blocks on any grid; the default of 10 tokens at least is for training.
    min_keep = min(10, grid[0] * grid[1] // 16)
    generator = MultiBlockMaskGenerator(size, patch, min_keep=min_keep, mode="balanced", seed=seed)
    context_mask, target_mask = generator(len(pixels))
    replaces_tokens = isinstance(model, Data2VecVisionForPreTraining)
    if kind == "masks":
        if replaces_tokens:
            blockwise = BlockwiseMaskGenerator(size, patch, min_block=max(1, min_keep), mode="balanced", seed=seed)
            target_mask = blockwise(len(pixels))
            context_mask = [visible_indices(target_mask[0], grid[0] * grid[1])]
        return plot_masks(pixels, context_mask, target_mask, grid, output)
    with torch.no_grad():
        if replaces_tokens:
            predicted, targets = model(pixels, target_mask[:1]).predictions[0], model.target_features(pixels)
        else:
            predicted = model(pixels, context_mask, target_mask).predictions[0]
            targets = normalize_targets(model.get_features(pixels))
    return plot_prediction_similarity(pixels, predicted, targets, target_mask[0], grid, output)


def _read_clips(
    repo: str, model: PreTrainedModel, files: Sequence[Path], num_frames: int | None, revision: str | None
) -> torch.Tensor:
    """One clip of each video, `(batch, frames, channels, height, width)`, its frames spread over the whole video."""
    import numpy as np
    from transformers import AutoVideoProcessor

    from ..data import open_video
    from ..parts import load_auto

    try:
        processor = load_auto(AutoVideoProcessor, repo, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"{repo!r} has no usable video processor: {error}") from error
    config = getattr(model.config, "encoder_config", model.config)
    frames = num_frames or getattr(config, "frames_per_clip", None) or getattr(config, "num_frames", 16)
    clips = []
    for path in files:
        with open_video(path) as video:
            indices = np.linspace(0, video.info().num_frames - 1, frames).round().astype(np.int64)
            clips.append(processor(video.frames(indices), return_tensors="pt")["pixel_values_videos"][0])
    return torch.stack(clips)


def _draw_videos(model: PreTrainedModel, clips: torch.Tensor, kind: str, output: Path, seed: int) -> Path:
    from ..evaluation import pooled_features
    from ..masking import LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator
    from ..token_layouts import clip_grid
    from . import plot_clip_masks, plot_surprise, plot_video_pca

    if kind == "surprise":
        return plot_surprise(clips, model.energy(clips, per_time_step=True), output)
    if kind == "pca":
        features = pooled_features(model, clips, "none")
        grid = clip_grid(model.config, features.shape[1], clips, type(model).__name__)
        return plot_video_pca(clips, features, grid, output)
    frames, config = clips.shape[1], getattr(model.config, "encoder_config", model.config)
    patch = _patch_size(model)
    grid = (max(1, frames // config.tubelet_size), clips.shape[3] // patch[0], clips.shape[4] // patch[1])
    masks = [
        MultiBlock3DMaskGenerator(
            tuple(clips.shape[3:]), patch, frames, config.tubelet_size, **recipe, mode="balanced", seed=seed
        )(len(clips))
        for recipe in (SHORT_RANGE, LONG_RANGE)
    ]
    context_mask, target_mask = zip(*masks, strict=True)
    return plot_clip_masks(clips[0], context_mask, target_mask, grid, output)
