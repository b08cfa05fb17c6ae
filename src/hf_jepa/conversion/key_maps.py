"""Between original training checkpoints and this package's models: every key accounted for, both ways."""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import logging

from ..hub.release import load_pretraining, save_encoder, save_release
from .original_files import describe_layout, sha256_of, write_original_checkpoint
from .reading import Groups, holds_tensors, listed

logger = logging.get_logger(__name__)

LAYOUT_FILE = "original_checkpoint.json"
_MOST_FAULTS = 10

# Group -> original key -> the parameters of our model that it holds; several are joined along the first dimension.
KeyMaps = dict[str, dict[str, tuple[str, ...]]]
# Tensors of the original file that no model of ours uses, beside the layout, for the way back.
UNUSED_FILE = "original_unused.safetensors"


def shape_of(groups: Groups, group: str, key: str, ndim: int) -> tuple[int, ...]:
    """
    The shape of a tensor that a size is read off.

    Raises:
        `ValueError`: if it is missing or has another number of dimensions.
    """
    tensor = groups[group].get(key)
    if tensor is None or tensor.ndim != ndim:
        found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
        raise ValueError(
            f"`{group}`: {key!r} {found}; a tensor of {ndim} dimensions is needed to infer the model's size."
        )
    return tuple(tensor.shape)


def count_blocks(tensors: dict[str, torch.Tensor], blocks: str = "blocks") -> int:
    """
    One more than the highest number in keys such as `blocks.7.norm1.weight`.

    Raises:
        `ValueError`: for a number that so few tensors cannot have come to.
    """
    indices = [int(match[1]) for key in tensors if (match := re.match(rf"{blocks}\.(\d{{1,9}})\.", key))]
    count = max(indices, default=-1) + 1
    if count > len(tensors):
        raise ValueError(f"The checkpoint has a `{blocks}.{count - 1}`, but {len(tensors)} tensors in all.")
    return count


def mlp_ratio(hidden_size: int, intermediate_size: int) -> float:
    """The ratio that gives an MLP's width back when a model multiplies by it and cuts."""
    ratio = intermediate_size / hidden_size
    return ratio if int(hidden_size * ratio) == intermediate_size else math.nextafter(ratio, math.inf)


def convert_groups(
    groups: Groups, key_maps: KeyMaps, expected: dict[str, torch.Tensor], what: str, faults: Iterable[str] = ()
) -> dict[str, torch.Tensor]:
    """
    Original tensors under our names. Collects every fault before it raises, so that one run names them all.

    Args:
        groups: of the checkpoint.
        key_maps: the original keys, and where they go.
        expected (`dict[str, torch.Tensor]`): our model's state dict; only shapes are read, so it may be on `meta`.
        what (`str`): the model in words, for the message.
        faults (`Iterable[str]`): what the caller has found already.

    Returns:
        `dict[str, torch.Tensor]`: a state dict of our model. Tensors that were not joined are not copied.

    Raises:
        `ValueError`: naming every missing, extra or mis-shaped key.
    """
    converted: dict[str, torch.Tensor] = {}
    faults = list(faults)
    for group, key_map in key_maps.items():
        tensors = dict(groups[group])
        for source, names in key_map.items():
            tensor = tensors.pop(source, None)
            if tensor is None:
                faults.append(f"missing: {group}/{source}")
                continue
            shape = list(expected[names[0]].shape)
            shape[0] *= len(names)
            if list(tensor.shape) != shape:
                faults.append(f"mis-shaped: {group}/{source} is {tuple(tensor.shape)}, expected {tuple(shape)}")
                continue
            # Parts of a fused tensor share its storage, which safetensors cannot write: those alone are copied.
            parts = [part.clone() for part in tensor.chunk(len(names))] if len(names) > 1 else [tensor]
            converted |= dict(zip(names, parts, strict=True))
        faults += [f"extra: {group}/{key}" for key in tensors]
    dtypes = sorted({str(tensor.dtype) for tensor in converted.values()})
    if len(dtypes) > 1 or (dtypes and not getattr(torch, dtypes[0].removeprefix("torch.")).is_floating_point):
        faults.append(f"the tensors must share one floating-point type, found {', '.join(dtypes)}")
    if faults:
        raise ValueError(
            f"The checkpoint is not {what} of the inferred size; nothing was written:\n  " + "\n  ".join(_cut(faults))
        )
    return converted


def _cut(faults: list[str]) -> list[str]:
    """The first faults of each kind, and how many more there are."""
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kinds.setdefault(fault.partition(":")[0], []).append(fault)
    shown = []
    for kind, found in kinds.items():
        shown += found[:_MOST_FAULTS]
        if len(found) > _MOST_FAULTS:
            shown.append(f"{kind}: {len(found) - _MOST_FAULTS} more")
    return shown


def fill_twins(weights: dict[str, torch.Tensor], twins: Iterable[tuple[str, str]]) -> None:
    """Gives a part that a file lacks the tensors of its twin: a file with one encoder is a composite of equal ones."""
    for one, other in twins:
        for held, absent in ((one, other), (other, one)):
            if not any(name.startswith(f"{absent}.") for name in weights):
                # Copies: safetensors does not write two tensors that share memory.
                weights |= {
                    absent + name.removeprefix(held): tensor.clone()
                    for name, tensor in weights.items()
                    if name.startswith(f"{held}.")
                }


def load_groups(
    model: PreTrainedModel,
    groups: Groups,
    key_maps: KeyMaps,
    what: str,
    faults: Iterable[str] = (),
    twins: Iterable[tuple[str, str]] = (),
) -> None:
    """
    Gives a model that was built on the `meta` device a checkpoint's weights: all of them, or none. Arguments and
    errors as in [`convert_groups`] and [`fill_twins`].
    """
    weights = convert_groups(groups, key_maps, model.state_dict(), what, faults)
    fill_twins(weights, twins)
    model.load_state_dict(weights, strict=True, assign=True)
    if hasattr(model, "apply_requires_grad"):
        model.apply_requires_grad()


def drop_twins(
    weights: dict[str, torch.Tensor], twins: Iterable[tuple[str, str]], key_maps: KeyMaps, folder: Path
) -> dict[str, torch.Tensor]:
    """
    The way back of [`fill_twins`]: the tensors that the file has groups for.

    Raises:
        `ValueError`: if the twins differ now.
    """
    parts = {name.partition(".")[0] for keys in key_maps.values() for names in keys.values() for name in names}
    for one, other in twins:
        for held, absent in ((one, other), (other, one)):
            if absent in parts or held not in parts:
                continue
            gone = {name: weights[name] for name in weights if name.startswith(f"{absent}.")}
            if any(
                not torch.equal(tensor, weights[held + name.removeprefix(absent)]) for name, tensor in gone.items()
            ):
                raise ValueError(
                    f"The file that {str(folder)!r} came from held one encoder, and the two differ now; delete "
                    f"{LAYOUT_FILE} there to write both."
                )
            weights = {name: tensor for name, tensor in weights.items() if name not in gone}
    return weights


def original_groups(weights: dict[str, torch.Tensor], key_maps: KeyMaps) -> Groups:
    """
    The way back of [`convert_groups`].

    Raises:
        `ValueError`: if the model holds a tensor that the original layout has no place for.
    """
    left = dict(weights)
    groups = {
        group: {
            source: torch.cat([left.pop(name) for name in names]) if len(names) > 1 else left.pop(names[0])
            for source, names in key_map.items()
        }
        for group, key_map in key_maps.items()
    }
    if left:
        raise ValueError(f"The original layout has no place for {', '.join(left)}; nothing was written.")
    return groups


def conversion_results(output_dir: str | os.PathLike, path: Path, family: str, licence: str) -> dict[str, Any]:
    """What the card of a converted file needs, beside the model's own facts."""
    return {
        "model": {"name": Path(output_dir).resolve().name, "family": family},
        "licence": licence,
        "source_licence": licence,
        "conversion": {"file": path.name, "sha256": sha256_of(path)},
    }


def save_converted(
    model: PreTrainedModel,
    output_dir: str | os.PathLike,
    *,
    checkpoint: dict[str, Any],
    path: Path,
    which: str,
    licence: str,
    layout: dict[str, Any] | None,
    processor: Any | None = None,
    data: dict[str, Any] | None = None,
    unused: Groups | None = None,
) -> Path:
    """
    Writes a converted model as a release, and within it what the way back needs.

    Args:
        model (`JepaPreTrainedModel`): with the checkpoint's weights.
        output_dir (`str` or `PathLike`): the folder to write.
        checkpoint (`dict`), path (`Path`): the checkpoint, and the file that it was read from.
        which (`str`): the encoder at the root.
        licence (`str`): of the checkpoint.
        layout (`dict`, *optional*): what this family remembers of a file of the released layout; must have `prefixes`,
            the groups' key prefixes.
        processor (*optional*): the image or video processor.
        data (`dict`, *optional*): what is known of the training data, for the card.
        unused (*optional*): tensors of the groups that no model of ours has, kept for the way back.

    Returns:
        `Path`: the folder.
    """
    family = model.config.model_type.removesuffix("_pretraining")
    results = conversion_results(output_dir, path, family, licence) | {"data": data or {}}
    if layout is not None:
        layout = describe_layout(checkpoint, layout["prefixes"], path) | layout
    return save_release(
        model,
        output_dir,
        results=results,
        which=which,
        processor=processor,
        finish=lambda folder: write_layout(folder / "pretraining", layout, unused),
    )


def save_converted_encoder(
    encoder: PreTrainedModel,
    output_dir: str | os.PathLike,
    *,
    family: str,
    path: Path,
    group: str,
    content: dict[str, Any],
    licence: str,
    processor: Any | None = None,
    data: dict[str, Any] | None = None,
) -> Path:
    """
    Writes an encoder from a file without a predictor as a release of one floor.

    Args:
        encoder (`PreTrainedModel`): with the checkpoint's weights, in its in-tree format.
        family (`str`): the method's name.
        group (`str`): the state dict that it was.
        content (`dict`): all of the file.
        output_dir, path, licence, processor, data: as for [`save_converted`].
    """
    which = "context" if group in ("encoder", "model") else "target"
    results = conversion_results(output_dir, path, family, licence) | {"data": data or {}}
    results["model"] |= {"encoder": which, "from_group": group}
    folder = save_encoder(encoder, output_dir, results=results, processor=processor)
    logger.warning(
        f"{path.name!r} holds no predictor: {str(folder)!r} has the encoder ({group!r}) alone, and no pretraining/ "
        "floor. Training goes on from it with `from_encoder`, which draws a new predictor."
    )
    left = [key for key, value in content.items() if key != group and holds_tensors(value)]
    if group in content and left:
        logger.warning(f"Not kept of {path.name!r}: {listed(left)}.")
    return folder


def write_layout(folder: Path, layout: dict[str, Any] | None, unused: Groups | None = None) -> None:
    """Writes what the way back needs, beside the weights in `folder`: the layout, and tensors that we do not use."""
    if layout is None:
        return
    (folder / LAYOUT_FILE).write_text(json.dumps(layout, indent=1) + "\n", encoding="utf-8")
    (folder / UNUSED_FILE).unlink(missing_ok=True)
    flat = {f"{group}/{key}": tensor for group, tensors in (unused or {}).items() for key, tensor in tensors.items()}
    if flat:
        save_file({name: tensor.contiguous() for name, tensor in flat.items()}, folder / UNUSED_FILE)
    if layout["dropped"]:
        logger.warning(f"Not kept (the release holds weights only): {', '.join(layout['dropped'])}.")


def read_layout(folder: Path) -> tuple[dict[str, Any] | None, Groups]:
    """The recorded layout, if there is one, and the tensors that we do not use, by group."""
    unused: Groups = {}
    if (folder / UNUSED_FILE).is_file():
        for name, tensor in load_file(folder / UNUSED_FILE).items():
            group, _, key = name.partition("/")
            unused.setdefault(group, {})[key] = tensor
    file = folder / LAYOUT_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None, unused


def composite_folder(folder: str | os.PathLike) -> Path:
    """
    Where a release, or its `pretraining/` folder itself, holds the composite.

    Raises:
        `ValueError`: if `folder` is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder; pass a converted or trained release.")
    return folder / "pretraining" if (folder / "pretraining").is_dir() else folder


def load_converted(
    folder: str | os.PathLike, model_class: type[PreTrainedModel]
) -> tuple[PreTrainedModel, dict[str, Any] | None]:
    """
    The composite of a release, or of its `pretraining/` folder, and the recorded layout of the file it came from.

    Raises:
        `ValueError`: if the folder holds no whole `model_class`.
    """
    composite = composite_folder(folder)
    model = load_pretraining(composite)
    if not isinstance(model, model_class):
        raise ValueError(
            f"{str(composite)!r} holds a {type(model).__name__}; only {model_class.__name__} has this layout."
        )
    return model, read_layout(composite)[0]


def write_original(
    path: str | os.PathLike, groups: Groups, layout: dict[str, Any] | None, default_prefix: str = ""
) -> Path:
    """
    Writes a checkpoint in the original layout: the recorded one, or for a model that came from no file the one that
    the released code would write.

    Args:
        path (`str` or `PathLike`): the file to write.
        groups: the tensors.
        layout (`dict`, *optional*): as recorded.
        default_prefix (`str`): of keys, without a recorded layout.

    Returns:
        `Path`: the file.
    """
    if layout is None:
        layout = {"archive_name": None, "dropped": [], "shared_names": []}
        layout["prefixes"] = dict.fromkeys(groups, default_prefix)
        layout["entries"] = [
            {
                "key": group.removesuffix(".0"),
                "in_list": group.endswith(".0"),
                "kind": "OrderedDict",
                "names": [default_prefix + key for key in tensors],
                "metadata": None,
            }
            for group, tensors in groups.items()
        ]
    if layout["dropped"]:
        logger.warning(
            f"Not in the written file, because the release does not hold it: {', '.join(layout['dropped'])}."
        )
    half = getattr(torch, layout.get("dtype") or "", None)
    prefixed = {
        group: {
            layout["prefixes"][group] + key: tensor.to(half) if half and tensor.is_floating_point() else tensor
            for key, tensor in tensors.items()
        }
        for group, tensors in groups.items()
    }
    return write_original_checkpoint(path, layout, prefixed)
