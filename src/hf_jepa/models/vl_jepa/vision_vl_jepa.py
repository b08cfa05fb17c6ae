"""Visual tokens of images and clips from any vision encoder, as VL-JEPA's predictor reads them."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...encoders import clip_tokens, is_video_encoder, patch_tokens, run_encoder


def vision_width(encoder: PreTrainedModel) -> int:
    """
    Width of an encoder's patch tokens.

    Raises:
        `ValueError`: if its config does not tell.
    """
    if hasattr(encoder, "timm_model"):
        return encoder.timm_model.num_features
    config = encoder.config
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if width is None:
        raise ValueError(
            f"The config of {type(encoder).__name__} names no `hidden_size`; set `vision_hidden_size` to the width of "
            "its patch tokens. (Of a model with two towers, pass the vision tower.)"
        )
    return width


def without_unused_parts(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder, changed in place: V-JEPA's predictor, which nothing here reads, goes."""
    if encoder.config.model_type in ("vjepa", "vjepa2"):
        encoder.predictor = None
    return encoder


def encode_frames(
    encoder: PreTrainedModel,
    pixel_values: torch.Tensor | None = None,
    pixel_values_videos: torch.Tensor | None = None,
    image_num_frames: int | None = None,
) -> torch.Tensor:
    """
    Visual tokens of either images or clips. A video encoder gets an image as a clip of equal frames (VL-JEPA §3.1);
    an image encoder gets the frames of a clip one by one, and their tokens follow each other in time.

    Args:
        encoder (`PreTrainedModel`): any vision encoder of images or clips.
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`, *optional*).
        pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`, *optional*).
        image_num_frames (`int`, *optional*): frames that an image is repeated to.

    Returns:
        `torch.FloatTensor` of shape `(batch, tokens, width)`.

    Raises:
        `ValueError`: for both or neither, another number of dimensions, or an encoder that gives no tokens.
    """
    given = {"pixel_values": (pixel_values, 4), "pixel_values_videos": (pixel_values_videos, 5)}
    given = {name: entry for name, entry in given.items() if entry[0] is not None}
    if len(given) != 1:
        raise ValueError(f"Pass either `pixel_values` or `pixel_values_videos`, got {sorted(given) or 'neither'}.")
    ((name, (pixels, dimensions)),) = given.items()
    if pixels.ndim != dimensions:
        raise ValueError(f"`{name}` must have {dimensions} dimensions, got shape {tuple(pixels.shape)}.")
    if is_video_encoder(encoder):
        if pixel_values is not None:
            frames = image_num_frames or _shortest_clip(encoder.config)
            pixels = pixels[:, None].expand(-1, frames, -1, -1, -1)
        return clip_tokens(encoder, pixels)
    frames = pixels if pixel_values is not None else pixels.flatten(0, 1)
    outputs = run_encoder(encoder, frames)
    states = getattr(outputs, "last_hidden_state", None)
    if states is None:
        raise ValueError(f"{type(encoder).__name__} gives no last_hidden_state: load the vision encoder by AutoModel.")
    tokens = patch_tokens(encoder, states, frames)
    return tokens if pixel_values is not None else tokens.unflatten(0, pixels.shape[:2]).flatten(1, 2)


def _shortest_clip(config: PreTrainedConfig) -> int:
    """Encoders with a table of positions take their own number of frames; elsewhere one tubelet will do."""
    if getattr(config, "use_image_tokenizer", False):
        return 1
    return getattr(config, "num_frames", None) or getattr(config, "tubelet_size", 1)
