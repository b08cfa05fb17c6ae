"""The size that a model was trained at, and the encoder that gives its features at that size in plain transformers."""

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ..encoders import configured_size, is_video_encoder, run_encoder
from ..models.ijepa.modeling_ijepa import IJepaForPreTraining, encode_tokens, position_embeddings_at
from ..models.vjepa.modeling_vjepa import in_tree_obstacles
from ..positions import pair

# Features of the encoder released and of the one trained differ by less than this.
_TOLERANCE = 1e-5
# The names of position tables in in-tree vision encoders.
_TABLES = ("position_embeddings", "position_embedding.weight")


def view_size(pixels: torch.Tensor | Sequence[torch.Tensor]) -> tuple[int, int]:
    """
    Height and width of a batch's images, views or clips; of several groups, the largest.

    Args:
        pixels (`torch.Tensor` of shape `(..., height, width)`, or several).
    """
    groups = [pixels] if isinstance(pixels, torch.Tensor) else pixels
    return max((tuple(group.shape[-2:]) for group in groups), key=lambda size: size[0] * size[1])


def released_size(model: PreTrainedModel) -> tuple[int, int]:
    """Height and width that a release of a composite or encoder is for: those trained at, else the configured ones."""
    config = model.config
    encoder_config = getattr(config, "encoder_config", None) or config
    size = getattr(config, "trained_size", None)
    # Joint-embedding configs know the size of their images themselves: a convolutional encoder's does not say.
    size = size or getattr(config, "image_size", None)
    return pair(size or configured_size(encoder_config))


def channels_of(model: PreTrainedModel) -> int:
    """Channels of the images or frames that a composite or encoder takes."""
    for config in (model.config, getattr(model.config, "encoder_config", None)):
        options = getattr(config, "model_args", None) or {}
        known = (getattr(config, "num_channels", None), getattr(config, "in_chans", None), options.get("in_chans"))
        if channels := next((number for number in known if number), None):
            return channels
    return 3


def check_releasable(model: PreTrainedModel, size: tuple[int, int]) -> None:
    """
    Whether a release can express the encoder of a composite at a size: tried on an encoder of one layer.

    Args:
        model ([`~hf_jepa.modeling_jepa.JepaPreTrainedModel`]).
        size (`tuple[int, int]`): height and width in pixels.

    Raises:
        `ValueError`: naming the size and the way out.
    """
    config = getattr(model.config, "encoder_config", None)
    if config is None or _size_of(config) in (None, size):
        return
    if is_video_encoder(model):
        is_ours = getattr(model.config, "from_vjepa_model", False) or in_tree_obstacles(config)
        if size[0] != size[1] and not is_ours:
            raise ValueError(
                f"Clips of {size[0]}x{size[1]} pixels are not square, and in-tree V-JEPA 2, the root of the release, "
                "has positions for square ones only: it would give other features without a word. Train at a square "
                "size, or load the encoder with `hf_jepa.VJepaModel` and pass that to `from_encoder`: the root is "
                "then a `VJepaModel`, which needs `import hf_jepa`."
            )
        return
    config = copy.deepcopy(config)
    if hasattr(config, "num_hidden_layers") and not hasattr(config, "depths"):  # stages have layers of their own
        config.num_hidden_layers = 1
    with torch.random.fork_rng(devices=[]):
        small = type(model.encoder)._from_config(config).float().eval()
    resize_encoder(small, model, size)


def _size_of(config: PreTrainedConfig) -> tuple[int, int] | None:
    """The size in an encoder's config; `None` where any will do."""
    size = getattr(config, "crop_size", None) or getattr(config, "image_size", None)
    return None if size is None else pair(size)


@torch.no_grad()
def resize_encoder(encoder: PreTrainedModel, model: PreTrainedModel, size: tuple[int, int]) -> PreTrainedModel:
    """
    An encoder whose forward pass in plain transformers gives, at a size, the features that the composite trained: with
    the sine-cosine table of that size for I-JEPA, with the table that the encoder interpolates for others, in-tree
    V-JEPA 2 with its `crop_size`. A [`VJepaModel`] takes positions from the clip.

    Args:
        encoder (`PreTrainedModel`): exported, in eval mode.
        model ([`~hf_jepa.modeling_jepa.JepaPreTrainedModel`]): that trained it.
        size (`tuple[int, int]`): height and width in pixels.

    Returns:
        `PreTrainedModel`: in eval mode; the given one where nothing has to change.

    Raises:
        `ValueError`: if the type cannot express the size.
    """
    if _size_of(encoder.config) in (None, size) or encoder.config.model_type == "vjepa":
        return encoder
    if encoder.config.model_type == "vjepa2":
        return _rebuilt(encoder, "crop_size", size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, channels_of(encoder), *size, generator=generator).to(encoder.device, encoder.dtype)
    try:
        trained = _trained_states(encoder, model, pixels)
        if _gives(encoder, pixels, trained):  # those that interpolate without being told
            return encoder
        new = _rebuilt(encoder, "image_size", size, _table(encoder, model, pixels))
        if _gives(new, pixels, trained):
            return new
        reason = "with another `image_size` in its config it gives other features"
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = f"it cannot be built for that size ({str(error).splitlines()[0]})"
    configured = "x".join(map(str, _size_of(encoder.config)))
    raise ValueError(
        f"A release of {type(encoder).__name__} cannot be for images of {size[0]}x{size[1]} pixels: {reason}. Its "
        f"config says {configured}: train at that size, or build the encoder for the other one."
    )


def _trained_states(encoder: PreTrainedModel, model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    if isinstance(model, IJepaForPreTraining):
        return encode_tokens(encoder, pixels)
    return run_encoder(encoder, pixels).last_hidden_state


def _gives(encoder: PreTrainedModel, pixels: torch.Tensor, trained: torch.Tensor) -> bool:
    """Whether a plain forward pass gives these features, up to the rounding of another order of operations."""
    try:
        states = encoder(pixels).last_hidden_state
    except (ValueError, RuntimeError):  # another size than the configured one, to most types
        return False
    tolerance = max(_TOLERANCE, 8 * torch.finfo(encoder.dtype).eps) * trained.abs().max().clamp_min(1.0)
    return states.shape == trained.shape and bool((states - trained).abs().max() <= tolerance)


def _table(encoder: PreTrainedModel, model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Positions `(1, tokens, width)` that the composite trained with, of the size of `pixels`."""
    if isinstance(model, IJepaForPreTraining):
        return position_embeddings_at(encoder, tuple(pixels.shape[-2:]))
    tokens = encoder.embeddings(pixels, interpolate_pos_encoding=True)
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    return encoder.embeddings.interpolate_pos_encoding(tokens, *pixels.shape[-2:])


def _rebuilt(
    encoder: PreTrainedModel, field: str, size: tuple[int, int], table: torch.Tensor | None = None
) -> PreTrainedModel:
    """The encoder with another size in its config and, where that has another length, another position table."""
    config = copy.deepcopy(encoder.config)
    setattr(config, field, size[0] if size[0] == size[1] else list(size))
    with init.no_init_weights():
        new = type(encoder)._from_config(config).to(encoder.device, encoder.dtype).eval()
    weights = encoder.state_dict()
    for name, tensor in new.state_dict().items():
        if table is not None and name.endswith(_TABLES):
            weights[name] = table.reshape(tensor.shape)
    new.load_state_dict(weights)
    return new
