"""Original V-JEPA checkpoints (arXiv 2404.08471) to the two-floor folder of this package, and back."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..models.vjepa.configuration_vjepa import VJepaConfig
from ..models.vjepa.modeling_vjepa import VJepaModel, in_tree_obstacles
from ..models.vjepa.modeling_vjepa_pretraining import VJepaForPreTraining
from .key_maps import (
    composite_folder,
    convert_groups,
    drop_twins,
    load_converted,
    load_groups,
    original_groups,
    read_layout,
    save_converted,
    save_converted_encoder,
    write_original,
)
from .key_maps_vjepa import key_maps
from .original_files import load_original_checkpoint
from .original_vjepa import (
    VideoCheckpoint,
    clip_of_table,
    infer_config,
    is_published_size,
    sort_checkpoint,
    stack_mask_tokens,
    unstack_mask_tokens,
)
from .reading import Groups, check_output, chosen_encoder, licence_of, names_file
from .vjepa_probe import convert_probe, export_probe, holds_probe, is_probe

logger = logging.get_logger(__name__)

Which = Literal["target", "context"]

# The licence of the released code's repository, which covers the weights.
SOURCE_LICENCE = "cc-by-nc-4.0"

_NAMES = {"vjepa_pretraining": "a V-JEPA", "vjepa2_pretraining": "a V-JEPA 2"}
# What the files of the released code's repository are called.
PUBLISHED = {"vitl16.pth.tar", "vith16.pth.tar", "vith16-384.pth.tar"}
PUBLISHED_PROBES = {f"{name}-probe.pth.tar" for name in ("k400", "ssv2", "in1k", "places", "inat")}

# The state dicts of a training file of the released code.
_GROUPS = ("encoder", "predictor", "target_encoder")
_TWINS = (("encoder", "target_encoder"),)
# V-JEPA has a mask token per recipe of masks, 2 in all releases; V-JEPA 2 files have 6 or more, and stale tables.
_MOST_MASK_TOKENS = 4


@names_file
def convert_vjepa_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    which: Which | None = None,
    num_attention_heads: int | None = None,
    predictor_num_attention_heads: int | None = None,
    image_size: int | None = None,
    num_frames: int | None = None,
    encoder: str | os.PathLike | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Converts an original V-JEPA checkpoint into a release: one encoder and the predictor at the root, the whole
    composite under `pretraining/`. In-tree transformers has no model with sine-cosine positions, so the root is a
    [`VJepaModel`], which needs `import hf_jepa`. The position tables are copied, not recomputed; the clip's size is
    read off them. A probe file (`classifier`) becomes a [`VJepaForVideoClassification`].

    Args:
        path (`str` or `PathLike`): the `.pth.tar` file.
        output_dir (`str` or `PathLike`): the folder to write.
        which (`str`, *optional*): the encoder at the root; by default `"target"`, which the paper evaluates, or the
            only encoder of the file.
        num_attention_heads (`int`, *optional*): of the encoders, or of a probe; known for the published sizes.
        predictor_num_attention_heads (`int`, *optional*): defaults to the encoders' number, as in the released code.
        image_size, num_frames (`int`, *optional*): checked against the position table where given.
        encoder (`str` or `PathLike`, *optional*): for a probe file: the converted release, or repository, that holds
            the encoder that the probe was trained on.
        licence (`str`, *optional*): of the checkpoint, for the card. Needed for all but the published files, which are
            CC BY-NC 4.0.
        overwrite (`bool`): replace what is at `output_dir`.

    Returns:
        `output_dir`.

    Raises:
        `UnsafeCheckpointError`: if the file holds anything but tensors and plain values.
        `ValueError`: for a damaged file or one of another family, missing, extra or mis-shaped keys, an unknown head
            count or licence, or an `output_dir` that exists. Nothing is written in either case.
    """
    check_output(output_dir, overwrite)
    path = Path(path)
    content = load_original_checkpoint(path)
    if holds_probe(content):
        licence = licence_of(path, licence, SOURCE_LICENCE, PUBLISHED_PROBES, True)
        return convert_probe(content, path, output_dir, encoder, num_attention_heads, licence)
    refuse_encoder(encoder)
    checkpoint = sort_checkpoint(content)
    faults = stack_mask_tokens(checkpoint.groups)
    num_mask_tokens = len(checkpoint.groups.get("predictor", {}).get("mask_tokens", ()))
    if "pos_embed" not in checkpoint.encoder or num_mask_tokens > _MOST_MASK_TOKENS:
        found = "no position table" if "pos_embed" not in checkpoint.encoder else f"{num_mask_tokens} mask tokens"
        raise ValueError(f"{path.name!r} has {found}, so it is no V-JEPA 1 checkpoint: convert it as `vjepa2`.")
    clip = clip_of_table(checkpoint.encoder)
    for name, field, given in (("image_size", "crop_size", image_size), ("num_frames", "frames_per_clip", num_frames)):
        if given not in (None, clip[field]):
            flag = f"`{name}` (--{name.replace('_', '-')})"
            raise ValueError(f"The position table says that {flag} is {clip[field]}, not {given}; leave it out.")
    config = infer_config(
        checkpoint,
        "1",
        clip,
        num_attention_heads=num_attention_heads,
        predictor_num_attention_heads=predictor_num_attention_heads,
    )
    licence = licence_of(path, licence, SOURCE_LICENCE, PUBLISHED, is_published_size(config))
    model = empty_model(VJepaForPreTraining, config)
    return convert_sorted(
        checkpoint, model, path, output_dir, which, licence, faults=faults, sampling={"frame_step": 4}
    )


def refuse_encoder(encoder: str | os.PathLike | None) -> None:
    """Refuses the argument that goes with probe files only."""
    if encoder is not None:
        raise ValueError("`encoder` (--encoder) goes with probe files; this one has encoders of its own.")


def empty_model(model_class: type[VJepaForPreTraining], encoder_config: VJepaConfig, **kwargs: Any) -> PreTrainedModel:
    """A composite without weights; `kwargs` are other fields of its config."""
    with torch.device("meta"):
        return model_class(model_class.config_class(encoder_config=encoder_config, **kwargs))


def convert_sorted(
    checkpoint: VideoCheckpoint,
    model: VJepaForPreTraining,
    path: Path,
    output_dir: str | os.PathLike,
    which: Which | None,
    licence: str,
    *,
    faults: list[str],
    sampling: dict[str, Any],
    unused: Groups | None = None,
) -> Path:
    """
    What the converters of all generations share, once the sizes are known. A file with one encoder gives a composite
    with two equal ones.

    Args:
        checkpoint ([`VideoCheckpoint`]): with stacked mask tokens and without stale tables.
        model ([`VJepaForPreTraining`]): an [`empty_model`].
        path, output_dir, which, licence: as in [`convert_vjepa_checkpoint`].
        faults (`list[str]`): that the caller has found.
        sampling (`dict`): `frame_step` or `fps` of the training clips, for the card.
        unused (*optional*): the stale tables.

    Raises:
        `ValueError`: naming every fault; nothing was written.
    """
    group, which = chosen_encoder(checkpoint.groups, which, path)
    name, faults = _NAMES[model.config.model_type], checkpoint.faults + faults
    config = model.config.encoder_config
    if "predictor" not in checkpoint.groups:
        if unused:
            logger.warning(f"Not kept of {path.name!r}: the position tables, which its model does not read.")
        return _convert_encoder(checkpoint, config, group, path, output_dir, name, licence, faults, sampling)
    load_groups(model, checkpoint.groups, key_maps(config, checkpoint.groups), name, faults, _TWINS)
    return save_converted(
        model,
        output_dir,
        checkpoint=checkpoint.content,
        path=path,
        which=which,
        licence=licence,
        layout=checkpoint.layout,
        data=sampling,
        unused=unused,
    )


def _convert_encoder(
    checkpoint: VideoCheckpoint,
    config: VJepaConfig,
    group: str,
    path: Path,
    output_dir: str | os.PathLike,
    name: str,
    licence: str,
    faults: list[str],
    sampling: dict[str, Any],
) -> Path:
    """An encoder without a predictor: what stands in for it makes NaN, so that nobody takes it for one."""
    config.has_predictor = False
    with torch.device("meta"):
        model = VJepaModel(config)
    keys = key_maps(config, ["encoder"])["encoder"]
    weights = convert_groups({group: checkpoint.groups[group]}, {group: keys}, model.state_dict(), name, faults)
    weights |= {
        key: torch.full(tensor.shape, torch.nan)
        for key, tensor in model.state_dict().items()
        if key.startswith("predictor.")
    }
    model.load_state_dict(weights, strict=True, assign=True)
    if not in_tree_obstacles(config):
        model = model.export_in_tree()
        model.config.has_predictor = False
    family = {"sincos": "vjepa"}.get(config.position_embedding_type, "vjepa2")
    family = "vjepa2_1" if config.rope_layout == "interleaved" else family
    return save_converted_encoder(
        model,
        output_dir,
        family=family,
        path=path,
        group=group,
        content=checkpoint.content,
        licence=licence,
        data=sampling,
    )


def export_original_checkpoint(folder: str | os.PathLike, path: str | os.PathLike) -> Path:
    """As [`~hf_jepa.conversion.ijepa.export_original_checkpoint`], for V-JEPA; a converted probe goes back too."""
    return export_composite(folder, path, VJepaForPreTraining)


def export_composite(
    folder: str | os.PathLike, path: str | os.PathLike, model_class: type[VJepaForPreTraining]
) -> Path:
    """[`export_original_checkpoint`] for the model of any generation."""
    composite = composite_folder(folder)
    if is_probe(composite):
        return export_probe(composite, path)
    model, layout = load_converted(composite, VJepaForPreTraining)
    if type(model) is not model_class:
        raise ValueError(
            f"{str(composite)!r} holds a {type(model).__name__}; only {model_class.__name__} has this layout."
        )
    unused = read_layout(composite)[1]
    groups = list(layout["prefixes"]) if layout else list(_GROUPS)
    weights = model.state_dict()
    maps = key_maps(model.config.encoder_config, groups)
    originals = original_groups(drop_twins(weights, _TWINS, maps, composite), maps)
    unstack_mask_tokens(originals)
    for group, tensors in unused.items():
        originals[group] |= tensors
    return write_original(path, originals, layout, "module.backbone.")
