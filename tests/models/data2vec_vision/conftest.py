"""A tiny data2vec, and the official numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Data2VecVisionConfig

from hf_jepa import Data2VecVisionForPreTraining, Data2VecVisionPreTrainingConfig
from hf_jepa.masking import masked_indices
from hf_jepa.models.data2vec_vision.configuration_data2vec_vision import ENCODER_DEFAULTS

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def tiny_config() -> Callable[..., Data2VecVisionPreTrainingConfig]:
    def build(encoder: dict | None = None, **kwargs) -> Data2VecVisionPreTrainingConfig:
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
            "drop_path_rate": 0.0,
        }
        encoder_config = Data2VecVisionConfig(**{**ENCODER_DEFAULTS, **sizes, **(encoder or {})})
        return Data2VecVisionPreTrainingConfig(encoder_config=encoder_config, **kwargs)

    return build


@pytest.fixture
def model(tiny_config) -> Data2VecVisionForPreTraining:
    return Data2VecVisionForPreTraining(tiny_config(target_layers=2))


@pytest.fixture
def inputs() -> dict:
    return {
        "pixel_values": torch.randn(3, 3, 32, 32),
        "target_mask": [torch.tensor([[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7]])],
    }


@pytest.fixture(scope="session")
def official() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "data2vec_vision_e2e.safetensors")


@pytest.fixture
def official_model(official) -> Data2VecVisionForPreTraining:
    settings = json.loads((GOLDEN / "data2vec_vision_e2e.json").read_text())["config"]
    config = Data2VecVisionPreTrainingConfig(
        encoder_config=Data2VecVisionConfig(**settings["hf_config"]), target_layers=settings["target_layers"]
    )
    model = Data2VecVisionForPreTraining(config)
    names = {"student/lm_head.": "head.", "student/": "encoder.", "teacher/": "target_encoder."}
    weights = {}
    for key, value in official.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        if prefix is not None:
            weights[names[prefix] + key.removeprefix(prefix)] = value
    weights |= {f"target_{key}": value for key, value in weights.items() if key.startswith("head.")}
    model.load_state_dict(weights)
    return model


@pytest.fixture
def official_mask(official) -> torch.LongTensor:
    return masked_indices(official["bool_masked_pos"])
