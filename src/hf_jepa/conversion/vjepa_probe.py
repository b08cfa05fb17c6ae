"""Original attentive probes of V-JEPA and V-JEPA 2 to video classifiers of this package, and back.

A probe file holds a pooler and a linear layer, not the frozen encoder they were trained on: V-JEPA 1 under
`classifier`, V-JEPA 2 in a list under `classifiers`, of which the released evaluation reads the first.
"""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import VJEPA2ForVideoClassification

from ..hub.release import save_video_classifier
from ..models.vjepa.modeling_vjepa import VJepaModel
from ..models.vjepa.modeling_vjepa_classification import VJepaForVideoClassification
from .key_maps import (
    KeyMaps,
    convert_groups,
    count_blocks,
    original_groups,
    read_layout,
    shape_of,
    write_layout,
    write_original,
)
from .original_files import describe_layout, first_of_list, sha256_of
from .reading import find_groups, read_groups, widen

_V1, _V2 = "classifier", first_of_list("classifiers")
# The probes of every published V-JEPA 2 size; V-JEPA 1's have as many heads as the encoder.
_V2_HEADS = 16

_CROSS = {
    "norm1": ("layer_norm1",),
    "xattn.q": ("cross_attn.q_proj",),
    "xattn.kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "xattn.proj": ("cross_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_SELF = {
    "norm1": ("layer_norm1",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}


def _find_probe(content: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The probe of a file by its group, a list's first included, and whether the file has the released layout."""
    found, is_original = find_groups(content, ("classifier", "classifiers"), "")
    if "classifiers" in found:
        heads = found["classifiers"]
        if isinstance(heads, list):
            heads = heads[0] if heads else None
        return {_V2: heads}, is_original and isinstance(found["classifiers"], list)
    if "classifier" in found:
        return {_V1: found["classifier"]}, is_original
    bare = found.get("", {})
    if "pooler.query_tokens" not in bare:
        return {}, False
    return {_V1 if "pooler.cross_attention_block.xattn.proj.weight" in bare else _V2: bare}, False


def holds_probe(content: dict[str, Any]) -> bool:
    """Whether a file is a probe's: as the released code writes it, or its state dict alone."""
    return "classifier" in content or "classifiers" in content or bool(_find_probe(content)[0])


def is_probe(folder: Path) -> bool:
    """Whether a folder holds a video classifier, ours or in-tree V-JEPA 2's."""
    config = folder / "config.json"
    architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.is_file() else None
    return architectures in ([VJepaForVideoClassification.__name__], [VJEPA2ForVideoClassification.__name__])


def _block_keys(source: str, name: str, block: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for layer, parts in block.items():
        for kind in ("weight", "bias"):
            yield f"{source}.{layer}.{kind}", tuple(f"{name}.{part}.{kind}" for part in parts)


def _keys(group: str, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Original key -> the parameters of [`VJepaForVideoClassification`] it holds, in the original order."""
    yield "pooler.query_tokens", ("pooler.query_tokens",)
    # V-JEPA 1 stores an output projection that its forward pass never uses, V-JEPA 2 has none.
    cross = _CROSS if group == _V1 else {layer: parts for layer, parts in _CROSS.items() if layer != "xattn.proj"}
    yield from _block_keys("pooler.cross_attention_block", "pooler.cross_attention_layer", cross)
    for index in range(depth):
        yield from _block_keys(f"pooler.blocks.{index}", f"pooler.self_attention_layers.{index}", _SELF)
    for kind in ("weight", "bias"):
        yield f"linear.{kind}", (f"classifier.{kind}",)


def convert_probe(
    content: dict[str, Any],
    path: Path,
    output_dir: str | os.PathLike,
    encoder: str | os.PathLike | None,
    num_attention_heads: int | None,
    licence: str,
) -> Path:
    """
    Converts a probe file into a [`VJepaForVideoClassification`] with the encoder that it was trained on.

    Args:
        content (`dict`), path (`Path`): the file, read, and where it lies.
        output_dir (`str` or `PathLike`): the folder to write.
        encoder (`str` or `PathLike`): a converted release, or a repository of in-tree `vjepa2`.
        num_attention_heads (`int`, *optional*): of the probe; by default 16, for V-JEPA 1 the encoder's number.
        licence (`str`): of the probe, for the card.

    Returns:
        `output_dir`.

    Raises:
        `ValueError`: without `encoder`, for an encoder of another width or generation, a probe of several queries,
            and for missing, extra or mis-shaped keys (all are listed). Nothing is written.
    """
    if encoder is None:
        raise ValueError(
            f"{path.name!r} holds a probe without its encoder: pass `encoder` (--encoder), a converted release of the "
            "checkpoint that the probe was trained on, or its repository."
        )
    found, is_original = _find_probe(content)
    ((group, head),) = found.items()
    if not isinstance(head, dict):
        raise ValueError(f"`classifiers` of {path.name!r} must be a list of state dicts.")
    groups, prefixes, _ = read_groups({group: head}, [group], "an attentive probe")
    dtype = widen(groups)
    _, num_queries, width = shape_of(groups, group, "pooler.query_tokens", 3)
    if num_queries != 1:
        raise ValueError(
            f"{path.name!r} is a probe of {num_queries} queries (action anticipation); a classifier has one."
        )
    backbone = VJepaModel.from_pretrained(str(encoder))
    generation_1 = backbone.config.position_embedding_type == "sincos"
    faults = []
    if backbone.config.hidden_size != width:
        faults.append(f"the probe is of width {width}, the encoder {str(encoder)!r} of {backbone.config.hidden_size}")
    if generation_1 != (group == _V1):
        found = ("V-JEPA 1", "V-JEPA 2") if group == _V1 else ("V-JEPA 2", "V-JEPA 1")
        faults.append(f"the probe is one of {found[0]}, the encoder {str(encoder)!r} is of {found[1]}")
    if faults:
        raise ValueError(f"{path.name!r} does not fit its encoder: {'; '.join(faults)}.")

    config = copy.deepcopy(backbone.config)
    config.num_labels = shape_of(groups, group, "linear.weight", 2)[0]
    config.num_pooler_layers = count_blocks(groups[group], r"pooler\.blocks")
    known_heads = config.num_attention_heads if generation_1 else _V2_HEADS
    config.pooler_num_attention_heads = num_attention_heads or known_heads
    if width % config.pooler_num_attention_heads:
        raise ValueError(
            f"The probe's width ({width}) is not divisible by {config.pooler_num_attention_heads} attention heads: "
            "pass `num_attention_heads` (--num-attention-heads)."
        )
    with torch.device("meta"):
        model = VJepaForVideoClassification(config)
    key_maps: KeyMaps = {group: dict(_keys(group, config.num_pooler_layers))}
    weights = convert_groups(groups, key_maps, model.state_dict(), "an attentive probe")
    weights |= {f"vjepa2.{name}": tensor for name, tensor in backbone.state_dict().items()}
    model.load_state_dict(weights, strict=True, assign=True)

    # A folder's place on this machine is nobody's business.
    source = Path(encoder).resolve().name if Path(encoder).is_dir() else str(encoder)
    results = {
        "model": {"name": Path(output_dir).resolve().name, "encoder_source": source},
        "licence": licence,
        "source_licence": licence,
        "conversion": {"file": path.name, "sha256": sha256_of(path)},
    }
    layout = None
    if is_original:
        layout = describe_layout(content, [group], path) | {"prefixes": prefixes, "dtype": dtype}
    return save_video_classifier(
        model, output_dir, results=results, finish=lambda folder: write_layout(folder, layout)
    )


def export_probe(folder: Path, path: str | os.PathLike) -> Path:
    """
    Writes a classifier's probe back in the original layout, without its encoder.

    Args:
        folder (`Path`): the release.
        path (`str` or `PathLike`): the file to write.

    Returns:
        `path`.

    Raises:
        `ValueError`: if the folder holds no whole classifier.
    """
    model = VJepaForVideoClassification.from_pretrained(folder)
    group = _V1 if model.config.position_embedding_type == "sincos" else _V2
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vjepa2.")}
    groups = original_groups(weights, {group: dict(_keys(group, model.config.num_pooler_layers))})
    return write_original(path, groups, read_layout(folder)[0], "module.")
