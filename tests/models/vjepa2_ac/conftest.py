"""The official numbers of V-JEPA 2-AC, and our model with their weights."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.models.vjepa import VJepaConfig
from hf_jepa.models.vjepa2_ac import VJepa2ACConfig, VJepa2ACModel

GOLDEN = Path(__file__).parents[2] / "golden"

_PREDICTOR = {
    r"^(action|state|extrinsics)_encoder\.": r"\1_encoder.droid.",
    r"^predictor_embed\.": "embed.",
    r"^predictor_blocks\.": "layer.",
    r"^predictor_norm\.": "layernorm.",
    r"^predictor_proj\.": "proj.",
    r"\.attn\.": ".attention.",
}
_ENCODER = {
    r"^patch_embed\.": "encoder.embeddings.patch_embeddings.",
    r"^blocks\.": "encoder.layer.",
    r"^norm\.": "encoder.layernorm.",
    r"\.attn\.": ".attention.",
}


def our_names(key: str, group: str) -> list[str]:
    """The names of our parameters that an official tensor holds, one after another."""
    key = key.removeprefix("module.")
    for pattern, name in (_PREDICTOR if group == "predictor" else _ENCODER).items():
        key = re.sub(pattern, name, key)
    return [key.replace("qkv", part) for part in ("query", "key", "value")] if "qkv" in key else [key]


def module_weights(tensors: dict[str, torch.Tensor], prefix: str, group: str) -> dict[str, torch.Tensor]:
    """The state dict of our module for the official weights whose keys start with `prefix`."""
    weights = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            names = our_names(key.removeprefix(prefix), group)
            weights |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return weights


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * float(reference.detach().abs().max()))


def tiny_config(**changes) -> VJepa2ACConfig:
    encoder = VJepaConfig(
        crop_size=16,
        patch_size=4,
        frames_per_clip=2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pred_hidden_size=12,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    fields = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    return VJepa2ACConfig(**({"encoder_config": encoder} | fields | changes))


@pytest.fixture(scope="session")
def official() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vjepa2_ac.safetensors")


@pytest.fixture
def load(official):
    """A model with the official weights; keyword arguments change its config."""

    def build(**changes) -> VJepa2ACModel:
        model = VJepa2ACModel(tiny_config(**changes)).eval()
        model.encoder.load_state_dict(module_weights(official, "target_encoder/", "encoder"))
        model.predictor.load_state_dict(module_weights(official, "predictor/", "predictor"))
        return model

    return build
