"""Official-looking V-JEPA files, built from the golden weights."""

import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
TRAINING_STATE = {"epoch": 3, "loss": 0.25, "batch_size": 16, "world_size": 1, "lr": 1e-3}


def golden(case: str) -> dict[str, torch.Tensor]:
    """All tensors of a case, in the order of its JSON: that of the original state dicts; safetensors sorts them."""
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    return {name: tensors[name].clone() for name in json.loads((GOLDEN / f"{case}.json").read_text())["tensors"]}


def state_dicts(tensors: dict[str, torch.Tensor], names: tuple[str, ...], start: str = "") -> dict[str, OrderedDict]:
    """The groups of a case as state dicts; `start` is what stands before a group's name, such as `depth1/`."""
    found = {name: OrderedDict() for name in names}
    for name, tensor in tensors.items():
        group, _, key = name.removeprefix(start).partition("/")
        if name.startswith(start) and group in found:
            found[group][key] = tensor
    return found


def training_file(case: str, start: str = "") -> dict:
    """A checkpoint as the released code writes it, less the optimizer."""
    return state_dicts(golden(case), ("encoder", "predictor", "target_encoder"), start) | TRAINING_STATE


def save(checkpoint: dict, folder: Path, name: str = "jepa-latest.pth.tar") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / name)
    return folder / name


def assert_same_tensors(back: dict, original: dict) -> None:
    """State dicts of one order and content, to the bit."""
    for group, tensors in original.items():
        assert list(back[group]) == list(tensors)
        assert all(torch.equal(back[group][key], tensor) for key, tensor in tensors.items())
