"""The official forward passes, and our models with their weights."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa import (
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VJepaConfig,
    VJepaForPreTraining,
    VJepaModel,
    VJepaPreTrainingConfig,
)

GOLDEN = Path(__file__).parents[2] / "golden"

_NAMES = {
    r"^module\.backbone\.": "",
    r"^predictor_embed\.": "embeddings.predictor_embeddings.",
    r"^mask_tokens\.": "embeddings.mask_tokens.",
    r"^(predictor_)?pos_embed": "embeddings.position_embeddings",
    r"^patch_embed\.": "embeddings.patch_embeddings.",
    r"^(predictor_)?blocks\.": "layer.",
    r"^(predictor_)?norm\.": "layernorm.",
    r"^predictor_proj\.": "proj.",
    r"\.attn\.": ".attention.",
}


def our_name(key: str) -> str:
    """An official key under our name; a fused projection stays `qkv`, a mask token keeps its number."""
    for pattern, name in _NAMES.items():
        key = re.sub(pattern, name, key)
    return key


def module_weights(tensors: dict[str, torch.Tensor], group: str) -> dict[str, torch.Tensor]:
    """The state dict of our module for a group of official weights."""
    weights, masks = {}, {}
    for key, tensor in tensors.items():
        if not key.startswith(f"{group}/"):
            continue
        name = our_name(key.removeprefix(f"{group}/"))
        if "qkv" in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                weights[name.replace("qkv", part)] = third
        elif "mask_tokens" in name:
            masks[int(name.rsplit(".", 1)[1])] = tensor
        else:
            weights[name] = tensor
    if masks:
        weights["embeddings.mask_tokens"] = torch.stack([masks[index] for index in sorted(masks)])
    if "embeddings.patch_embeddings.proj.weight" in weights:
        kernel = weights["embeddings.patch_embeddings.proj.weight"]
        weights["embeddings.patch_embeddings.proj.weight"] = kernel if kernel.ndim == 5 else kernel.unsqueeze(2)
    return weights


def official_gradient(model: torch.nn.Module, key: str) -> torch.Tensor:
    """Our gradient under an official key such as `grad/encoder/module.backbone.norm.bias`."""
    group, key = key.removeprefix("grad/").split("/")
    part, name = getattr(model, group), our_name(key)
    if "qkv" in name:
        return torch.cat([part.get_parameter(name.replace("qkv", p)).grad for p in ("query", "key", "value")])
    if "mask_tokens" in name:
        stem, index = name.rsplit(".", 1)
        return part.get_parameter(stem).grad[int(index)]
    return part.get_parameter(name).grad


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * float(reference.detach().abs().max()))


def load_official(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    for group in ("encoder", "predictor", "target_encoder"):
        getattr(model, group).load_state_dict(module_weights(tensors, group))
    return model.eval()


@pytest.fixture(scope="session")
def official_1() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vjepa_forward.safetensors")


@pytest.fixture(scope="session")
def official_2() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vjepa2_forward.safetensors")


@pytest.fixture
def model_1(official_1) -> VJepaForPreTraining:
    encoder = VJepaConfig(
        position_embedding_type="sincos",
        crop_size=24,
        patch_size=4,
        frames_per_clip=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pred_hidden_size=24,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=4,
        pred_num_mask_tokens=2,
    )
    return load_official(
        VJepaForPreTraining(VJepaPreTrainingConfig(encoder_config=encoder, variance_weight=0.1)), official_1
    )


@pytest.fixture
def model_2(official_2) -> VJepa2ForPreTraining:
    encoder = VJepaConfig(
        crop_size=24,
        patch_size=4,
        frames_per_clip=8,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        pred_hidden_size=36,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=3,
        pred_num_mask_tokens=4,
    )
    return load_official(VJepa2ForPreTraining(VJepa2PreTrainingConfig(encoder_config=encoder)), official_2)


SIZES = {
    "crop_size": 24,
    "patch_size": 4,
    "frames_per_clip": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "pred_hidden_size": 36,
    "pred_num_hidden_layers": 2,
    "pred_num_attention_heads": 3,
    "pred_num_mask_tokens": 3,
    "initializer_range": 0.2,
}


def tiny(**kwargs) -> VJepaModel:
    return VJepaModel(VJepaConfig(**{**SIZES, **kwargs})).eval()


def clips(batch: int = 2, frames: int = 8, height: int = 24, width: int = 24) -> torch.Tensor:
    return torch.randn(batch, frames, 3, height, width)


def random_mask(batch: int, kept: int, tokens: int) -> torch.Tensor:
    return torch.stack([torch.randperm(tokens)[:kept].sort().values for _ in range(batch)])
