"""
Original V-JEPA 2 (arXiv 2506.09985) and V-JEPA 2.1 (arXiv 2603.14482) checkpoints to the two-floor folder of this
package, and back.
"""

import os
import re
from pathlib import Path
from typing import Literal

from ..models.vjepa.modeling_vjepa_pretraining import VJepa2ForPreTraining
from .original_files import load_original_checkpoint
from .original_vjepa import (
    VideoCheckpoint,
    infer_config,
    is_published_size,
    sort_checkpoint,
    stack_mask_tokens,
    take_tables,
)
from .reading import check_output, licence_of, names_file
from .vjepa import Which, convert_sorted, empty_model, export_composite, refuse_encoder
from .vjepa_probe import convert_probe, holds_probe

# Of the released code's repository. The model cards of facebook/vjepa2-* say apache-2.0.
SOURCE_LICENCE = "mit"
# What the published files are called.
PUBLISHED = re.compile(r"(vit[lhg](-384)?|vjepa2_1_vit\w+)\.pt$")
PUBLISHED_PROBE = re.compile(r"(ssv2|diving48|k400|coin|jester|in1k|ek100)-vit[lhg][\w-]*\.pt$")


@names_file
def convert_vjepa2_checkpoint(
    path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    which: Which | None = None,
    generation: Literal["2", "2.1"] | None = None,
    num_attention_heads: int | None = None,
    predictor_num_attention_heads: int | None = None,
    image_size: int | None = None,
    num_frames: int = 64,
    hierarchical_layers: list[int] | None = None,
    encoder: str | os.PathLike | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Converts an original V-JEPA 2 or 2.1 checkpoint into a release: one encoder and the predictor at the root, the
    whole composite under `pretraining/`. The root of V-JEPA 2 is an in-tree `VJEPA2Model`, for plain transformers;
    V-JEPA 2.1, which in-tree does not have, is a [`VJepaModel`], which needs `import hf_jepa`.

    The position tables that V-JEPA 2 files hold and their models do not read are kept for the way back only. A probe
    file (`classifiers`, of which the first is taken) becomes a [`VJepaForVideoClassification`].

    Args:
        path (`str` or `PathLike`): the `.pt` file.
        output_dir (`str` or `PathLike`): the folder to write.
        which (`str`, *optional*): the encoder at the root; by default `"target"`, which the papers evaluate, or the
            only encoder of the file. (The `facebook/vjepa2-*` repositories probably hold the context encoder.)
        generation (`"2"` or `"2.1"`, *optional*): names tell it, but for a V-JEPA 2 file with position tables and at
            most two mask tokens, which looks like V-JEPA 1.
        num_attention_heads (`int`, *optional*): of the encoders, or of a probe; known for the published sizes.
        predictor_num_attention_heads (`int`, *optional*): 12 for the published width.
        image_size (`int`, *optional*): in pixels, for the config and the processor; weights with rotary positions do
            not tell. By default 384 where the file's name says so, else 256.
        num_frames (`int`): of a clip, for the config and the card.
        hierarchical_layers (`list[int]`, *optional*): V-JEPA 2.1: the supervised blocks, counted from 0; known for
            the published depths.
        encoder (`str` or `PathLike`, *optional*): for a probe file: the converted release, or repository, that holds
            the encoder that the probe was trained on.
        licence (`str`, *optional*): of the checkpoint, for the card. Needed for all but the published files, which are
            under MIT.
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
        licence = licence_of(path, licence, SOURCE_LICENCE, [path.name] * bool(PUBLISHED_PROBE.match(path.name)), True)
        return convert_probe(content, path, output_dir, encoder, num_attention_heads, licence)
    refuse_encoder(encoder)
    if generation not in (None, "2", "2.1"):
        raise ValueError(f'`generation` (--generation) must be "2" or "2.1", got {generation!r}.')
    checkpoint = sort_checkpoint(content)
    faults = stack_mask_tokens(checkpoint.groups)
    generation = generation or _generation_of(checkpoint, path)
    tables = take_tables(checkpoint.groups)
    config = infer_config(
        checkpoint,
        generation,
        {"crop_size": image_size or (384 if "384" in path.name else 256), "frames_per_clip": num_frames},
        num_attention_heads=num_attention_heads,
        predictor_num_attention_heads=predictor_num_attention_heads,
        hierarchical_layers=hierarchical_layers,
    )
    is_published = is_published_size(config)
    licence = licence_of(path, licence, SOURCE_LICENCE, [path.name] * bool(PUBLISHED.match(path.name)), is_published)
    # The weight of V-JEPA 2.1's loss on visible tokens, where the predictor has a head for them.
    model = empty_model(VJepa2ForPreTraining, config, context_loss_weight=0.5 if config.pred_context_output else 0.0)
    return convert_sorted(
        checkpoint, model, path, output_dir, which, licence, faults=faults, sampling={"fps": 4}, unused=tables
    )


def _generation_of(checkpoint: VideoCheckpoint, path: Path) -> Literal["2", "2.1"]:
    predictor = checkpoint.groups.get("predictor", {})
    if "action_encoder.weight" in predictor:
        raise ValueError(f"{path.name!r} has an action-conditioned predictor: it is a V-JEPA 2-AC checkpoint.")
    if any(key.startswith("norms_block.") for key in checkpoint.encoder):
        return "2.1"
    num_mask_tokens = len(predictor.get("mask_tokens", ()))
    if "pos_embed" in checkpoint.encoder and num_mask_tokens <= 2:
        raise ValueError(
            f"{path.name!r} has a position table and {num_mask_tokens} mask tokens, as V-JEPA 1 has: convert it as "
            '`vjepa`, or say that it is V-JEPA 2 with `generation="2"` (--generation 2).'
        )
    return "2"


def export_original_checkpoint(folder: str | os.PathLike, path: str | os.PathLike) -> Path:
    """
    As [`~hf_jepa.conversion.vjepa.export_original_checkpoint`], for V-JEPA 2 and 2.1. Position tables that
    the file held are written again, although no model reads them.
    """
    return export_composite(folder, path, VJepa2ForPreTraining)
