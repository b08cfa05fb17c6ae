"""Original data2vec vision training checkpoints to the two-floor folder of this package, and back.

The files (arXiv 2202.03555, released `data2vec_vision` code) hold the student's state dict under `model` and the EMA
teacher's under `model_ema`, each with its own copy of the regression head, beside optimizer, scaler and the parsed
arguments. The `facebook/data2vec-vision-*` repositories hold the student alone, without mask token and head.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModel, Data2VecVisionConfig
from transformers.image_utils import PILImageResampling
from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionRelativePositionBias
from transformers.utils import logging

from ..hub.release import default_image_processor
from ..models.data2vec_vision.configuration_data2vec_vision import (
    DATA2VEC_VISION_SIZES,
    ENCODER_DEFAULTS,
    Data2VecVisionPreTrainingConfig,
)
from ..models.data2vec_vision.modeling_data2vec_vision import Data2VecVisionForPreTraining
from .key_maps import (
    KeyMaps,
    composite_folder,
    count_blocks,
    drop_twins,
    load_converted,
    load_groups,
    original_groups,
    save_converted,
    save_converted_encoder,
    shape_of,
    write_original,
)
from .original_files import load_original_checkpoint
from .reading import Groups, check_output, licence_of, names_file, read_groups, widen

logger = logging.get_logger(__name__)

# The README of the released code; the model cards of facebook/data2vec-vision-* say apache-2.0.
SOURCE_LICENCE = "cc-by-nc-4.0"

_TABLE = "rel_pos_bias.relative_position_bias_table"
_INDEX = "rel_pos_bias.relative_position_index"
# Group of the file -> our encoder and head.
_GROUPS = {"model": ("encoder", "head"), "model_ema": ("target_encoder", "target_head")}
_TWINS = (("encoder", "target_encoder"), ("head", "target_head"))
_PUBLISHED_SIZES = {(size["hidden_size"], size["num_hidden_layers"]) for size in DATA2VEC_VISION_SIZES.values()}
# The released code numbers its checkpoints; the published ones are of the last epoch.
PUBLISHED = {"checkpoint-799.pth", "checkpoint-1599.pth"}
_BLOCK = {
    "gamma_1": ("lambda_1",),
    "gamma_2": ("lambda_2",),
    "norm1.weight": ("layernorm_before.weight",),
    "norm1.bias": ("layernorm_before.bias",),
    "attn.q_bias": ("attention.attention.query.bias",),
    "attn.v_bias": ("attention.attention.value.bias",),
    "attn.qkv.weight": tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
    "attn.proj.weight": ("attention.output.dense.weight",),
    "attn.proj.bias": ("attention.output.dense.bias",),
    "norm2.weight": ("layernorm_after.weight",),
    "norm2.bias": ("layernorm_after.bias",),
    "mlp.fc1.weight": ("intermediate.dense.weight",),
    "mlp.fc1.bias": ("intermediate.dense.bias",),
    "mlp.fc2.weight": ("output.dense.weight",),
    "mlp.fc2.bias": ("output.dense.bias",),
}


def _key_map(encoder: str, head: str, config: Data2VecVisionConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Original key -> the parameters of our module it holds, in the order of the original state dict."""
    embeddings = f"{encoder}.embeddings"
    for name in ("cls_token", "mask_token"):
        yield name, (f"{embeddings}.{name}",)
    for kind in ("weight", "bias"):
        yield f"patch_embed.proj.{kind}", (f"{embeddings}.patch_embeddings.projection.{kind}",)
    yield _TABLE, (f"{encoder}.encoder.relative_position_bias.relative_position_bias_table",)
    for index in range(config.num_hidden_layers):
        for source, names in _BLOCK.items():
            if config.layer_scale_init_value > 0 or not source.startswith("gamma"):
                yield f"blocks.{index}.{source}", tuple(f"{encoder}.encoder.layer.{index}.{name}" for name in names)
    for source, name in (("norm", f"{encoder}.layernorm"), ("lm_head", head)):
        for kind in ("weight", "bias"):
            yield f"{source}.{kind}", (f"{name}.{kind}",)


def _key_maps(config: Data2VecVisionPreTrainingConfig, groups: Iterable[str] = tuple(_GROUPS)) -> KeyMaps:
    return {group: dict(_key_map(*_GROUPS[group], config.encoder_config)) for group in groups}


def _infer_encoder(groups: Groups, group: str) -> Data2VecVisionConfig:
    hidden, channels, *patch = shape_of(groups, group, "patch_embed.proj.weight", 4)
    rows, heads = shape_of(groups, group, _TABLE, 2)
    intermediate = shape_of(groups, group, "blocks.0.mlp.fc1.weight", 2)[0]
    # A window of G x G patches has (2G - 1)^2 distances, and 3 for the class token.
    distances = math.isqrt(max(rows - 3, 0))
    if distances**2 != rows - 3 or distances % 2 == 0 or patch[0] != patch[1]:
        raise ValueError(
            f"The position bias table has {rows} rows and patches are {patch[0]}x{patch[1]}: not a square grid of "
            "square patches, which in-tree data2vec vision cannot express."
        )
    depth = count_blocks(groups[group])
    # Dropout and the initial layer scale leave no trace in the weights.
    published = next(
        (
            {name: size[name] for name in ("layer_scale_init_value", "drop_path_rate", "attention_probs_dropout_prob")}
            for size in DATA2VEC_VISION_SIZES.values()
            if (size["hidden_size"], size["num_hidden_layers"]) == (hidden, depth)
        ),
        {"layer_scale_init_value": 1e-4, "drop_path_rate": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    if "blocks.0.gamma_1" not in groups[group]:
        published["layer_scale_init_value"] = 0.0
    return Data2VecVisionConfig(
        **ENCODER_DEFAULTS | {"use_mask_token": "mask_token" in groups[group]},
        **published,
        hidden_size=hidden,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        image_size=(distances + 1) // 2 * patch[0],
        patch_size=patch[0],
        num_channels=channels,
    )


def _position_index(config: Data2VecVisionConfig) -> torch.Tensor:
    side = config.image_size // config.patch_size
    return Data2VecVisionRelativePositionBias.generate_relative_position_index((side, side))


def _take_index(
    groups: Groups, config: Data2VecVisionConfig, is_needed: bool
) -> tuple[dict[str, list[int]], list[str]]:
    """
    Removes the index buffer, which in-tree code computes, after checking it. The released EMA averages this integer
    buffer too and truncates, so that some teachers' entries are one too low: returns their places in the flat buffer,
    and the faults found, an absent index among them where one is needed.
    """
    expected = _position_index(config)
    low: dict[str, list[int]] = {}
    faults = []
    for group, tensors in groups.items():
        index = tensors.pop(_INDEX, None)
        if index is None and not is_needed:
            continue
        if index is None:
            faults.append(f"missing: {group}/{_INDEX}")
            continue
        if index.shape != expected.shape or index.dtype != torch.int64:
            found = f"{index.dtype} {tuple(index.shape)}"
            faults.append(f"mis-shaped: {group}/{_INDEX} is {found}, expected torch.int64 {tuple(expected.shape)}")
            continue
        difference = expected - index
        if difference.min() < 0 or difference.max() > (group == "model_ema"):
            faults.append(f"wrong: {group}/{_INDEX} is not the position index of {config.image_size} pixels")
        low[group] = difference.flatten().nonzero()[:, 0].tolist()
    return low, faults


@names_file
def convert_data2vec_vision_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    which: Literal["target", "context"] | None = None,
    target_layers: list[int] | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Converts an original data2vec vision pretraining checkpoint into a release: one encoder at the root in its in-tree
    format, with final norm, mask token and the epsilon of 1e-6; student, teacher and both heads under `pretraining/`.

    What people keep of such files is read too: student or teacher alone (both of the composite are then that one), and
    without regression head the encoder, as a release of one floor; within `state_dict`, or as the whole file; keys
    behind `module.`, `_orig_mod.` and `backbone.`; half precision, which becomes float32.

    Args:
        path (`str` or `PathLike`): the `checkpoint-*.pth` file.
        output_dir (`str` or `PathLike`): the folder to write.
        which (`str`, *optional*): the encoder at the root: `"target"` (the teacher) or `"context"` (the student, which
            the `facebook/data2vec-vision-*` repositories hold); by default the teacher, or the only one of the file.
        target_layers (`list[int]`, *optional*): the teacher's blocks, counted from 0, that targets were made of;
            defaults to the published top 6.
        licence (`str`, *optional*): of the checkpoint, for the card. Needed for all but the published files, which are
            CC BY-NC 4.0.
        overwrite (`bool`): replace what is at `output_dir`.

    Returns:
        `output_dir`.

    Raises:
        `UnsafeCheckpointError`: if the file holds anything but tensors, plain values and parsed arguments.
        `ValueError`: for a damaged file, a fine-tuned model, missing, extra or mis-shaped keys, an unknown licence, or
            an `output_dir` that exists. Nothing is written in either case.
    """
    check_output(output_dir, overwrite)
    path = Path(path)
    checkpoint = load_original_checkpoint(path)
    what = "a data2vec vision pretraining checkpoint with 'model' and 'model_ema', or one of these"
    groups, prefixes, is_original = read_groups(checkpoint, _GROUPS, what, encoder="model")
    dtype = widen(groups)
    held = {"context": "model", "target": "model_ema"}
    which = which or ("target" if "model_ema" in groups else "context")
    if (group := held[which]) not in groups:
        raise ValueError(f"{path.name!r} has no {group!r}; leave out `which` (--which).")
    has_head = any("lm_head.weight" in tensors for tensors in groups.values())
    encoder_config = _infer_encoder(groups, next(iter(groups)) if has_head else group)
    is_published = (encoder_config.hidden_size, encoder_config.num_hidden_layers) in _PUBLISHED_SIZES
    licence = licence_of(path, licence, SOURCE_LICENCE, PUBLISHED, is_published)
    low, faults = _take_index(groups, encoder_config, is_needed=has_head)
    if low.get("model_ema"):
        logger.warning(
            f"{len(low['model_ema'])} entries of the teacher's position index are one too low, a rounding fault of "
            "the released EMA. The converted teacher uses the right index, so its features differ from what the "
            "released code computes with this file; the way back restores the fault."
        )
    processor = default_image_processor(encoder_config)
    processor.resample = PILImageResampling.BICUBIC
    if not has_head:
        with torch.device("meta"):
            encoder = AutoModel.from_config(encoder_config)
        keys = {
            source: tuple(name.removeprefix("encoder.") for name in names)
            for source, names in _key_map("encoder", "head", encoder_config)
            if not source.startswith("lm_head") and (source != "mask_token" or encoder_config.use_mask_token)
        }
        load_groups(encoder, {group: groups[group]}, {group: keys}, "a data2vec vision encoder", faults)
        return save_converted_encoder(
            encoder,
            output_dir,
            family="data2vec_vision",
            path=path,
            group=group,
            content=checkpoint,
            licence=licence,
            processor=processor,
        )
    config = Data2VecVisionPreTrainingConfig(encoder_config=encoder_config, target_layers=target_layers)
    with torch.device("meta"):
        model = Data2VecVisionForPreTraining(config)
    load_groups(model, groups, _key_maps(config, groups), "a data2vec vision model", faults, _TWINS)
    return save_converted(
        model,
        output_dir,
        checkpoint=checkpoint,
        path=path,
        which=which,
        licence=licence,
        layout={"prefixes": prefixes, "dtype": dtype, "low_position_indices": low} if is_original else None,
        processor=processor,
    )


def export_original_checkpoint(folder: str | os.PathLike, path: str | os.PathLike) -> Path:
    """
    As [`~hf_jepa.conversion.ijepa.export_original_checkpoint`], for data2vec vision; parsed arguments come back too.

    Raises:
        `ValueError`: also for position biases that the original layout has no place for.
    """
    model, layout = load_converted(folder, Data2VecVisionForPreTraining)
    encoder = model.config.encoder_config
    if not encoder.use_shared_relative_position_bias or encoder.use_relative_position_bias:
        raise ValueError("The original layout has one position bias that all blocks share; this encoder differs.")
    key_maps = _key_maps(model.config, layout["prefixes"] if layout else _GROUPS)
    groups = original_groups(drop_twins(model.state_dict(), _TWINS, key_maps, composite_folder(folder)), key_maps)
    low: dict[str, Any] = (layout or {}).get("low_position_indices", {})
    for group, tensors in groups.items():
        index = _position_index(encoder).clone()
        index.view(-1)[low.get(group, [])] -= 1
        # Buffers come after the parameters of their module: behind the table.
        groups[group] = {}
        for key, tensor in tensors.items():
            groups[group][key] = tensor
            if key == _TABLE:
                groups[group][_INDEX] = index
    return write_original(path, groups, layout)
