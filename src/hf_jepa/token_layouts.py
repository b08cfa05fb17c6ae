"""Where the patches of an image stand in the outputs of vision encoders, type by type."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig

from .positions import pair

# Model type -> tokens before the patches of `last_hidden_state` (batch, tokens, width): CLS, distillation, registers.
_PREFIX: dict[str, int | Callable[[PreTrainedConfig], int]] = {
    **dict.fromkeys(
        ("aimv2_vision_model", "donut-swin", "focalnet", "hiera", "ijepa", "levit", "maskformer-swin",
         "sam3_vit_model", "siglip_vision_model", "swin", "swinv2"), 0,
    ),
    **dict.fromkeys(
        ("beit", "chinese_clip_vision_model", "clip_vision_model", "data2vec-vision", "dinov2", "dinov3_convnext",
         "dpt", "internvl_vision", "metaclip_2_vision_model", "mlcd", "mlcd_vision_model", "pvt",
         "qianfan_ocr_vision", "vit", "vit_mae", "vit_msn", "yolos"), 1,
    ),
    "deit": 2,
    **dict.fromkeys(
        ("dinov2_with_registers", "dinov3_vit", "sapiens2", "tipsv2_vision_model"),
        lambda config: 1 + config.num_register_tokens,
    ),
    "pixio": lambda config: config.n_cls_tokens,
    "radio": lambda config: config.num_cls_tokens + config.num_registers,
}  # fmt: skip
# Model type -> tokens behind the patches.
_SUFFIX: dict[str, Callable[[PreTrainedConfig], int]] = {"yolos": lambda config: config.num_detection_tokens}
# Feature maps (batch, width, rows, columns), and those with the width last.
_MAPS = frozenset(
    ("bit", "convnext", "convnextv2", "cvt", "efficientnet", "glpn", "mobilenet_v1", "mobilenet_v2", "mobilevit",
     "mobilevitv2", "poolformer", "pvt_v2", "regnet", "resnet", "sam_hq_vision_model", "sam_vision_model",
     "segformer", "swiftformer", "textnet", "vitdet")
)  # fmt: skip
_MAPS_WIDTH_LAST = frozenset({"sam2_hiera_det_model", "sam2_vision_model"})
# timm's models whose class token stands first, although they have no `num_prefix_tokens`.
_TIMM_PREFIX = {"VOLO": 1, "Cait": 1}


def patch_tokens(encoder: nn.Module, states: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Hidden states as patch tokens, row by row: feature maps flattened, tokens that are no patches left out.

    Args:
        encoder (`nn.Module`): that made them.
        states (`torch.Tensor` of shape `(batch, tokens, width)` or of a feature map).
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): that they were made of.

    Returns:
        `torch.Tensor` of shape `(batch, patches, width)`.

    Raises:
        `ValueError`: for states whose layout is not known: by type of the encoder, or because they are as many tokens
            as the image has patches.
    """
    if len(states) != len(pixel_values):
        raise _unknown(encoder, states)
    if states.ndim == 4:
        return states.flatten(1, 2) if _width_is_last(encoder, states) else states.flatten(2).transpose(1, 2)
    if states.ndim != 3:
        raise _unknown(encoder, states)
    before, after = num_prefix_tokens(encoder, states, pixel_values), 0
    if encoder.config.model_type in _SUFFIX:
        after = _SUFFIX[encoder.config.model_type](encoder.config)
    return states[:, before : states.shape[1] - after]


def num_prefix_tokens(encoder: nn.Module, states: torch.Tensor, pixel_values: torch.Tensor) -> int:
    """How many of an encoder's tokens `(batch, tokens, width)` stand before the patches; `ValueError` if unknown."""
    timm_model, config = getattr(encoder, "timm_model", None), encoder.config
    if timm_model is not None:
        known = getattr(timm_model, "num_prefix_tokens", None)
        if known is not None:
            return known
        known, step = _TIMM_PREFIX.get(type(timm_model).__name__, 0), timm_model.feature_info[-1]["reduction"]
    elif config.model_type in _PREFIX:
        known = _PREFIX[config.model_type]
        return known if isinstance(known, int) else known(config)
    else:
        known, step = 0, getattr(config, "patch_size", None)
    if step is not None:
        rows_step, columns_step = pair(step)
        rows, columns = -(-pixel_values.shape[-2] // rows_step), -(-pixel_values.shape[-1] // columns_step)
        if states.shape[1] == known + rows * columns:
            return known
    raise _unknown(encoder, states)


def _width_is_last(encoder: nn.Module, states: torch.Tensor) -> bool:
    timm_model, config = getattr(encoder, "timm_model", None), encoder.config
    if timm_model is not None:
        return getattr(timm_model, "output_fmt", "NCHW") == "NHWC"
    if config.model_type in _MAPS or config.model_type in _MAPS_WIDTH_LAST:
        return config.model_type in _MAPS_WIDTH_LAST
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if width not in states.shape[1:] or states.shape[1] == states.shape[3] == width:
        raise _unknown(encoder, states)
    return states.shape[3] == width


def _unknown(encoder: nn.Module, states: torch.Tensor) -> ValueError:
    name = type(getattr(encoder, "timm_model", encoder)).__name__
    return ValueError(
        f"{name} gives states of shape {tuple(states.shape)}, in which it is not known which are the patches of an "
        "image. Use its pooled output (pooling='pooler'), or an encoder that gives one token per patch, CLS and "
        "registers before them, or a feature map."
    )


def token_grid(num_tokens: int, height: int, width: int, name: str) -> tuple[int, int]:
    """
    Rows and columns of patch tokens that tile an image, whatever encoder made them.

    Args:
        num_tokens (`int`): without prefix tokens.
        height (`int`), width (`int`): of the image in pixels.
        name (`str`): of the encoder, for the message.

    Raises:
        ValueError: if there is no such grid.
    """
    rows = round((num_tokens * height / width) ** 0.5)
    if num_tokens < 4 or not rows or num_tokens % rows or height % rows or width % (num_tokens // rows):
        raise ValueError(
            f"{name} makes {num_tokens} tokens of {height}x{width} pixels, which do not tile them: there is no map to "
            "draw. Larger images may have one."
        )
    return rows, num_tokens // rows


def clip_grid(config: PreTrainedConfig, num_tokens: int, clips: torch.Tensor, name: str) -> tuple[int, int, int]:
    """
    Time slots, rows and columns of the patch tokens of clips.

    Args:
        config (`PreTrainedConfig`): of the encoder, or of a model around it; one without tubelets sees frame by frame.
        num_tokens (`int`): of a clip, without prefix tokens.
        clips (`torch.Tensor` of shape `(batch, frames, channels, height, width)`).
        name (`str`): of the encoder, for the message.

    Raises:
        ValueError: if there is no such grid.
    """
    tubelet = getattr(getattr(config, "encoder_config", config), "tubelet_size", 1)
    slots = max(1, clips.shape[1] // (tubelet if isinstance(tubelet, int) else tubelet[0]))
    return slots, *token_grid(num_tokens // slots, *clips.shape[-2:], name)
