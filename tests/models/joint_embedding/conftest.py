"""Tiny joint-embedding models over every kind of encoder."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig, TimmWrapperConfig, ViTConfig

import hf_jepa
from hf_jepa.models.joint_embedding import JointEmbeddingPreTrainedModel

ENCODERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "vit": lambda: ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    ),
    "resnet": lambda: AutoConfig.for_model(
        "resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    ),
    "convnext": lambda: AutoConfig.for_model("convnext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "timm_vit": lambda: TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
            "dynamic_img_size": True,
        },
    ),
    "timm_convnet": lambda: TimmWrapperConfig(
        architecture="resnet10t", model_args={"channels": [8, 8, 16, 16], "stem_width": 8}
    ),
}
HEADS: dict[str, dict[str, Any]] = {
    "LeJepa": {"embedding_size": 8, "projector_hidden_size": 16, "projection_size": 4, "num_slices": 16},
    "RectifiedLpJepa": {"projector_hidden_size": 16, "projection_size": 8, "num_projections": 16},
    "VICReg": {"projector_hidden_size": 16, "projection_size": 8},
    "SimSiam": {"projection_size": 8, "predictor_hidden_size": 4},
}


def build(name: str = "LeJepa", encoder: str = "vit", **kwargs: Any) -> JointEmbeddingPreTrainedModel:
    config = getattr(hf_jepa, f"{name}PreTrainingConfig")(
        encoder_config=ENCODERS[encoder](), image_size=32, **{**HEADS[name], **kwargs}
    )
    return getattr(hf_jepa, f"{name}ForPreTraining")(config)


@pytest.fixture
def views() -> torch.Tensor:
    return torch.randn(4, 2, 3, 32, 32)


@pytest.fixture
def local_views() -> torch.Tensor:
    return torch.randn(4, 3, 3, 16, 16)
