"""Original I-JEPA training checkpoints to the two-floor folder of this package, and back; nothing is dropped silently.

The files (arXiv 2301.08243, released code) are dictionaries of three state dicts, `encoder`, `predictor` and
`target_encoder`, whose keys start with `module.`, beside optimizer and scaler state and a few numbers. They hold no
config: sizes are read off the shapes, head counts come from the published sizes or from the caller.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModel, IJepaConfig

from ..models.ijepa.configuration_ijepa import IJEPA_SIZES, IJepaPreTrainingConfig
from ..models.ijepa.modeling_ijepa import IJepaForPreTraining
from .key_maps import (
    KeyMaps,
    composite_folder,
    count_blocks,
    drop_twins,
    load_converted,
    load_groups,
    mlp_ratio,
    original_groups,
    save_converted,
    save_converted_encoder,
    shape_of,
    write_original,
)
from .original_files import load_original_checkpoint
from .reading import (
    Groups,
    check_output,
    chosen_encoder,
    licence_of,
    names_file,
    read_groups,
    refuse_class_token,
    widen,
)

SOURCE_LICENCE = "cc-by-nc-4.0"
# What the files of the released code's repository are called.
PUBLISHED = {
    "IN1K-vit.h.14-300e.pth.tar",
    "IN1K-vit.h.16-448px-300e.pth.tar",
    "IN22K-vit.h.14-900e.pth.tar",
    "IN22K-vit.g.16-600e.pth.tar",
}

_KNOWN_HEADS = {(hidden, layers): heads for hidden, layers, heads, *_ in IJEPA_SIZES.values()}

# The original's groups, and one that others write; our modules have the same names.
_GROUPS = ("encoder", "predictor", "target_encoder")
_READ = (*_GROUPS, "ema_encoder")
_TWINS = (("encoder", "target_encoder"),)
_BLOCK = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}


def _key_map(group: str, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Original key -> the parameters of our module it holds, in the order of the original state dict."""
    if group == "predictor":
        before = [("mask_token", "mask_token"), ("predictor_pos_embed", "position_embeddings")]
        before += [(f"predictor_embed.{kind}", f"embed.{kind}") for kind in ("weight", "bias")]
        after = [("predictor_norm", "layernorm"), ("predictor_proj", "proj")]
        blocks = "predictor_blocks"
    else:
        patches = "embeddings.patch_embeddings.projection"
        before = [("pos_embed", "embeddings.position_embeddings")]
        before += [(f"patch_embed.proj.{kind}", f"{patches}.{kind}") for kind in ("weight", "bias")]
        after = [("norm", "layernorm")]
        blocks = "blocks"
    for source, name in before:
        yield source, (name,)
    for index in range(depth):
        for source, names in _BLOCK.items():
            for kind in ("weight", "bias"):
                yield (
                    f"{blocks}.{index}.{source}.{kind}",
                    tuple(f"layers.{index}.{name}.{kind}" for name in names),
                )
    for source, name in after:
        for kind in ("weight", "bias"):
            yield f"{source}.{kind}", (f"{name}.{kind}",)


def _key_maps(config: IJepaPreTrainingConfig, groups: Iterable[str] = _GROUPS) -> KeyMaps:
    depths = {"predictor": config.predictor_num_hidden_layers}
    modules = {"ema_encoder": "target_encoder"}
    return {
        group: {
            source: tuple(f"{modules.get(group, group)}.{name}" for name in names)
            for source, names in _key_map(group, depths.get(group, config.encoder_config.num_hidden_layers))
        }
        for group in groups
    }


def _heads(hidden_size: int, depth: int, num_attention_heads: int | None) -> int:
    heads = num_attention_heads or _KNOWN_HEADS.get((hidden_size, depth))
    if heads is None:
        raise ValueError(
            f"The checkpoint has width {hidden_size} and depth {depth}, which is no published size, and shapes do not "
            "tell the number of attention heads: pass `num_attention_heads` (--num-attention-heads)."
        )
    if heads < 1 or hidden_size % heads:
        raise ValueError(f"The width ({hidden_size}) is not divisible by the number of attention heads ({heads}).")
    return heads


def _image_size(
    num_tokens: int, patch_size: tuple[int, int], image_size: int | tuple[int, int] | None
) -> int | tuple[int, int]:
    """The image that `num_tokens` patches cover: square unless the caller says otherwise."""
    if image_size is None:
        side = math.isqrt(num_tokens)
        if side * side != num_tokens:
            raise ValueError(
                f"The position table has {num_tokens} rows, which is no square grid: pass `image_size` as "
                "(height, width) (--image-size HEIGHT WIDTH)."
            )
        image_size = (side * patch_size[0], side * patch_size[1])
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if (height // patch_size[0]) * (width // patch_size[1]) != num_tokens or height % patch_size[0]:
        raise ValueError(
            f"An image of {height}x{width} pixels has {height // patch_size[0]}x{width // patch_size[1]} patches of "
            f"{patch_size}, but the position table has {num_tokens} rows; correct `image_size`."
        )
    return height if height == width else (height, width)


def _infer_encoder(
    groups: Groups, group: str, num_attention_heads: int | None, image_size: int | tuple[int, int] | None
) -> IJepaConfig:
    hidden, channels, *patch = shape_of(groups, group, "patch_embed.proj.weight", 4)
    num_tokens = shape_of(groups, group, "pos_embed", 3)[1]
    depth = count_blocks(groups[group])
    return IJepaConfig(
        hidden_size=hidden,
        num_hidden_layers=depth,
        num_attention_heads=_heads(hidden, depth, num_attention_heads),
        intermediate_size=shape_of(groups, group, "blocks.0.mlp.fc1.weight", 2)[0],
        layer_norm_eps=1e-6,  # the released code's; the in-tree default is 1e-12
        image_size=_image_size(num_tokens, tuple(patch), image_size),
        patch_size=patch[0] if patch[0] == patch[1] else tuple(patch),
        num_channels=channels,
    )


def _infer_config(
    groups: Groups, encoder_config: IJepaConfig, predictor_num_attention_heads: int | None
) -> IJepaPreTrainingConfig:
    hidden = shape_of(groups, "predictor", "predictor_embed.weight", 2)[0]
    intermediate = shape_of(groups, "predictor", "predictor_blocks.0.mlp.fc1.weight", 2)[0]
    depth = count_blocks(groups["predictor"], "predictor_blocks")
    # The released code builds the predictor with as many heads as the encoder.
    heads = predictor_num_attention_heads or encoder_config.num_attention_heads
    return IJepaPreTrainingConfig(
        encoder_config=encoder_config,
        predictor_hidden_size=hidden,
        predictor_num_hidden_layers=depth,
        predictor_num_attention_heads=_heads(hidden, depth, heads),
        predictor_mlp_ratio=mlp_ratio(hidden, intermediate),
    )


@names_file
def convert_ijepa_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    which: Literal["target", "context"] | None = None,
    num_attention_heads: int | None = None,
    predictor_num_attention_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Converts an original I-JEPA training checkpoint into a release: the encoder at the root in its in-tree format,
    the whole composite under `pretraining/`. Position tables are copied, not recomputed: the target encoder's drifts
    during training. Weights stay memory-mapped until they are written.

    What people keep of such files is read too: one encoder, under its name, within `state_dict` or `model`, or as the
    whole file; keys behind `module.`, `_orig_mod.` and `backbone.`; half precision, which becomes float32. Without a
    predictor the release has one floor, with one encoder beside it both of the composite are that one.

    Args:
        path (`str` or `PathLike`): the `.pth.tar` file.
        output_dir (`str` or `PathLike`): the folder to write.
        which (`str`, *optional*): the encoder at the root; by default `"target"`, the one that the paper evaluates, or
            the only one of the file. (The `facebook/ijepa_*` repositories hold the context encoder.)
        num_attention_heads (`int`, *optional*): of the encoders; known for the published sizes.
        predictor_num_attention_heads (`int`, *optional*): defaults to the encoders' number, as in the released code.
        image_size (`int` or `(height, width)`, *optional*): in pixels; needed for non-square images only.
        licence (`str`, *optional*): of the checkpoint, for the card. Needed for all but the published files, which are
            CC BY-NC 4.0.
        overwrite (`bool`): replace what is at `output_dir`.

    Returns:
        `output_dir`.

    Raises:
        `UnsafeCheckpointError`: if the file holds anything but tensors and plain values.
        `ValueError`: for a damaged file, a ViT of another kind, missing, extra or mis-shaped keys, an unknown head
            count or licence, or an `output_dir` that exists. Nothing is written in either case.
    """
    check_output(output_dir, overwrite)
    path = Path(path)
    checkpoint = load_original_checkpoint(path)
    expected = "an I-JEPA training checkpoint with 'encoder', 'predictor' and 'target_encoder', or some of these"
    groups, prefixes, is_original = read_groups(checkpoint, _READ, expected)
    refuse_class_token(groups, "I-JEPA")
    dtype = widen(groups)
    group, which = chosen_encoder(groups, which, path)
    # The context encoder's tables are those that no moving average has touched.
    sized = "encoder" if {"encoder", "predictor"} <= groups.keys() else group
    encoder_config = _infer_encoder(groups, sized, num_attention_heads, image_size)
    is_published = (encoder_config.hidden_size, encoder_config.num_hidden_layers) in _KNOWN_HEADS
    licence = licence_of(path, licence, SOURCE_LICENCE, PUBLISHED, is_published)
    if "predictor" not in groups:
        with torch.device("meta"):
            encoder = AutoModel.from_config(encoder_config)
        keys = {group: dict(_key_map(group, encoder_config.num_hidden_layers))}
        load_groups(encoder, {group: groups[group]}, keys, "an I-JEPA encoder")
        return save_converted_encoder(
            encoder, output_dir, family="ijepa", path=path, group=group, content=checkpoint, licence=licence
        )
    config = _infer_config(groups, encoder_config, predictor_num_attention_heads)
    with torch.device("meta"):
        model = IJepaForPreTraining(config)
    load_groups(model, groups, _key_maps(config, groups), "an I-JEPA", twins=_TWINS)
    return save_converted(
        model,
        output_dir,
        checkpoint=checkpoint,
        path=path,
        which=which,
        licence=licence,
        layout={"prefixes": prefixes, "dtype": dtype} if is_original else None,
    )


def export_original_checkpoint(folder: str | os.PathLike, path: str | os.PathLike) -> Path:
    """
    Writes a release (or its `pretraining/` folder) back in the original layout. A file that held state dicts and plain
    values comes back byte for byte (under the same torch version); optimizer and scaler state, which a release does
    not hold, cannot be restored and is named in a warning.

    Args:
        folder (`str` or `PathLike`): the release.
        path (`str` or `PathLike`): the file to write.

    Returns:
        `path`.

    Raises:
        `ValueError`: if the folder holds no whole I-JEPA pretraining model.
    """
    model, layout = load_converted(folder, IJepaForPreTraining)
    if not model.has_target_encoder:
        raise ValueError(
            f"{str(folder)!r} was trained with target={model.config.target!r} and has no target encoder, which the "
            "original layout needs; nothing was written."
        )
    key_maps = _key_maps(model.config, layout["prefixes"] if layout else _GROUPS)
    weights = drop_twins(model.state_dict(), _TWINS, key_maps, composite_folder(folder))
    return write_original(path, original_groups(weights, key_maps), layout, "module.")
