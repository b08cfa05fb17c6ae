"""Our models with the originals' weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa import LatentWorldModel, LatentWorldModelConfig
from hf_jepa.conversion.lewm import lewm_key_map, to_ours

Tensors = dict[str, torch.Tensor]


class Golden:
    """A recorded case: its tensors by key, and its facts."""

    def __init__(self, folder: Path, name: str):
        self.tensors: Tensors = load_file(folder / f"{name}.safetensors")
        facts = json.loads((folder / f"{name}.json").read_text())
        self.config: dict[str, Any] = facts["config"]
        self.facts = facts

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def group(self, prefix: str) -> Tensors:
        """Tensors whose key starts with `prefix`, without it."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


@pytest.fixture
def golden(golden_dir):
    return lambda name: Golden(golden_dir, name)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` times the largest absolute value expected."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    error = (actual.detach() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"off by {error:.2e} of the largest value"


def lewm_config(facts: dict[str, Any], **changes: Any) -> LatentWorldModelConfig:
    encoder = {
        "model_type": "vit",
        "hidden_size": facts["hidden"],
        "num_hidden_layers": facts["layers"],
        "num_attention_heads": facts["heads"],
        "intermediate_size": 4 * facts["hidden"],
        "image_size": facts["img"],
        "patch_size": facts["patch"],
    }
    fields = {
        "encoder_config": encoder,
        "projector_hidden_size": facts["proj_hidden"],
        "predictor_num_hidden_layers": facts["p_depth"],
        "predictor_num_attention_heads": facts["p_heads"],
        "predictor_head_dim": facts["p_dim_head"],
        "predictor_intermediate_size": facts["p_mlp"],
        "predictor_dropout": 0.0,
        "context_frames": facts["num_frames"],
        "frameskip": facts["frameskip"],
        "action_dim": facts["frameskip"] * facts["a_dim"],
    }
    return LatentWorldModelConfig.from_preset("lewm", **{**fields, **changes})


def lewm_model(weights: Tensors, config: LatentWorldModelConfig) -> LatentWorldModel:
    """With weights under the published names."""
    model = LatentWorldModel(config)
    missing, unexpected = model.load_state_dict(to_ours(weights, config), strict=False)
    assert not unexpected
    assert set(missing) <= {"sigreg.global_step"}
    return model.eval()


def by_original_key(model: LatentWorldModel, values: dict[str, torch.Tensor]) -> Tensors:
    """Our tensors (weights or gradients) under the published names and shapes."""
    named = {}
    for key, name in lewm_key_map(model.config).items():
        if name in values:
            value = values[name]
            value = value[..., None] if key == "action_encoder.patch_embed.weight" else value
            named[key] = value.squeeze(2) if key == "predictor.pos_embedding" else value
    return named


def gradients(model: torch.nn.Module) -> Tensors:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
