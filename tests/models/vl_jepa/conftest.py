"""Tiny random parts of every kind, and a VL-JEPA of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from hf_jepa import VLJepaModel

VOCABULARY = 60
# Wide weights, so that attention is far from uniform and a wrong mask shows.
LANGUAGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
    "initializer_range": 0.2,
}
CLIP = {**VISION, "crop_size": 16, "frames_per_clip": 4, "tubelet_size": 2, "mlp_ratio": 2.0, "pred_hidden_size": 24}
PARTS = {
    "vjepa2": {"model_type": "vjepa2", **CLIP, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1},
    "vjepa": {"model_type": "vjepa", **CLIP, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1},
    "vit": {"model_type": "vit", **VISION, "image_size": 16, "intermediate_size": 32},
    "videomae": {
        "model_type": "videomae",
        **VISION,
        "image_size": 16,
        "num_frames": 4,
        "tubelet_size": 2,
        "intermediate_size": 32,
    },
    "resnet": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 20], "depths": [1, 1]},
    "llama": {"model_type": "llama", **LANGUAGE},
    "qwen3": {"model_type": "qwen3", **LANGUAGE},
    "mistral": {"model_type": "mistral", **LANGUAGE, "sliding_window": 40},
    "bert": {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **LANGUAGE,
        "num_hidden_layers": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "use_bidirectional_attention": True,
    },
}


@pytest.fixture
def make_part() -> Callable[..., PreTrainedModel]:
    """A random part by name; causal language models with `causal=True`."""

    def make(name: str, causal: bool = False, **options: Any) -> PreTrainedModel:
        auto_class = AutoModelForCausalLM if causal else AutoModel
        return auto_class.from_config(AutoConfig.for_model(**{**PARTS[name], **options})).eval()

    return make


@pytest.fixture
def make_model(make_part) -> Callable[..., VLJepaModel]:
    """A VL-JEPA of tiny parts, by name or given."""

    def make(vision: Any = "vjepa2", predictor: Any = "llama", y_encoder: Any = "bert", **options: Any) -> VLJepaModel:
        given = {"vision": vision, "predictor": predictor, "y_encoder": y_encoder}
        given = {name: make_part(part) if part in PARTS else part for name, part in given.items()}
        return VLJepaModel.from_components(**given, **{"num_layers": 2, "projection_dim": 16, **options})

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three clips with queries of 5, 3, 4 and targets of 4, 6, 2 tokens."""
    generator = torch.Generator().manual_seed(5)

    def tokens(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(lengths)
        mask = torch.stack([torch.arange(longest) < length for length in lengths]).long()
        return torch.randint(3, VOCABULARY, mask.shape, generator=generator) * mask, mask

    query, query_mask = tokens(5, 3, 4)
    target, target_mask = tokens(4, 6, 2)
    return {
        "pixel_values_videos": torch.randn(3, 4, 3, 16, 16, generator=generator),
        "query_input_ids": query,
        "query_attention_mask": query_mask,
        "target_input_ids": target,
        "target_attention_mask": target_mask,
    }
