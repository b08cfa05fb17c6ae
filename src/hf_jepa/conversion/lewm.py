"""
Published LeWorldModel folders (`weights.pt` and `config.json`, arXiv 2603.19312) to a world model of this package, and
back; SMWM's too, which add an inverse model.

The published config names classes to instantiate, which would run whatever it names: here it is read as plain values,
for the head counts and the dropout that shapes do not tell. What actions mean the folder does not say at all; the
caller has to.
"""

import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig
from transformers.utils import logging

from ..hub.release import save_release
from ..models.latent_world_model import LatentWorldModel, LatentWorldModelConfig
from .key_maps import convert_groups, count_blocks, load_converted, shape_of
from .original_files import load_original_checkpoint, sha256_of
from .reading import check_output, names_file, read_groups

logger = logging.get_logger(__name__)

# Heads of stable-pretraining's named sizes.
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16}
_STATISTICS = {"action_mean", "action_std", "action_low", "action_high", "frameskip", "image_mean", "image_std"}

# Original name -> ours, of one layer; the encoder's are those of transformers 4's ViT.
_ENCODER_LAYER = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}
_PREDICTOR_LAYER = {
    "attn.norm": "attention.norm",
    "attn.to_out.0": "attention.proj",
    "mlp.net.0": "mlp.0",
    "mlp.net.1": "mlp.1",
    "mlp.net.4": "mlp.4",
    "adaLN_modulation.1": "modulation",
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_PATCHES = "encoder.embeddings.patch_embeddings.projection"
# A convolution over one frame, which is a linear layer: the last axis of its weight is left out.
_POINTWISE = "action_encoder.patch_embed.weight"
# Ours has an axis for the tokens of a frame.
_POSITIONS = "predictor.pos_embedding"
_GROUP = "weights"


def lewm_key_map(config: LatentWorldModelConfig) -> dict[str, str]:
    """
    Original key -> the key of our model that holds it, in the order of the original state dict. SMWM's files have the
    same keys, and those of the inverse model.

    Args:
        config ([`LatentWorldModelConfig`]): like the preset `"lewm"` or `"smwm"`.
    """
    return dict(_pairs(config))


def _pairs(config: LatentWorldModelConfig) -> Iterator[tuple[str, str]]:
    for name in ("cls_token", "position_embeddings"):
        yield f"encoder.embeddings.{name}", f"encoder.embeddings.{name}"
    yield from _both(_PATCHES, _PATCHES)
    for index in range(config.encoder_config.num_hidden_layers):
        for source, name in _ENCODER_LAYER.items():
            yield from _both(f"encoder.encoder.layer.{index}.{source}", f"encoder.layers.{index}.{name}")
    yield from _both("encoder.layernorm", "encoder.layernorm")
    yield _POSITIONS, "predictor.position_embeddings"
    yield from _both("predictor.transformer.norm", "predictor.norm")
    for index in range(config.predictor_num_hidden_layers):
        source, name = f"predictor.transformer.layers.{index}", f"predictor.layers.{index}"
        yield f"{source}.attn.to_qkv.weight", f"{name}.attention.qkv.weight"
        for original, ours in _PREDICTOR_LAYER.items():
            yield from _both(f"{source}.{original}", f"{name}.{ours}")
    for original, index in (("patch_embed", 0), ("embed.0", 1), ("embed.2", 3)):
        yield from _both(f"action_encoder.{original}", f"predictor.action_encoder.{index}")
    for original, ours in (("projector", "projector"), ("pred_proj", "prediction_projector")):
        yield from _both(f"{original}.net.0", f"{ours}.0")
        for kind in _BATCH_NORM:
            yield f"{original}.net.1.{kind}", f"{ours}.1.{kind}"
        yield from _both(f"{original}.net.3", f"{ours}.3")
    if config.inverse_dynamics_weight:
        for index in (0, 2, 4):
            yield from _both(f"inverse_model.net.{index}", f"inverse_model.layers.{index}")


def _both(source: str, name: str) -> Iterator[tuple[str, str]]:
    for kind in ("weight", "bias"):
        yield f"{source}.{kind}", f"{name}.{kind}"


def to_ours(weights: dict[str, torch.Tensor], config: LatentWorldModelConfig) -> dict[str, torch.Tensor]:
    """
    Original tensors under our names and in our shapes.

    Args:
        weights (`dict[str, torch.Tensor]`): the original state dict.
        config ([`LatentWorldModelConfig`]): what they are to fit.

    Raises:
        `ValueError`: naming every missing, extra or mis-shaped key.
    """
    with torch.device("meta"):
        expected = LatentWorldModel(config).state_dict()
    keys = lewm_key_map(config)
    weights = dict(weights)
    if weights.get(_POINTWISE, torch.empty(0)).ndim == 3:
        weights[_POINTWISE] = weights[_POINTWISE].squeeze(-1)
    if weights.get(_POSITIONS, torch.empty(0)).ndim == 3:
        weights[_POSITIONS] = weights[_POSITIONS].unsqueeze(2)
    # Counters of the batch norms are integers; all else is of one floating type.
    counters = {key: keys[key] for key in keys if key.endswith("num_batches_tracked")}
    faults = [f"missing: {_GROUP}/{key}" for key in counters if key not in weights]
    found = {name: weights.pop(key) for key, name in counters.items() if key in weights}
    key_map = {key: (name,) for key, name in keys.items() if key not in counters}
    return found | convert_groups({_GROUP: weights}, {_GROUP: key_map}, expected, "a LeWM", faults)


def to_original(model: LatentWorldModel) -> dict[str, torch.Tensor]:
    """The way back of [`to_ours`], in the original order."""
    weights, tensors = model.state_dict(), OrderedDict()
    for key, name in lewm_key_map(model.config).items():
        if name not in weights:
            raise ValueError(f"The model has no {name}, which LeWM's layout needs; nothing was written.")
        tensors[key] = weights.pop(name).contiguous()
    left = [name for name in weights if not name.endswith("global_step")]
    if left:
        raise ValueError(f"LeWM's layout has no place for {', '.join(left)}; nothing was written.")
    tensors[_POINTWISE] = tensors[_POINTWISE].unsqueeze(-1)
    tensors[_POSITIONS] = tensors[_POSITIONS].squeeze(2)
    return tensors


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no {what}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} is no {what}: it holds a {type(values).__name__}.")
    return values


def _read_statistics(path: str | os.PathLike | None, block_size: int) -> dict[str, Any]:
    """
    What the actions mean, as fields of the config. `frameskip` follows from the width of a block.

    Raises:
        `ValueError`: if they are absent or do not fit.
    """
    wanted = "a JSON file with `action_mean` and `action_std` per raw action column of the training data"
    if path is None:
        raise ValueError(
            f"LeWM's folders do not say what actions mean, and nothing can be planned without: pass {wanted} "
            "(--statistics FILE); `action_low`, `action_high`, `image_mean` and `image_std` may be in it too."
        )
    values = _read_json(Path(path), wanted)
    absent = [name for name in ("action_mean", "action_std") if not isinstance(values.get(name), list)]
    unknown = sorted(values.keys() - _STATISTICS)
    if absent or unknown:
        faults = [f"`{name}` is missing" for name in absent] + [f"`{name}` is unknown" for name in unknown]
        raise ValueError(f"{str(path)!r} is not {wanted}: {', '.join(faults)}.")
    columns = len(values["action_mean"])
    frameskip = values.get("frameskip", block_size // max(columns, 1))
    if frameskip * columns != block_size:
        raise ValueError(
            f"{str(path)!r} has {columns} action columns and frameskip {frameskip}, but the model takes {block_size} "
            "numbers per step: statistics are per raw column, before blocks are formed."
        )
    return {**values, "frameskip": frameskip, "action_dim": block_size}


def _infer_config(
    weights: dict[str, torch.Tensor],
    published: dict[str, Any],
    statistics: str | os.PathLike | None,
    num_attention_heads: int | None,
    predictor_num_attention_heads: int | None,
) -> LatentWorldModelConfig:
    groups = {_GROUP: weights}

    def shape(key: str, ndim: int) -> tuple[int, ...]:
        return shape_of(groups, _GROUP, key, ndim)

    encoder, predictor = (published.get(name) or {} for name in ("encoder", "predictor"))
    heads = num_attention_heads or encoder.get("num_attention_heads") or _HEADS.get(encoder.get("size"))
    predictor_heads = predictor_num_attention_heads or predictor.get("heads")
    for name, value in (("num_attention_heads", heads), ("predictor_num_attention_heads", predictor_heads)):
        if not isinstance(value, int) or value < 1:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"`config.json` does not say it and shapes do not tell: pass `{name}` ({flag}).")
    if predictor.get("emb_dropout"):
        logger.warning("The original drops out embeddings in training; this model does not. Plans are the same.")
    hidden, channels, patch, _ = shape(f"{_PATCHES}.weight", 4)
    side = round((shape("encoder.embeddings.position_embeddings", 3)[1] - 1) ** 0.5)
    inner = shape("predictor.transformer.layers.0.attn.to_qkv.weight", 2)[0] // 3
    inverse = "inverse_model.net.0.weight" in weights
    return LatentWorldModelConfig.from_preset(
        "smwm" if inverse else "lewm",
        encoder_config=ViTConfig(
            hidden_size=hidden,
            num_hidden_layers=count_blocks(weights, "encoder.encoder.layer"),
            num_attention_heads=heads,
            intermediate_size=shape("encoder.encoder.layer.0.intermediate.dense.weight", 2)[0],
            image_size=side * patch,
            patch_size=patch,
            num_channels=channels,
        ),
        projector_hidden_size=shape("projector.net.0.weight", 2)[0],
        latent_size=shape("projector.net.3.weight", 2)[0],
        predictor_num_hidden_layers=count_blocks(weights, "predictor.transformer.layers"),
        predictor_num_attention_heads=predictor_heads,
        predictor_head_dim=inner // predictor_heads,
        predictor_intermediate_size=shape("predictor.transformer.layers.0.mlp.net.1.weight", 2)[0],
        predictor_dropout=predictor.get("dropout", 0.1),
        context_frames=shape(_POSITIONS, 3)[1],
        **({"inverse_hidden_size": shape("inverse_model.net.0.weight", 2)[0]} if inverse else {}),
        **_read_statistics(statistics, shape(_POINTWISE, 3)[1]),
    )


@names_file
def convert_lewm_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    statistics: str | os.PathLike | None = None,
    num_attention_heads: int | None = None,
    predictor_num_attention_heads: int | None = None,
    licence: str = "unknown",
    overwrite: bool = False,
) -> Path:
    """
    Converts a published LeWM (or SMWM) folder into a release: the encoder at the root in its in-tree format, the whole
    world model under `pretraining/`, with what its actions mean in its config.

    Args:
        path (`str` or `PathLike`): the folder with `weights.pt` and `config.json`.
        output_dir (`str` or `PathLike`): the folder to write.
        statistics (`str` or `PathLike`): a JSON file with `action_mean` and `action_std` per raw action column, and if
            known `action_low`, `action_high`; `image_mean` and `image_std` if they are not ImageNet's.
        num_attention_heads, predictor_num_attention_heads (`int`, *optional*): if `config.json` does not say.
        licence (`str`): of the checkpoint, for the card.
        overwrite (`bool`): replace what is at `output_dir`.

    Returns:
        `output_dir`.

    Raises:
        `UnsafeCheckpointError`: if `weights.pt` holds anything but tensors and plain values.
        `ValueError`: for a damaged file, missing, extra or mis-shaped keys (all are listed), or statistics that are
            absent or do not fit. Nothing is written in either case.
    """
    check_output(output_dir, overwrite)
    folder = Path(path)
    file = folder / "weights.pt"
    checkpoint = load_original_checkpoint(file)
    published = _read_json(folder / "config.json", "LeWM config")
    groups, *_ = read_groups({_GROUP: checkpoint}, (_GROUP,), "LeWM's state dict")
    heads = num_attention_heads, predictor_num_attention_heads
    config = _infer_config(groups[_GROUP], published, statistics, *heads)
    model = LatentWorldModel(config)
    missing, unexpected = model.load_state_dict(to_ours(groups[_GROUP], config), strict=False)
    if unexpected or not set(missing) <= {"sigreg.global_step"}:
        raise ValueError(f"The converted tensors leave out {missing} and add {unexpected}; nothing was written.")
    results = {
        "model": {"name": Path(output_dir).resolve().name, "family": config.model_type},
        "licence": licence,
        "conversion": {"file": file.name, "sha256": sha256_of(file)},
    }
    return save_release(model.eval(), output_dir, results=results)


def export_original_checkpoint(folder: str | os.PathLike, path: str | os.PathLike) -> Path:
    """
    Writes a release back as LeWM's `weights.pt`, every tensor as it was.

    Args:
        folder (`str` or `PathLike`): the release.
        path (`str` or `PathLike`): the file to write.

    Returns:
        `path`.

    Raises:
        `ValueError`: if the folder holds no world model of LeWM's parts.
    """
    model, _ = load_converted(folder, LatentWorldModel)
    config = model.config
    if config.predictor_type != "transformer" or model.projector is None or config.encoder_config.model_type != "vit":
        raise ValueError(f"{str(folder)!r} is not built like LeWM (ViT, projector, transformer); nothing was written.")
    path, tensors = Path(path), to_original(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as temporary:
        torch.save(tensors, Path(temporary) / path.name)
        os.replace(Path(temporary) / path.name, path)
    return path
