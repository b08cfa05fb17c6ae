"""Tokens of clips from any encoder: of videos, or of images one by one."""

import torch
from transformers import PreTrainedModel

from ..modeling_jepa import JepaPreTrainedModel

# CLS tokens stand before the patches; no in-tree video model has more than this.
_MAX_PREFIX_TOKENS = 4


def is_video_encoder(model: PreTrainedModel) -> bool:
    """Whether a model takes clips: V-JEPA in-tree or ours, VideoMAE, ViViT, TimeSformer."""
    return model.main_input_name == "pixel_values_videos" or hasattr(model.config, "num_frames")


def clip_tokens(model: PreTrainedModel, clips: torch.Tensor) -> torch.Tensor:
    """
    Patch tokens that a video encoder makes of clips.

    Args:
        model (`PreTrainedModel`): a video encoder, a model with a head (its backbone is used), or a
            [`~hf_jepa.modeling_jepa.JepaPreTrainedModel`] (its target encoder is used).
        clips (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): on the model's device.

    Returns:
        `torch.FloatTensor` of shape `(batch, tokens, width)`, in the model's order; CLS tokens are left out.

    Raises:
        ValueError: If the clips have another size than an in-tree V-JEPA 2 was configured for, which it would not
            notice.
    """
    if isinstance(model, JepaPreTrainedModel):
        return model.get_features(clips)
    backbone, config = model.base_model, model.config
    if config.model_type == "vjepa2" and tuple(clips.shape[-2:]) != (config.crop_size, config.crop_size):
        raise ValueError(
            f"In-tree V-JEPA 2 takes positions from its crop_size={config.crop_size} and would get those of "
            f"{clips.shape[-2]}x{clips.shape[-1]} pixels wrong: load the folder with hf_jepa.VJepaModel."
        )
    if model.main_input_name == "pixel_values_videos":
        return backbone.get_vision_features(clips)
    tokens = backbone(clips).last_hidden_state
    # Without patches in the config (ViViT) they are those of the tubelet.
    patch_size = getattr(config, "patch_size", None) or config.tubelet_size[-2:]
    patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    prefix = tokens.shape[1] % ((clips.shape[-2] // patch[0]) * (clips.shape[-1] // patch[1]))
    return tokens[:, prefix:] if prefix <= _MAX_PREFIX_TOKENS else tokens


def split_clips(clips: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """
    Clips of a batch one by one.

    Args:
        clips (`torch.Tensor` of shape `(batch, frames, channels, height, width)`, `(batch, segments, frames, ...)` or
            `(batch, segments, views, frames, ...)`).

    Returns:
        `tuple`: clips of shape `(batch * segments * views, frames, channels, height, width)`, segments, views.

    Raises:
        ValueError: For another number of dimensions.
    """
    if not 5 <= clips.ndim <= 7:
        raise ValueError(
            "Clips must have shape (batch, frames, channels, height, width), (batch, segments, frames, ...) or "
            f"(batch, segments, views, frames, ...), got {tuple(clips.shape)}."
        )
    segments = clips.shape[1] if clips.ndim >= 6 else 1
    views = clips.shape[2] if clips.ndim == 7 else 1
    return clips.reshape(-1, *clips.shape[-4:]), segments, views


def join_clips(tokens: torch.Tensor, segments: int, views: int) -> torch.Tensor:
    """
    Tokens of [`split_clips`]' clips by row: those of all segments of a view in one sequence (V-JEPA, released
    evaluation).

    Args:
        tokens (`torch.Tensor` of shape `(batch * segments * views, tokens, width)`).
        segments (`int`): of a row.
        views (`int`): of a segment.

    Returns:
        `torch.Tensor` of shape `(batch, views, segments * tokens, width)`.
    """
    return tokens.unflatten(0, (-1, segments, views)).transpose(1, 2).flatten(2, 3)
