"""What the outputs of any vision encoder mean: which tokens are patches, and what stands for the whole."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel, ViTModel

from .modeling_jepa import JepaPreTrainedModel, check_pixels
from .objectives.inputs import check_tensor
from .parts import build_part, dry_run, leave_out
from .positions import pair
from .predictor import read_layer
from .token_layouts import num_prefix_tokens, patch_tokens
from .world_model import WorldModelConfig

Pooling = Literal["auto", "cls", "mean", "pooler"]

# Float pixels beyond this are no normalised ones: somebody forgot to divide by 255.
_LARGEST_PIXEL = 60.0
# CLS tokens stand before the patches; no in-tree video model has more than this.
_MAX_CLIP_PREFIX_TOKENS = 4


def run_encoder(encoder: PreTrainedModel, pixel_values: torch.Tensor, **options: Any) -> Any:
    """
    The encoder's output; at another size than its config's with interpolated positions, where the encoder has that
    option. A video encoder gets an image as the shortest clip that it takes, all frames the same.

    Args:
        encoder (`PreTrainedModel`): any vision encoder, timm wrappers included.
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): in any precision.
        options: for its forward pass, such as `output_hidden_states`.

    Raises:
        `ValueError`: as [`clip_tokens`].
    """
    check_pixels(pixel_values)
    pixel_values = pixel_values.to(encoder.dtype)
    if is_video_encoder(encoder):
        clips = pixel_values[:, None].expand(-1, _shortest_clip(encoder.config), -1, -1, -1)
        _check_crop_size(encoder, clips)
        encodes_only = "skip_predictor" in inspect.signature(encoder.forward).parameters
        return encoder(clips, **({"skip_predictor": True} if encodes_only else {}))
    size = getattr(encoder.config, "image_size", None)
    resized = size is not None and tuple(pixel_values.shape[-2:]) != pair(size)
    if resized and "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters:
        options["interpolate_pos_encoding"] = True
    if encoder.config.model_type == "vit_mae":
        return _run_without_masking(encoder, pixel_values, options)
    if not hasattr(encoder, "timm_model"):
        return encoder(pixel_values, **options)
    try:
        return encoder(pixel_values, **options)
    except AssertionError as error:  # of a size that does not fit
        raise ValueError(f"The encoder takes no images of {tuple(pixel_values.shape[-2:])} pixels: {error}") from error


def cls_token(encoder: ViTModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    A ViT's CLS token after the final norm, at any size of image. The last layer computes nothing else.

    Args:
        encoder (`ViTModel`).
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).

    Returns:
        `torch.FloatTensor` of shape `(batch, width)`.
    """
    hidden_states = encoder.embeddings(pixel_values, interpolate_pos_encoding=True)
    for layer in encoder.layers[:-1]:
        hidden_states = layer(hidden_states)
    return encoder.layernorm(read_layer(encoder.layers[-1], hidden_states, slice(0, 1)))[:, 0]


def _run_without_masking(encoder: PreTrainedModel, pixel_values: torch.Tensor, options: dict[str, Any]) -> Any:
    """In-tree ViT-MAE keeps a random quarter of the patches, in random order: all of them in theirs."""
    config, patch = encoder.config, encoder.config.patch_size
    rows, columns = (side // patch for side in pixel_values.shape[-2:])
    order = torch.arange(rows * columns, device=pixel_values.device, dtype=torch.float32)
    ratio, config.mask_ratio = config.mask_ratio, 0.0
    try:
        return encoder(pixel_values, noise=order.expand(len(pixel_values), -1), **options)
    finally:
        config.mask_ratio = ratio


def is_video_encoder(model: PreTrainedModel) -> bool:
    """
    Whether a model takes clips: V-JEPA in-tree or ours, VideoMAE, ViViT, TimeSformer. A world model does not, however
    many frames it predicts from: its encoder sees them one by one.
    """
    if model.main_input_name == "pixel_values_videos":
        return True
    return hasattr(model.config, "num_frames") and not isinstance(model.config, WorldModelConfig)


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
    _check_crop_size(backbone, clips)
    if config.model_type == "vjepa2":
        # Its own get_vision_features also gathers all tokens into a copy.
        return backbone.encoder(clips).last_hidden_state
    if model.main_input_name == "pixel_values_videos":
        return backbone.get_vision_features(clips)
    tokens = backbone(clips).last_hidden_state
    # Without patches in the config (ViViT) they are those of the tubelet.
    patch_size = getattr(config, "patch_size", None) or config.tubelet_size[-2:]
    patch = pair(patch_size)
    prefix = tokens.shape[1] % ((clips.shape[-2] // patch[0]) * (clips.shape[-1] // patch[1]))
    return tokens[:, prefix:] if prefix <= _MAX_CLIP_PREFIX_TOKENS else tokens


def _check_crop_size(model: PreTrainedModel, clips: torch.Tensor) -> None:
    config = model.config
    if config.model_type == "vjepa2" and tuple(clips.shape[-2:]) != (config.crop_size, config.crop_size):
        raise ValueError(
            f"In-tree V-JEPA 2 takes positions from its crop_size={config.crop_size} and would get those of "
            f"{clips.shape[-2]}x{clips.shape[-1]} pixels wrong: load the folder with hf_jepa.VJepaModel."
        )


def join_tokens(parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rows with different numbers of tokens in one batch.

    Args:
        parts (`list` of `torch.FloatTensor` of shape `(rows, tokens, width)`): of any numbers of rows and tokens.

    Returns:
        `torch.FloatTensor` of shape `(all rows, most tokens, width)`, zero behind a row's own tokens, and their mask,
        int64 of shape `(all rows, most tokens)`, 0 there.
    """
    longest = max(part.shape[1] for part in parts)
    masks = [part.new_ones(part.shape[:2], dtype=torch.int64) for part in parts]
    masks = [F.pad(mask, (0, longest - mask.shape[1])) for mask in masks]
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts]), torch.cat(masks)


def resolve_pooling(encoder: PreTrainedModel, outputs: Any, pixel_values: torch.Tensor, pooling: Pooling) -> Pooling:
    """What `"auto"` means for an encoder, see [`pooled_output`]; any other pooling is returned as it is."""
    if pooling != "auto":
        return pooling
    states = getattr(outputs, "last_hidden_state", None)
    is_tokens = isinstance(states, torch.Tensor) and states.ndim == 3
    pooler = getattr(outputs, "pooler_output", None)
    has_pooler = isinstance(pooler, torch.Tensor) and pooler.numel() == pooler.shape[0] * pooler.shape[1]
    if has_pooler and (not is_tokens or hasattr(encoder, "timm_model")):
        return "pooler"
    return "cls" if is_tokens and num_prefix_tokens(encoder, states, pixel_values) else "mean"


def pooled_output(
    encoder: PreTrainedModel, outputs: Any, pixel_values: torch.Tensor, pooling: Pooling = "auto"
) -> torch.Tensor:
    """
    One vector per image.

    Args:
        encoder (`PreTrainedModel`): that made the outputs.
        outputs (`ModelOutput`): of [`run_encoder`].
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): that they were made of.
        pooling (`str`): `"cls"`: the first token. `"mean"`: the average over patch tokens or over the feature map.
            `"pooler"`: the encoder's own `pooler_output`. `"auto"`: the own one of timm models and of models with
            feature maps (a spatial mean, with the last norm where the model has one), the average where there is none;
            else the CLS token if the model has one, and the average over patches if not. The tanh pooler of BERT
            descent that in-tree ViTs carry is used only when asked for.

    Returns:
        `torch.FloatTensor` of shape `(batch, width)`.

    Raises:
        `ValueError`: if the encoder gives no such output.
    """
    name = type(encoder).__name__
    states, pooler = getattr(outputs, "last_hidden_state", None), getattr(outputs, "pooler_output", None)
    has_states = isinstance(states, torch.Tensor) and states.ndim in (3, 4)
    has_pooler = isinstance(pooler, torch.Tensor)
    pooling = resolve_pooling(encoder, outputs, pixel_values, pooling)
    if pooling == "pooler" and has_pooler:
        if pooler.numel() == pooler.shape[0] * pooler.shape[1]:
            return pooler.flatten(1)
        raise ValueError(f"`pooler_output` of {name} has shape {tuple(pooler.shape)}, not one vector per image.")
    if pooling == "mean" and has_states:
        return patch_tokens(encoder, states, pixel_values).mean(dim=1)
    has_tokens = has_states and states.ndim == 3
    if pooling == "cls" and has_tokens and num_prefix_tokens(encoder, states, pixel_values):
        return states[:, 0]
    outputs_given = {"last_hidden_state": states, "pooler_output": pooler}
    shapes = [f"{key} {tuple(value.shape)}" for key, value in outputs_given.items() if isinstance(value, torch.Tensor)]
    raise ValueError(
        f"{name} has no usable pooled output for pooling={pooling!r}: it gives {', '.join(shapes) or 'no tensor'}. "
        "Choose another `pooling`, or an encoder that gives one vector or tokens per image."
    )


def vision_width(encoder: PreTrainedModel) -> int:
    """
    Width of an encoder's patch tokens.

    Raises:
        `ValueError`: if it gives none.
    """
    if is_video_encoder(encoder):
        return encoder.config.hidden_size
    return dry_run(encoder, lambda: encode_frames(encoder, example_images(encoder.config)).shape[-1])[0]


def example_images(config: PreTrainedConfig) -> torch.Tensor:
    """Images of the configured size on the meta device, of shape `(1, channels, height, width)`, for dry runs."""
    return torch.empty(1, configured_channels(config), *(configured_size(config) or (224, 224)), device="meta")


def configured_channels(config: PreTrainedConfig) -> int:
    """Channels of an encoder's images: what its config calls them, timm's options included, or 3."""
    options = getattr(config, "model_args", None) or {}
    channels = (getattr(config, "num_channels", None), getattr(config, "in_chans", None), options.get("in_chans"), 3)
    return next(filter(None, channels))


def without_predictor(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder, changed in place: V-JEPA's predictor, which nothing here reads, goes."""
    return leave_out(encoder, "predictor") if encoder.config.model_type in ("vjepa", "vjepa2") else encoder


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


def build_encoder(config: PreTrainedConfig, image_size: int | tuple[int, int] | None = None) -> PreTrainedModel:
    """
    A vision encoder of any kind, new, for whole images, with the parts that give tokens only: see
    [`without_predictor`].

    Args:
        config (`PreTrainedConfig`): left as it is.
        image_size (`int` or `(height, width)`, *optional*): of the images, in pixels. timm's ViTs, which take one
            size only unless told, are made for it and interpolate their positions at others.
    """
    if config.model_type == "timm_wrapper" and image_size is not None:
        config = _timm_for_views(config, image_size)
    encoder = without_predictor(build_part(config))
    if config.model_type == "vit_mae":
        # Also for those who load it later: its users would get random quarters.
        encoder.config.mask_ratio = 0.0
    return encoder


def _timm_for_views(config: PreTrainedConfig, image_size: int | tuple[int, int]) -> PreTrainedConfig:
    import timm

    config, given = copy.deepcopy(config), dict(config.model_args or {})
    try:
        with torch.device("meta"):
            built = timm.create_model(config.architecture, num_classes=0, **given)
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"timm builds no {config.architecture!r} with model_args {given} "
            f"({str(error) or 'a value out of range'}): leave out what this architecture has not (`patch_drop_rate` "
            "is one of plain ViTs and EVA), or choose another."
        ) from error
    known = inspect.signature(type(built)).parameters
    wanted = {"img_size": pair(image_size), "dynamic_img_size": True, "strict_img_size": False, "dynamic_mask": True}
    config.model_args = {**{name: value for name, value in wanted.items() if name in known}, **given}
    return config


@contextmanager
def whole_images(encoder: PreTrainedModel) -> Iterator[None]:
    """
    A context in which an encoder in training mode drops no patches, as timm's ViTs do with `patch_drop_rate`, so that
    its tokens are those of all patches, in order. All else is as in training.

    Args:
        encoder (`PreTrainedModel`): any vision encoder.
    """
    dropping = getattr(getattr(encoder, "timm_model", None), "patch_drop", None)
    if dropping is None:
        yield
        return
    mode, dropping.training = dropping.training, False
    try:
        yield
    finally:
        dropping.training = mode


def refuse_patch_dropping(config: PreTrainedConfig) -> None:
    """
    Args:
        config (`PreTrainedConfig`): of an encoder.

    Raises:
        `ValueError`: for a `patch_drop_rate`, which no in-tree config has and any would keep unread: in timm's it is
            one of `model_args`.
    """
    if hasattr(config, "patch_drop_rate"):
        raise ValueError(
            f"`patch_drop_rate` is no option of a {config.model_type!r} encoder. timm's ViTs have it: "
            'TimmWrapperConfig(architecture="vit_small_patch16_224", model_args={"patch_drop_rate": 0.3}), in a '
            "recipe `encoder: timm/vit_small_patch16_224` with `encoder_args: {patch_drop_rate: 0.3}`."
        )


def keep_timm_size(config: PreTrainedConfig, encoder: PreTrainedModel) -> None:
    """Writes the size that a timm ViT has its table for into the config, in place: weights fit no other."""
    embedding = getattr(getattr(encoder, "timm_model", None), "patch_embed", None)
    if getattr(embedding, "img_size", None) is not None:
        config.model_args = {"img_size": tuple(embedding.img_size), **(config.model_args or {})}


def configured_size(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Height and width that an encoder is configured for; `None` where its config does not say."""
    options = getattr(config, "model_args", None) or {}
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or options.get("img_size")
    return pair(size) if size else None


def normalized_frames(
    frames: torch.Tensor,
    image_mean: list[float] | None,
    image_std: list[float] | None,
    size: tuple[int, int] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """
    Frames as an encoder takes them: uint8 ones divided by 255, resized and normalised, float ones in its dtype.

    Args:
        frames (`torch.Tensor` of shape `(..., channels, height, width)`).
        image_mean, image_std (`list[float]`, *optional*): per channel, of pixels in [0, 1]; needed for uint8.
        size (`tuple[int, int]`, *optional*): height and width that uint8 frames are resized to.
        dtype (`torch.dtype`): of the frames returned.

    Raises:
        `ValueError`: for float frames that are not normalised (values are looked at on CPU only), and integer ones
            that cannot be.
    """
    check_tensor(frames, "pixel_values")
    if frames.is_floating_point():
        looks = frames.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and not (largest := frames.detach().abs().amax().item()) < _LARGEST_PIXEL:
            raise ValueError(
                f"Frames reach {largest:.3g}: float frames must be normalised and finite. Pass them as uint8 to have "
                "the model normalise them."
            )
        return frames.to(dtype)
    if frames.dtype != torch.uint8:
        raise ValueError(
            f"Frames are uint8, or normalised floats, not {frames.dtype}: convert them, `.to(torch.uint8)`."
        )
    if image_mean is None:
        raise ValueError("uint8 frames need `image_mean` and `image_std` in the config to be normalised.")
    if len(image_mean) not in (1, frames.shape[-3]):
        raise ValueError(
            f"Frames of {frames.shape[-3]} channels cannot be normalised with an `image_mean` of {len(image_mean)}: "
            f"frames are (..., channels, height, width), got {tuple(frames.shape)}; convert them to {len(image_mean)} "
            "channels, or set `image_mean` and `image_std` for theirs."
        )
    frames = frames.to(dtype) / 255
    if size is not None and tuple(frames.shape[-2:]) != size:
        batch, images = frames.shape[:-3], frames.flatten(0, -4)
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        frames = images.unflatten(0, batch)
    mean, std = (frames.new_tensor(values).view(-1, 1, 1) for values in (image_mean, image_std))
    return (frames - mean) / std


def check_frames(frames: torch.Tensor, channels: int) -> None:
    """
    Checks frames before they are normalised and cut up, so that an error tells of their own shape.

    Args:
        frames (`torch.Tensor` of shape `(batch, time, channels, height, width)`).
        channels (`int`): of the encoder.

    Raises:
        `TypeError`: for anything but a tensor.
        `ValueError`: for another number of dimensions or channels, or none of anything.
    """
    check_tensor(frames, "pixel_values")
    shape = tuple(frames.shape)
    if len(shape) != 5 or 0 in shape:
        raise ValueError(
            f"Frames must have shape (batch, time, channels, height, width), at least one of each, got {shape}."
        )
    if shape[2] != channels:
        last = shape[-1] == channels
        raise ValueError(
            f"Frames of {shape[2]} channels, for an encoder of {channels}: frames are (batch, time, channels, height, "
            f"width), got {shape}; "
            + ("move the channels: `.movedim(-1, 2)`." if last else f"convert them to {channels} channels.")
        )


def encode_each_frame(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Patch tokens of frames, each encoded by itself: a clip that is encoded as one lets every frame see those after it.

    Args:
        encoder (`PreTrainedModel`): any vision encoder of images or clips.
        pixel_values (`torch.FloatTensor` of shape `(batch, time, channels, height, width)`).

    Returns:
        `torch.FloatTensor` of shape `(batch, time, tokens, width)`.

    Raises:
        `ValueError`: for an encoder that gives no tokens.
    """
    return encode_frames(encoder, pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])
