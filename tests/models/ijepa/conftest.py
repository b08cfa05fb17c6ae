"""The official forward pass, and our model with its weights."""

import copy
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa import IJepaForPreTraining
from hf_jepa.conversion.ijepa import convert_ijepa_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def official() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "ijepa_forward.safetensors")


@pytest.fixture(scope="session")
def _converted(official, tmp_path_factory) -> IJepaForPreTraining:
    groups = {"encoder": OrderedDict(), "predictor": OrderedDict(), "target_encoder": OrderedDict()}
    for name in json.loads((GOLDEN / "ijepa_forward.json").read_text())["tensors"]:
        group, _, key = name.partition("/")
        if group in groups:
            groups[group][key] = official[name]
    folder = tmp_path_factory.mktemp("official")
    torch.save(groups, folder / "checkpoint.pth.tar")
    known = {"num_attention_heads": 4, "licence": "cc-by-nc-4.0"}
    convert_ijepa_checkpoint(folder / "checkpoint.pth.tar", folder / "release", **known)
    return IJepaForPreTraining.from_pretrained(folder / "release" / "pretraining")


@pytest.fixture
def official_model(_converted) -> IJepaForPreTraining:
    return copy.deepcopy(_converted)


@pytest.fixture
def official_inputs(official) -> dict:
    return {
        "pixel_values": official["input/images"],
        "context_mask": [official["input/masks_enc.0"]],
        "target_mask": [official[f"input/masks_pred.{index}"] for index in range(4)],
    }


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * float(reference.abs().max()))
