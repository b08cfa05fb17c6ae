"""What a release holds, read from its small files: no weight is loaded or downloaded."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, constants, get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from ..methods import METHODS
from ..methods.method import model_classes
from ..silence import is_connection_error, limited_silence
from .checks import ADAPTER_CONFIG, PRETRAINING_FOLDER
from .processors import PROCESSOR_FILES
from .sources import HUB_NAME

_SMALL = ["*.json", "*.yaml", "*.md", f"{PRETRAINING_FOLDER}/config.json"]
# Encoders of these families that transformers itself has: releases of others than this package.
_IN_TREE = {"ijepa": "ijepa", "vjepa2": "vjepa2", "data2vec-vision": "data2vec_vision"}
_VIDEO, _IMAGE = PROCESSOR_FILES
_TOKENIZER = "tokenizer_config.json"
_WIDTHS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "tubelet_size")


def release_folder(repo_or_path: str | os.PathLike, revision: str | None = None) -> Path:
    """
    The folder with the small files of a release: its own, or one in the cache, filled from the Hub.

    Raises:
        ValueError: for neither a folder nor a repository that can be read.
    """
    name = str(repo_or_path)
    if Path(name).is_dir():
        return Path(name)
    if HUB_NAME.fullmatch(name) is None:
        raise ValueError(f"There is no folder {name!r}, and it is not the name of a repository (organisation/name).")
    try:
        with limited_silence():
            return Path(snapshot_download(name, revision=revision, allow_patterns=_SMALL))
    except GatedRepoError as error:
        raise ValueError(f"{name!r} is gated: accept its terms on the Hub, then `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name!r} has no revision {revision!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"There is no folder and no repository {name!r}; if it is private, `hf auth login` first."
        ) from error
    except Exception as error:
        known = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError)
        if not isinstance(error, known) and not is_connection_error(error):
            raise
        raise ValueError(
            f"There is no folder {name!r}, and the Hub cannot be asked for a repository of that name: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _read(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{str(file)!r} holds no object.")
    return found


def _weights(folder: Path) -> dict[str, Any]:
    """Numbers of parameters by dtype and bytes, from the headers of safetensors files on this disk."""
    counts: dict[str, int] = {}
    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        size += file.stat().st_size
        try:
            with safe_open(file, framework="np") as weights:
                for key in weights.keys():  # noqa: SIM118
                    part = weights.get_slice(key)
                    counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + math.prod(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{str(file)!r} is damaged: {error}") from error
    return {"parameters": counts, "bytes": size} if counts else {}


def _weights_of(repo: str, folder: Path, revision: str | None) -> dict[str, Any]:
    if found := _weights(folder):
        return found
    if Path(repo).is_dir() or constants.HF_HUB_OFFLINE:
        return {}
    try:
        with limited_silence():
            return {"parameters": dict(get_safetensors_metadata(repo, revision=revision).parameter_count)}
    except Exception as error:
        if not isinstance(error, NotASafetensorsRepoError | HfHubHTTPError | OSError) and not is_connection_error(
            error
        ):
            raise
        return {}


def _family(config: dict[str, Any], results: dict[str, Any]) -> str | None:
    named = (results.get("model") or {}).get("family")
    if named:
        return named
    model_type = config.get("model_type")
    if model_type in _IN_TREE:
        return _IN_TREE[model_type]
    types = {classes.load("config").model_type for classes in model_classes()}
    if model_type not in types:
        return None
    owners = (m.name for m in METHODS.values() for c in m.model_classes() if c.load("config").model_type == model_type)
    return next(owners)


def _modality(folder: Path, config: dict[str, Any], results: dict[str, Any]) -> str:
    if config.get("model_type") == "vl_jepa":
        return "vision-language"
    if (results.get("model") or {}).get("modality"):
        return results["model"]["modality"]
    if (folder / _VIDEO).is_file():
        return "video"
    return "text" if (folder / _TOKENIZER).is_file() else "image"


def inspect_release(repo_or_path: str | os.PathLike, revision: str | None = None) -> dict[str, Any]:
    """
    What a release, a training checkpoint, or an in-tree JEPA encoder of the Hub holds.

    Args:
        repo_or_path (`str` or `PathLike`): Hub repository or local folder.
        revision (`str`, *optional*): of the repository.

    Returns:
        `dict`: `name`, `family`, `title`, `modality` (`"image"`, `"video"`, `"text"` or `"vision-language"`),
        `model_type`, `model_class`, `is_adapter`, `is_composite` (a training checkpoint, or a model that is released
        whole), `needs_hf_jepa`, `config`, `results`, `pretraining` (config of the whole model, or `{}`), `weights`
        (`parameters` by dtype, `bytes`), `processor`, `licence`.

    Raises:
        ValueError: for no such folder or repository, files that cannot be read, or a model of no JEPA.
    """
    name = str(repo_or_path)
    folder = release_folder(name, revision)
    results = _read(folder, "results.json")
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    config = _read(folder, ADAPTER_CONFIG if is_adapter else "config.json")
    if not config:
        raise ValueError(
            f"{name!r} holds no model: there is no config.json. A release has one at its root; of a run it is in "
            "OUTPUT_DIR/release."
        )
    family = _family(config, results)
    if family is None:
        kind = config.get("model_type") or config.get("architecture") or "unknown"
        raise ValueError(
            f"{name!r} holds a model of type {kind!r}, which is no JEPA, and no results.json of this package. "
            f"Features of any vision encoder are scored by `hf-jepa evaluate {name} --dataset ...`."
        )
    model = results.get("model") or {}
    own_types = {classes.load("config").model_type for classes in model_classes()}
    composites = {m.composite.load("config").model_type for m in METHODS.values() if m.composite is not None}
    return {
        "name": name,
        "family": family,
        "title": METHODS[family].title if family in METHODS else family,
        "modality": _modality(folder, config, results),
        "model_type": config.get("model_type"),
        "model_class": (config.get("architectures") or [model.get("encoder_class")])[0],
        "is_adapter": is_adapter,
        "is_composite": config.get("model_type") in composites,
        "needs_hf_jepa": config.get("model_type") in own_types,
        "config": config,
        "results": results,
        "pretraining": _read(folder, f"{PRETRAINING_FOLDER}/config.json"),
        "weights": _weights_of(name, folder, revision),
        "processor": next((_read(folder, file) for file in (_VIDEO, _IMAGE) if (folder / file).is_file()), {}),
        "licence": results.get("licence") or _card_licence(folder),
    }


def _card_licence(folder: Path) -> str | None:
    card = folder / "README.md"
    if not card.is_file():
        return None
    return ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict().get("license")


def loading_lines(facts: dict[str, Any]) -> list[str]:
    """
    The Python lines that load what [`inspect_release`] has found: `model`, and `processor` or `tokenizer`.
    """
    name, modality = facts["name"], facts["modality"]
    model, reader = "AutoModel", {"video": "AutoVideoProcessor", "image": "AutoImageProcessor"}.get(modality)
    if modality == "text" and not facts["is_composite"]:
        model, reader = "AutoModelForCausalLM", "AutoTokenizer"
    elif modality == "vision-language":
        reader = "AutoProcessor"
    elif facts["results"].get("model", {}).get("num_labels"):
        model = "AutoModelForVideoClassification"
    elif facts["is_composite"]:
        model = "AutoModelForPreTraining"
        reader = "AutoTokenizer" if modality == "text" else reader
    target = "tokenizer" if reader == "AutoTokenizer" else "processor"
    reader = reader if facts["processor"] or target == "tokenizer" or modality == "vision-language" else None
    lines = ["import hf_jepa  # registers the model's type"] if facts["needs_hf_jepa"] else []
    if facts["is_adapter"]:
        lines += ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
        model = "AutoPeftModelForCausalLM"
    else:
        lines.append(f"from transformers import {', '.join(sorted(filter(None, (model, reader))))}")
    lines.append(f"model = {model}.from_pretrained({name!r})")
    if reader:
        lines.append(f"{target} = {reader}.from_pretrained({name!r})")
    return lines


def describe_facts(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What [`inspect_release`] has found, as (name, text) for people; what is not recorded says so."""
    results, config = facts["results"], facts["config"]
    model, data, training = (results.get(part) or {} for part in ("model", "data", "training"))
    yield "family", f"{facts['title']} ({facts['model_class'] or facts['model_type']})"
    yield "trained on", _trained_on(results, data, training)
    yield "holds", _holds(facts, model)
    sizes = {key: config[key] for key in _WIDTHS if config.get(key) is not None}
    sizes = sizes or {key: value for key, value in (model.get("encoder_config") or {}).items() if key in _WIDTHS}
    if sizes:
        yield "sizes", ", ".join(f"{key} {value}" for key, value in sizes.items())
    if facts["processor"] or facts["modality"] in ("text", "vision-language"):
        yield "processor", _processor(facts)
    else:
        yield "processor", "none"
    yield "heads", _heads(facts, model)
    yield "needs", "transformers and hf-jepa" if facts["needs_hf_jepa"] else "transformers alone"
    source = results.get("source_licence")
    yield "licence", (facts["licence"] or "not said") + (f" (of the source: {source})" if source else "")
    for entry in (results.get("evaluations") or [])[:6]:
        if entry.get("value") is not None:
            split = f", {entry['split']}" if entry.get("split") else ""
            where = f"{entry.get('dataset')}{split}"
            yield "measured", f"{entry['task']}, {entry['metric']}: {entry['value']:.4g} ({where})"


def _trained_on(results: dict[str, Any], data: dict[str, Any], training: dict[str, Any]) -> str:
    if results.get("conversion"):
        return f"elsewhere; converted from {results['conversion'].get('file')}"
    parts = [str(data["name"])] if data.get("name") else ["not recorded"]
    if data.get("num_examples"):
        parts.append(f"{data['num_examples']:,} examples")
    if training.get("steps"):
        batch = f" of {training['batch_size']}" if training.get("batch_size") else ""
        parts.append(f"{training['steps']:,} steps{batch}")
    return ", ".join(parts)


def _holds(facts: dict[str, Any], model: dict[str, Any]) -> str:
    weights = facts["weights"]
    counts = weights.get("parameters") or {}
    number = sum(counts.values()) or model.get("num_parameters")
    what = "adapter" if facts["is_adapter"] else "whole model" if facts["is_composite"] else "encoder"
    if what == "encoder" and facts["modality"] == "text":
        what = "language model"
    if what == "encoder" and model.get("encoder"):
        what = f"{model['encoder']} encoder"
    text = what + (f", {number:,} parameters" if number else "")
    text += f" ({', '.join(sorted(counts))})" if counts else ""
    text += f", {weights['bytes'] / 1e6:,.1f} MB" if weights.get("bytes") else ""
    if facts["pretraining"]:
        whole = model.get("num_parameters_pretraining")
        text += f"; {PRETRAINING_FOLDER}/: the whole model" + (f", {whole:,} parameters" if whole else "")
    return text


def _processor(facts: dict[str, Any]) -> str:
    processor = facts["processor"]
    if not processor:
        return "tokenizer" if facts["modality"] == "text" else "in the processor's own files"
    kind = processor.get("video_processor_type") or processor.get("image_processor_type") or "processor"
    size = processor.get("crop_size") or processor.get("size") or {}
    if isinstance(size, dict):
        size = " x ".join(str(size[key]) for key in ("height", "width") if key in size) or size.get("shortest_edge")
    mean, std = processor.get("image_mean"), processor.get("image_std")
    text = f"{kind}, {size} pixels" if size else kind
    return text + (f", mean {mean}, std {std}" if mean and std else "")


def _heads(facts: dict[str, Any], model: dict[str, Any]) -> str:
    if model.get("num_labels"):
        return f"classifier of {model['num_labels']} classes"
    parts = [part for part in model.get("parts") or [] if "encoder" not in part]
    if parts and not facts["is_adapter"]:
        return ", ".join(parts) + (f" (in {PRETRAINING_FOLDER}/)" if facts["pretraining"] else "")
    if facts["model_type"] == "vjepa2":
        return "predictor"
    return "language-model head" if facts["modality"] == "text" else "none"
