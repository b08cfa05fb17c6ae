"""Training checkpoints without pickles: what is written, when it is complete, how it is restored or refused."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

logger = logging.get_logger(__name__)

COMPLETE_MARKER = "checkpoint_complete.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_SETTINGS = "optimizer.json"
SCHEDULER_STATE = "scheduler.json"
SCALER_STATE = "scaler.json"
TRAINING_ARGS = "training_args.json"

# Lies in a checkpoint while transformers' preemption (`enable_jit_checkpoint`) writes it, and is then taken away.
_TRANSIENT = {"checkpoint-is-incomplete.txt"}


def mark_complete(folder: Path, run: dict[str, Any]) -> None:
    """
    Writes the completion marker; nothing may be written to the checkpoint after it.

    Args:
        folder (`Path`): the checkpoint.
        run (`dict`): what else a resumed run is compared with, such as the global batch size.
    """
    files = {
        str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    marker = folder / COMPLETE_MARKER
    unfinished = folder / (COMPLETE_MARKER + ".part")
    unfinished.write_text(json.dumps({"run": run, "files": files}, indent=2) + "\n")
    unfinished.replace(marker)


def incompleteness(folder: Path) -> str | None:
    """
    Says why a checkpoint cannot be resumed from.

    Args:
        folder (`Path`): the checkpoint.

    Returns:
        `str` or `None`: the reason, or None for a complete checkpoint.
    """
    if not folder.is_dir():
        return "it is not a folder"
    try:
        files = json.loads((folder / COMPLETE_MARKER).read_text())["files"]
        sizes = {str(name): int(size) for name, size in files.items()}
    except FileNotFoundError:
        return f"it has no {COMPLETE_MARKER}, so its writing was interrupted"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {COMPLETE_MARKER} cannot be read"
    for name, size in sizes.items():
        path = folder / name
        if name in _TRANSIENT:
            continue
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def newest_complete_checkpoint(output_dir: Path) -> Path:
    """
    Finds the checkpoint to resume from, and logs each newer one that it had to skip.

    Args:
        output_dir (`Path`): the run's folder.

    Returns:
        `Path`: the complete `checkpoint-N` with the highest N.

    Raises:
        ValueError: if there is none.
    """
    numbered = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _numbered(path))]
    skipped = []
    for _, path in sorted(numbered, reverse=True):
        reason = incompleteness(path)
        if reason is None:
            return path
        skipped.append(f"{path.name}: {reason}")
        logger.warning(f"Skipping {path}: {reason}.")
    found = f" ({'; '.join(skipped)})" if skipped else ""
    raise ValueError(
        f"There is no complete checkpoint in {output_dir}{found}. Start anew without `resume_from_checkpoint`, or "
        "name a complete checkpoint."
    )


def used_by(output_dir: Path) -> list[str]:
    """Names of the checkpoints of an earlier run in a folder, oldest first."""
    numbered = [(int(match[1]), path.name) for path in output_dir.glob("checkpoint-*") if (match := _numbered(path))]
    return [name for _, name in sorted(numbered)]


def _numbered(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name)


def load_model_strictly(model: nn.Module, folder: Path) -> None:
    """
    Loads the weights of a training checkpoint in place; either every key is restored or nothing is touched. A model
    that keeps frozen parts by reference says which keys its checkpoints have by `saved_state_dict`.

    Args:
        model (`nn.Module`): the model being trained.
        folder (`Path`): a checkpoint with module-named keys in safetensors files.

    Raises:
        ValueError: listing the missing, unexpected and mis-shaped keys.
    """
    files = _weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as handle:
            shapes.update((key, tuple(handle.get_slice(key).get_shape())) for key in handle.keys())  # noqa: SIM118
    state = model.saved_state_dict() if hasattr(model, "saved_state_dict") else model.state_dict()
    own = {key: tuple(value.shape) for key, value in state.items()}
    problems = {
        "missing": sorted(own.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - own.keys()),
        "mis-shaped": [
            f"{key} {shapes[key]} instead of {own[key]}"
            for key in sorted(own.keys() & shapes.keys())
            if own[key] != shapes[key]
        ],
    }
    if any(problems.values()):
        details = "; ".join(
            f"{len(keys)} {name} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
            for name, keys in problems.items()
            if keys
        )
        raise ValueError(
            f"The checkpoint {folder} does not fit this {type(model).__name__}: {details}. Resume with the model's "
            "configuration of that run (its config.json), or start a new run with `from_pretrained`."
        )
    for path in files:
        # Keys have been compared above, over all files.
        model.load_state_dict(load_file(path), strict=False)


def gather_whole_model(model: nn.Module, wanted: bool) -> PreTrainedModel | None:
    """
    A whole copy, on the CPU, of a model whose parameters FSDP has cut up. Every process has to call it.

    Args:
        model (`nn.Module`): the (wrapped) model.
        wanted (`bool`): whether this process is to have it; others get None.

    Raises:
        ValueError: if weights are missing.
    """
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not wanted:
        return None
    inner = model.module if isinstance(model, FullyShardedDataParallel) else model
    # FSDP2 puts a class of its own before the model's.
    original = next(each for each in type(inner).__mro__ if not issubclass(each, FSDPModule))
    whole = original(copy.deepcopy(inner.config))
    if missing := sorted(whole.saved_state_dict().keys() - weights.keys()):
        raise ValueError(f"The gathered {original.__name__} lacks {', '.join(missing[:5])}.")
    whole.load_state_dict(weights, strict=False)
    for name, part in inner.named_modules():
        if hasattr(part, "generation_config"):
            plain = name.replace("_fsdp_wrapped_module.", "")
            whole.get_submodule(plain).generation_config = copy.deepcopy(part.generation_config)
    return whole.eval()


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text())
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    raise ValueError(f"{folder} holds neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; nothing was loaded.")


def optimized_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of an optimizer's parameters, in the order of its groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def save_optimizer(optimizer: torch.optim.Optimizer, names: list[str], folder: Path) -> None:
    """
    Writes an optimizer's state as safetensors and JSON.

    Args:
        optimizer (`torch.optim.Optimizer`): its per-parameter state must be tensors and plain values, as AdamW's is.
        names (`list[str]`): the parameters' names in the order of the groups.
        folder (`Path`): the checkpoint.

    Raises:
        ValueError: for an optimizer with nested state.
    """
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.detach().contiguous()
            elif value is None or isinstance(value, (bool, int, float, str)):
                plain[f"{index}.{key}"] = value
            else:
                raise ValueError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} per parameter, which cannot be saved "
                    "without pickle; use `optim='adamw_torch'` or `save_only_model=True`."
                )
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    settings = {"names": names, "param_groups": state["param_groups"], "plain_state": plain}
    (folder / OPTIMIZER_SETTINGS).write_text(json.dumps(settings))


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], folder: Path, keep_settings: bool = False
) -> None:
    """
    Restores what [`save_optimizer`] wrote.

    Args:
        optimizer (`torch.optim.Optimizer`): built over the same parameters.
        names (`list[str]`): the parameters' names in the order of the groups.
        folder (`Path`): the checkpoint.
        keep_settings (`bool`): restore the state of the parameters only, not learning rates and the like.

    Raises:
        ValueError: if the checkpoint has no optimizer, or one over other parameters.
    """
    if not (folder / OPTIMIZER_TENSORS).is_file():
        raise ValueError(
            f"{folder} has no {OPTIMIZER_TENSORS} (was it saved with `save_only_model=True`?), so the run cannot go "
            "on where it stopped. Load its weights with `from_pretrained` and start a new run."
        )
    settings = json.loads((folder / OPTIMIZER_SETTINGS).read_text())
    if settings["names"] != names:
        other = sorted(set(settings["names"]) ^ set(names)) or ["the same parameters in another order"]
        raise ValueError(f"The optimizer in {folder} is for other parameters: {', '.join(other[:5])}.")
    state: dict[int, dict[str, Any]] = {}
    entries: dict[str, Any] = {**load_file(folder / OPTIMIZER_TENSORS), **settings["plain_state"]}
    for name, value in entries.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = [{key: _as_tuple(value, key) for key, value in group.items()} for group in settings["param_groups"]]
    if keep_settings:
        groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save_json(state: dict[str, Any], path: Path) -> None:
    """Writes a state of plain values."""
    path.write_text(json.dumps(state))


def load_json(path: Path) -> dict[str, Any]:
    """
    Reads what [`save_json`] wrote.

    Raises:
        ValueError: if the file does not exist.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing, so the run cannot go on where it stopped.")
    return json.loads(path.read_text())


def _as_tuple(value: Any, key: str) -> Any:
    # JSON knows no tuples; torch's optimizers have them for betas.
    return tuple(value) if isinstance(value, list) and key != "params" else value
