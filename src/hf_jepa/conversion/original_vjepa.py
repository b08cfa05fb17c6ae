"""The original V-JEPA checkpoints of all generations: their names, what they leave out, and the sizes they have.

Training files hold `encoder`, `predictor` and `target_encoder` beside optimizer and scaler; the files for inference
hold one encoder and the predictor. V-JEPA 2.1's distilled ones call the encoder `ema_encoder`. Keys start with
`module.backbone.`, `module.`, `backbone.` or nothing.
"""

import math
from typing import Any, NamedTuple

import torch

from ..models.vjepa.configuration_vjepa import (
    GENERATION_FIELDS,
    HIERARCHICAL_LAYERS,
    VJEPA_SIZES,
    Generation,
    VJepaConfig,
)
from ..positions import sincos_3d
from .key_maps import count_blocks, mlp_ratio, shape_of
from .key_maps_vjepa import MODULES
from .reading import Groups, holds_tensors, read_groups, refuse_class_token, widen

# State of the training loop, which a release does not hold.
_TRAINING_STATE = ("opt", "scaler")
# V-JEPA 2 files still hold the tables that rotary positions replaced; the released loader drops them as well.
_TABLES = ("pos_embed", "predictor_pos_embed")

_KNOWN_HEADS = {(hidden, layers): heads for hidden, layers, heads, _ in VJEPA_SIZES.values()}


# In-tree V-JEPA 2 cannot do without a predictor: of a file without one it gets the smallest, of NaN.
NO_PREDICTOR = {
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 1,
    "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 1,
}


class VideoCheckpoint(NamedTuple):
    """
    An original file, read and sorted.

    Args:
        content (`dict`): everything in the file.
        groups, prefixes (`dict`): as [`~hf_jepa.conversion.key_maps.read_groups`] returns them.
        faults (`list[str]`): what is wrong with the file as a whole.
        is_original (`bool`): whether it has the released layout.
        dtype (`str`, *optional*): of half precision, which the groups no longer have.
    """

    content: dict[str, Any]
    groups: Groups
    prefixes: dict[str, str]
    faults: list[str]
    is_original: bool = True
    dtype: str | None = None

    @property
    def layout(self) -> dict[str, Any] | None:
        """What the way back needs to know of the groups."""
        return {"prefixes": self.prefixes, "dtype": self.dtype} if self.is_original else None

    @property
    def encoder(self) -> dict[str, torch.Tensor]:
        """The encoder that sizes are read off: the context encoder, whose tables no moving average has touched."""
        return next(self.groups[name] for name in ("encoder", "ema_encoder", "target_encoder") if name in self.groups)


def sort_checkpoint(content: dict[str, Any]) -> VideoCheckpoint:
    """
    Sorts a file of any generation, or what people keep of one (see [`~hf_jepa.conversion.reading.find_groups`]). Of
    `target_encoder` beside `ema_encoder` nothing is read: the released loader of distilled models reads `ema_encoder`.

    Args:
        content (`dict`): as [`~hf_jepa.conversion.original_files.load_original_checkpoint`] returns it.

    Raises:
        `ValueError`: for a file without an encoder, or an encoder of another kind.
    """
    what = "a V-JEPA checkpoint with 'predictor' and one or both of 'encoder' and 'target_encoder' (or 'ema_encoder')"
    groups, prefixes, is_original = read_groups(content, MODULES, what)
    if not groups.keys() - {"predictor"}:
        raise ValueError(f"The checkpoint has no encoder but only 'predictor'. Expected {what}.")
    refuse_class_token(groups, "V-JEPA")
    known = {*MODULES, *_TRAINING_STATE}
    left = [name for name, value in content.items() if name not in known and holds_tensors(value)]
    faults = [f"extra: {name}" for name in left] if is_original and "predictor" in groups else []
    return VideoCheckpoint(content, groups, prefixes, faults, is_original, widen(groups))


def take_tables(groups: Groups) -> Groups:
    """Removes the position tables that a rotary model does not read, and returns them."""
    taken = {
        group: {name: tensors.pop(name) for name in _TABLES if name in tensors} for group, tensors in groups.items()
    }
    return {group: tables for group, tables in taken.items() if tables}


def stack_mask_tokens(groups: Groups) -> list[str]:
    """
    Replaces the predictor's `mask_tokens.0`, `mask_tokens.1`, ... by one `mask_tokens`, which is what we have.

    Returns:
        `list[str]`: the faults found: a gap, or tokens of different shapes; none without a predictor.
    """
    if "predictor" not in groups:
        return []
    predictor = groups["predictor"]
    count = count_blocks({f"{key}.": value for key, value in predictor.items()}, "mask_tokens")
    names = [f"mask_tokens.{index}" for index in range(max(count, 1))]
    found = {name: predictor.pop(name) for name in names if name in predictor}
    faults = [f"missing: predictor/{name}" for name in names if name not in found]
    shapes = {name: tuple(token.shape) for name, token in found.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        faults.append(f"mis-shaped: predictor/mask_tokens must share one shape, found {listed}")
    if faults:  # which stop the conversion, once the rest has been looked at
        width = shape_of(groups, "predictor", "predictor_norm.weight", 1)[0]
        found = {name: torch.zeros(1, 1, width) for name in names}
    predictor["mask_tokens"] = torch.stack(list(found.values()))
    return faults


def unstack_mask_tokens(groups: Groups) -> None:
    """The way back of [`stack_mask_tokens`]."""
    predictor, groups["predictor"] = groups["predictor"], {}
    for key, tensor in predictor.items():
        if key == "mask_tokens":
            groups["predictor"] |= {f"{key}.{index}": token.clone() for index, token in enumerate(tensor)}
        else:
            groups["predictor"][key] = tensor


def read_grid(table: torch.Tensor) -> tuple[tuple[int, int, int], bool]:
    """
    The grid that a frozen sine-cosine table is of, and whether its axes share it evenly (`uniform_power`). Sines of
    position 0 are exact zeros, and stay so under a moving average: the first channel of an axis marks where it starts.

    Args:
        table (`torch.Tensor` of shape `(1, tokens, width)`).

    Raises:
        `ValueError`: if it is no such table.
    """
    tokens, width = table.shape[1:]
    for uniform_power, divisor in ((True, 2), (False, 8)):
        if width % divisor:
            continue
        height_starts = 2 * math.ceil(width / 6) if uniform_power else width // 2
        area = int((table[0, :, 0] == 0).sum())
        columns = int((table[0, :area, height_starts] == 0).sum())
        if not area or not columns or tokens % area or area % columns:
            continue
        grid = (tokens // area, area // columns, columns)
        if torch.allclose(table[0].float(), sincos_3d(grid, width, uniform_power), rtol=0, atol=0.02):
            return grid, uniform_power
    raise ValueError(f"`pos_embed` of shape {tuple(table.shape)} is no sine-cosine table of a clip's grid.")


def clip_of_table(encoder: dict[str, torch.Tensor]) -> dict[str, Any]:
    """
    The config fields of the clip that V-JEPA 1's position table is of.

    Raises:
        `ValueError`: for a table of non-square frames, which a config has no word for.
    """
    groups = {"encoder": encoder}
    _, _, tubelet, *patch = shape_of(groups, "encoder", "patch_embed.proj.weight", 5)
    shape_of(groups, "encoder", "pos_embed", 3)
    (slots, rows, columns), uniform_power = read_grid(encoder["pos_embed"])
    height, width = rows * patch[0], columns * patch[1]
    if height != width:
        raise ValueError(f"The position table is one of frames of {height}x{width} pixels; configs need square ones.")
    return {"crop_size": height, "frames_per_clip": slots * tubelet, "uniform_power": uniform_power}


def number_of_heads(width: int, known: int | None, given: int | None, argument: str) -> int:
    """
    Attention heads, which shapes do not tell: as `given`, else as `known` for a published size.

    Raises:
        `ValueError`: for neither, or a number that does not divide the width; it names the `argument`.
    """
    heads = given or known
    flag = f"`{argument}` (--{argument.replace('_', '-')})"
    if heads is None:
        raise ValueError(
            f"The width {width} is that of no published size, and shapes do not tell the number of attention heads: "
            f"pass {flag}."
        )
    if heads < 1 or width % heads:
        raise ValueError(f"The width ({width}) is not divisible by {heads} attention heads; correct {flag}.")
    return heads


def encoder_fields(
    encoder: dict[str, torch.Tensor], clip: dict[str, Any], num_attention_heads: int | None
) -> dict[str, Any]:
    """
    The config fields of an encoder.

    Args:
        encoder (`dict[str, torch.Tensor]`): its original state dict.
        clip (`dict`): `crop_size`, `frames_per_clip` and, of generation 1, `uniform_power`.
        num_attention_heads (`int`, *optional*): known for published sizes.

    Raises:
        `ValueError`: for what shapes and arguments do not tell.
    """
    groups = {"encoder": encoder}
    hidden, channels, tubelet, *patch = shape_of(groups, "encoder", "patch_embed.proj.weight", 5)
    if patch[0] != patch[1]:
        raise ValueError(
            f"The checkpoint has patches of {patch[0]}x{patch[1]} pixels; only square ones are supported."
        )
    for field, argument, unit, unit_name in (
        ("crop_size", "image_size", patch[0], "pixels a side"),
        ("frames_per_clip", "num_frames", tubelet, "frames"),
    ):
        if not isinstance(clip[field], int) or clip[field] < unit or clip[field] % unit:
            raise ValueError(
                f"`{argument}` (--{argument.replace('_', '-')}) is {clip[field]}, but the checkpoint's patches have "
                f"{unit} {unit_name}: give one number, a multiple of that."
            )
    inner = shape_of(groups, "encoder", "blocks.0.mlp.fc1.weight", 2)[0]
    depth = count_blocks(encoder)
    known = _KNOWN_HEADS.get((hidden, depth))
    return {
        **clip,
        "patch_size": patch[0],
        "tubelet_size": tubelet,
        "in_chans": channels,
        "hidden_size": hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": number_of_heads(hidden, known, num_attention_heads, "num_attention_heads"),
        "mlp_ratio": mlp_ratio(hidden, inner),
        "qkv_bias": "blocks.0.attn.qkv.bias" in encoder,
    }


def is_published_size(config: VJepaConfig) -> bool:
    """Whether a model is as large as a published one."""
    return (config.hidden_size, config.num_hidden_layers) in _KNOWN_HEADS


def infer_config(
    checkpoint: VideoCheckpoint,
    generation: Generation,
    clip: dict[str, Any],
    *,
    num_attention_heads: int | None,
    predictor_num_attention_heads: int | None,
    hierarchical_layers: list[int] | None = None,
) -> VJepaConfig:
    """
    The model that a checkpoint is of. Reads the stacked `mask_tokens` (see [`stack_mask_tokens`]). Without a predictor
    that of the config is the smallest there is.

    Args:
        checkpoint ([`VideoCheckpoint`]).
        generation (`str`): `"1"`, `"2"` or `"2.1"`.
        clip (`dict`): `crop_size`, `frames_per_clip` and, of generation 1, `uniform_power`.
        num_attention_heads, predictor_num_attention_heads (`int`, *optional*): known for published sizes.
        hierarchical_layers (`list[int]`, *optional*): of 2.1; known for published depths.

    Raises:
        `ValueError`: for what shapes and arguments do not tell.
    """
    fields = GENERATION_FIELDS[generation] | encoder_fields(checkpoint.encoder, clip, num_attention_heads)
    groups = {"encoder": checkpoint.encoder, "predictor": checkpoint.groups.get("predictor", {})}
    predictor = groups["predictor"]
    if not predictor:
        if generation == "2.1":
            fields |= _dense_fields(groups, fields["hidden_size"], fields["num_hidden_layers"], hierarchical_layers)
        return VJepaConfig(**fields | NO_PREDICTOR)
    pred_hidden = shape_of(groups, "predictor", "predictor_norm.weight", 1)[0]
    pred_inner = shape_of(groups, "predictor", "predictor_blocks.0.mlp.fc1.weight", 2)[0]
    # V-JEPA 1 builds the predictor with as many heads as the encoder; 12 are published otherwise.
    known = fields["num_attention_heads"] if generation == "1" else {384: 12}.get(pred_hidden)
    fields |= {
        "pred_hidden_size": pred_hidden,
        "pred_num_hidden_layers": count_blocks(predictor, "predictor_blocks"),
        "pred_num_attention_heads": number_of_heads(
            pred_hidden, known, predictor_num_attention_heads, "predictor_num_attention_heads"
        ),
        "pred_num_mask_tokens": len(predictor["mask_tokens"]),
        "pred_mlp_ratio": mlp_ratio(pred_hidden, pred_inner),
    }
    if generation == "2.1":
        fields |= _dense_fields(groups, fields["hidden_size"], fields["num_hidden_layers"], hierarchical_layers)
    return VJepaConfig(**fields)


def _dense_fields(groups: Groups, hidden: int, depth: int, hierarchical_layers: list[int] | None) -> dict[str, Any]:
    """What V-JEPA 2.1 adds. Distilled models predict one level, at the width of their teacher."""
    encoder, predictor = groups["encoder"], groups["predictor"]
    layers = hierarchical_layers or HIERARCHICAL_LAYERS.get(depth)
    num_norms = count_blocks(encoder, "norms_block")
    if layers is None or len(layers) != num_norms:
        raise ValueError(
            f"The checkpoint has {depth} blocks and {num_norms} `norms_block`, and names do not tell the supervised "
            "blocks: pass `hierarchical_layers` (--hierarchical-layers), counted from 0."
        )
    levels = 1
    if "predictor_embed.0.weight" in predictor:
        levels = shape_of(groups, "predictor", "predictor_embed.0.weight", 2)[1] // hidden
    output = hidden
    if predictor:
        output = shape_of(groups, "predictor", "predictor_proj.weight", 2)[0] // max(levels, 1)
    return {
        "hierarchical_layers": list(layers),
        "use_image_tokenizer": "patch_embed_img.proj.weight" in encoder,
        "pred_num_levels": None if levels == num_norms else levels,
        "pred_output_size": None if output == hidden else output,
        "pred_context_output": "predictor_proj_context.weight" in predictor,
    }
