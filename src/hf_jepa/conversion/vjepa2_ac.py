"""Original V-JEPA 2-AC checkpoints (arXiv 2506.09985) to a world model of this package, and back."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlavaOnevisionVideoProcessor
from transformers.utils import logging

from ..hub.release import save_whole
from ..models.vjepa.configuration_vjepa import VJepaConfig
from ..models.vjepa2_ac.configuration_vjepa2_ac import VJepa2ACConfig
from ..models.vjepa2_ac.modeling_vjepa2_ac import VJepa2ACModel
from .key_maps import (
    KeyMaps,
    composite_folder,
    conversion_results,
    count_blocks,
    load_converted,
    load_groups,
    mlp_ratio,
    original_groups,
    read_layout,
    shape_of,
    write_layout,
    write_original,
)
from .key_maps_vjepa import block_keys, key_maps, paired_keys
from .original_files import describe_layout, load_original_checkpoint
from .original_vjepa import (
    VideoCheckpoint,
    encoder_fields,
    is_published_size,
    number_of_heads,
    sort_checkpoint,
    take_tables,
)
from .reading import Groups, check_output, licence_of, names_file
from .vjepa import Which

logger = logging.get_logger(__name__)

# Of the released code's repository, which covers the weights.
SOURCE_LICENCE = "mit"
PUBLISHED = {"vjepa2-ac-vitg.pt"}
_CONDITIONS = ("action_encoder", "state_encoder", "extrinsics_encoder")
_GROUP_OF = {"target": "target_encoder", "context": "encoder"}


def _predictor_keys(config: VJepa2ACConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Original key -> parameters of our predictor, in the order of the original state dict."""
    yield from paired_keys(("predictor_embed", "embed"))
    yield from paired_keys(*((name, f"{name}.{config.embodiments[0]}") for name in _CONDITIONS))
    yield from block_keys(config, "predictor_blocks", config.num_hidden_layers)
    yield from paired_keys(("predictor_norm", "layernorm"), ("predictor_proj", "proj"))


def ac_key_maps(config: VJepa2ACConfig, group: str) -> KeyMaps:
    """Where the tensors of a file go: the predictor's, and those of the encoder in `group`."""
    encoder = key_maps(config.encoder_config, ["encoder"])["encoder"]
    return {
        group: {source: tuple(f"encoder.{name}" for name in names) for source, names in encoder.items()},
        "predictor": {
            source: tuple(f"predictor.{name}" for name in names) for source, names in _predictor_keys(config)
        },
    }


@names_file
def convert_vjepa2_ac_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    which: Which | None = None,
    num_attention_heads: int | None = None,
    predictor_num_attention_heads: int | None = None,
    image_size: int | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Converts an original V-JEPA 2-AC checkpoint into a folder that `AutoModel.from_pretrained` loads as a
    [`VJepa2ACModel`] after `import hf_jepa`. Its video processor squeezes frames into the square and normalises them;
    training first cut the middle out of 16:9 frames, 1.35 times as wide as high, which is the caller's to do.

    A file does not tell whether it was trained with extrinsics: the released one was not. Load another with
    `AutoModel.from_pretrained(folder, use_extrinsics=True)`.

    Args:
        path (`str` or `PathLike`): the `.pt` file.
        output_dir (`str` or `PathLike`): the folder to write.
        which (`str`, *optional*): the frozen encoder; by default `"target"`, on whose latents the predictor was
            trained, or the only one of the file. In the released file both are one. Another `"context"` encoder is
            kept for the way back.
        num_attention_heads, predictor_num_attention_heads (`int`, *optional*): known for the published sizes.
        image_size (`int`, *optional*): in pixels, 256 by default; weights with rotary positions do not tell.
        licence (`str`, *optional*): of the checkpoint, for the card. Needed for all but the published file, which is
            under MIT.
        overwrite (`bool`): replace what is at `output_dir`.

    Returns:
        `output_dir`.

    Raises:
        `UnsafeCheckpointError`: if the file holds anything but tensors and plain values.
        `ValueError`: for a damaged file or one of another family, missing, extra or mis-shaped keys (all are listed),
            or an unknown head count. Nothing is written in either case.
    """
    check_output(output_dir, overwrite)
    path = Path(path)
    checkpoint = sort_checkpoint(load_original_checkpoint(path))
    if "action_encoder.weight" not in checkpoint.groups.get("predictor", {}):
        raise ValueError(f"{path.name!r} has no action encoder, so it is no V-JEPA 2-AC file: convert it as `vjepa2`.")
    held = [name for name in _GROUP_OF.values() if name in checkpoint.groups]
    group = _GROUP_OF[which] if which else next(iter(held), None)
    if group is None:
        raise ValueError(f"{path.name!r} has neither 'encoder' nor 'target_encoder', which the released code writes.")
    if group not in held:
        raise ValueError(f"{path.name!r} has no {which} encoder; leave out `which` (--which).")
    tables = take_tables(checkpoint.groups)
    config = _infer_config(checkpoint, group, image_size or 256, num_attention_heads, predictor_num_attention_heads)
    licence = licence_of(path, licence, SOURCE_LICENCE, PUBLISHED, is_published_size(config.encoder_config))
    with torch.device("meta"):
        model = VJepa2ACModel(config)
    unused = {name: dict(stale) for name, stale in tables.items()}
    groups, faults = dict(checkpoint.groups), list(checkpoint.faults)
    for other in set(held) - {group}:
        twin = groups.pop(other)
        if not _same(twin, checkpoint.groups[group]):
            logger.warning(
                f"`{other}` of {path.name!r} is another encoder than `{group}`: kept for the way back only."
            )
            unused[other] = twin | unused.get(other, {})
    load_groups(model, groups, ac_key_maps(config, group), "a V-JEPA 2-AC", faults)
    results = conversion_results(output_dir, path, config.model_type, licence) | {"data": {"fps": 4}}
    layout = None
    if checkpoint.is_original:
        layout = describe_layout(checkpoint.content, checkpoint.prefixes, path)
        layout |= checkpoint.layout | {"encoder_group": group}
    # Frames are squeezed into the square, not cropped to it, which V-JEPA 2's own processor cannot do.
    side = {"height": config.encoder_config.crop_size, "width": config.encoder_config.crop_size}
    processor = LlavaOnevisionVideoProcessor(size=side, image_mean=config.image_mean, image_std=config.image_std)
    return save_whole(
        model,
        output_dir,
        results=results,
        processor=processor,
        finish=lambda folder: write_layout(folder, layout, unused),
    )


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _infer_config(
    checkpoint: VideoCheckpoint,
    group: str,
    image_size: int,
    num_attention_heads: int | None,
    predictor_num_attention_heads: int | None,
) -> VJepa2ACConfig:
    groups = checkpoint.groups
    clip = {"crop_size": image_size, "frames_per_clip": 64}
    encoder = encoder_fields(groups[group], clip, num_attention_heads)
    hidden, latent = shape_of(groups, "predictor", "predictor_embed.weight", 2)
    widths = {f"{name}.weight": shape_of(groups, "predictor", f"{name}.weight", 2)[1] for name in _CONDITIONS}
    action, state, extrinsics = widths.values()
    return VJepa2ACConfig(
        encoder_config=VJepaConfig(**encoder),
        latent_size=latent,
        hidden_size=hidden,
        num_hidden_layers=count_blocks(groups["predictor"], "predictor_blocks"),
        num_attention_heads=number_of_heads(
            hidden, {1024: 16}.get(hidden), predictor_num_attention_heads, "predictor_num_attention_heads"
        ),
        mlp_ratio=mlp_ratio(hidden, shape_of(groups, "predictor", "predictor_blocks.0.mlp.fc1.weight", 2)[0]),
        qkv_bias="predictor_blocks.0.attn.qkv.bias" in groups["predictor"],
        action_dim=action,
        state_dim=state,
        extrinsics_dim=extrinsics,
    )


def export_original_checkpoint(folder: str | os.PathLike, path: str | os.PathLike) -> Path:
    """
    As [`~hf_jepa.conversion.ijepa.export_original_checkpoint`], for any saved [`VJepa2ACModel`] on a `vjepa` encoder.
    """
    model, layout = load_converted(folder, VJepa2ACModel)
    config = model.config
    if config.encoder_config.model_type != "vjepa":
        raise ValueError(
            f"The original layout has no place for an encoder of type {config.encoder_config.model_type!r}."
        )
    group = layout["encoder_group"] if layout else "encoder"
    originals: Groups = original_groups(model.state_dict(), ac_key_maps(config, group))
    unused = read_layout(composite_folder(folder))[1]
    for name in layout["prefixes"] if layout else ():
        if name not in originals:
            # A twin shares no memory with the other: torch.save would write the tensors once.
            other = unused.get(name, {})
            twin = {key: tensor.clone() for key, tensor in originals[group].items()}
            originals[name] = other if other.keys() >= twin.keys() else twin | other
        else:
            originals[name] |= unused.get(name, {})
    return write_original(path, originals, layout, "module.")
