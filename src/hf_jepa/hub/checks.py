"""Whether a folder is fit to be published."""

import json
import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .processors import PROCESSOR_FILES
from .sources import without_code

PRETRAINING_FOLDER = "pretraining"
ADAPTER_CONFIG = "adapter_config.json"
EVAL_RESULTS = ".eval_results"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar", ".npy", ".npz"}
_TEXTS = {".json", ".yaml", ".yml", ".md", ".txt"}
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
# What reads a release's inputs: one of these must be there.
_PROCESSORS = ("tokenizer_config.json", *PROCESSOR_FILES)


def check_weights(folder: Path) -> list[str]:
    """Faults of the safetensors files in one folder: absent shards, truncated files, and files of two models."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    single = "adapter_model.safetensors" if (folder / ADAPTER_CONFIG).is_file() else "model.safetensors"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {single}
    found = {file.name for file in files}
    faults = [f"{folder.name}/{name} is missing" for name in sorted(named - found)]
    # Loaders prefer one of two models in a folder without a word.
    strangers = {name for name in found - named if name.startswith(("model", "adapter_model"))}
    faults += [f"{folder.name}/{name} belongs to another model" for name in sorted(strangers)]
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            faults.append(f"{folder.name}/{file.name} is damaged ({error})")
    return faults


def _names_code(file: Path) -> bool:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return without_code(values) != values


def check_release(folder: str | os.PathLike) -> Path:
    """
    Checks that a folder is fit to be published: card, config, processor and results are there, weights are whole
    safetensors files of one model, and it holds no pickles and no access tokens.

    Args:
        folder (`str` or `PathLike`): the release.

    Returns:
        The folder.

    Raises:
        `ValueError`: naming every fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder.")
    config = ADAPTER_CONFIG if (folder / ADAPTER_CONFIG).is_file() else "config.json"
    required = [config, "README.md", "results.json"]
    models = [folder]
    if (folder / PRETRAINING_FOLDER).is_dir():
        required.append(f"{PRETRAINING_FOLDER}/config.json")
        models.append(folder / PRETRAINING_FOLDER)
    faults = [f"{name} is missing" for name in required if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _PROCESSORS):
        faults.append(f"{' or '.join(_PROCESSORS)} is missing")
    for model in models:
        faults += check_weights(model)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if file.name.endswith("config.json") and _names_code(file):
            faults.append(f"{name} names code of a repository (auto_map), which nobody should run")
        if file.suffix.lower() in _PICKLES:
            faults.append(f"{name} is a pickle or an archive, which nobody should load")
        elif file.suffix.lower() in _TEXTS and _TOKEN.search(file.read_text(encoding="utf-8", errors="replace")):
            faults.append(f"{name} holds a Hugging Face access token")
    if faults:
        raise ValueError(f"{str(folder)!r} is not ready to be published:\n  " + "\n  ".join(faults))
    return folder
