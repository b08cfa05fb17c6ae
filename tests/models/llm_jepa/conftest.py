"""Tiny decoders of every family, and LLM-JEPA computed by separate ordinary passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 60
# Windows are shorter than the conversations, and layers of both kinds are there where a family has them.
FAMILIES = {
    "llama": {"model_type": "llama"},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama3_rope": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "gemma2": {"model_type": "gemma2", "sliding_window": 5, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 5,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmo2": {"model_type": "olmo2"},
    "phi": {"model_type": "phi"},
    "smollm3": {"model_type": "smollm3"},
    # Learned positions; the head reads a module within the base model.
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3, "dropout": 0.0},
}


@pytest.fixture
def make_decoder() -> Callable[..., PreTrainedModel]:
    def make(family: str = "llama", attn_implementation: str | None = None, **options: Any) -> PreTrainedModel:
        config = AutoConfig.for_model(
            **{
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                # Wide weights, so that attention is far from uniform and a wrong mask shows.
                "initializer_range": 0.3,
                "attention_dropout": 0.0,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **FAMILIES[family],
                **options,
            }
        )
        implementation = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        return AutoModelForCausalLM.from_config(config, **implementation).eval()

    return make


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    """Ragged conversations with Text of 4, 9, 7 tokens; the last one carries no JEPA term."""
    generator = torch.Generator().manual_seed(7)

    def ids(number: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (number,), generator=generator).tolist()

    made = []
    for text, response, code in ((4, 8, 7), (9, 3, 5), (7, 4, None)):
        conversation = ids(text + response)
        labels = [-100] * (text + 1) + conversation[text + 1 :]
        made.append({"input_ids": conversation, "labels": labels, "text_length": text})
        if code is not None:
            made[-1]["code_ids"] = ids(code)
    return made


@pytest.fixture
def separate_passes() -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    return _separate_passes


@pytest.fixture
def assert_same_gradients() -> Callable[..., None]:
    return _assert_same_gradients


def _separate_passes(
    decoder: PreTrainedModel, examples: list[dict], vectors: torch.Tensor, front: bool = False, reverse: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, predictions and targets of one ordinary forward pass per sequence, without packing or masks."""
    embedding, backbone = decoder.get_input_embeddings(), decoder.base_model

    def last_state(ids: list[int], vectors: torch.Tensor | None = None) -> torch.Tensor:
        words = embedding(torch.tensor([ids]))
        if vectors is not None:
            vectors = vectors[None] * getattr(embedding, "embed_scale", 1.0)
            words = torch.cat([vectors, words] if front else [words, vectors], dim=1)
        return backbone(inputs_embeds=words, use_cache=False).last_hidden_state[0, -1]

    lm_loss, predictions, targets, labels = 0, [], [], 0
    for example in examples:
        logits = decoder(torch.tensor([example["input_ids"]]), use_cache=False).logits[0, :-1]
        wanted = torch.tensor(example["labels"])[1:]
        lm_loss = lm_loss + F.cross_entropy(logits, wanted, reduction="sum")
        labels += (wanted != -100).sum()
        if "code_ids" in example:
            text = example.get("text_ids", example["input_ids"][: example["text_length"]])
            source, target = (example["code_ids"], text) if reverse else (text, example["code_ids"])
            predictions.append(last_state(source, vectors))
            targets.append(last_state(target))
    predictions, targets = torch.stack(predictions), torch.stack(targets)
    jepa_loss = (1 - F.cosine_similarity(predictions, targets)).mean()
    return lm_loss / labels + jepa_loss, predictions, targets


def _assert_same_gradients(found: torch.Tensor, expected: torch.Tensor, model: torch.nn.Module) -> None:
    """
    Gradients of two losses agree to 1e-5 of each parameter's largest. Left out are those that are rounding noise
    alone, as of the keys' biases, which no softmax notices.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    weights = [weight for _, weight in named]
    pairs = [torch.autograd.grad(loss, weights, materialize_grads=True) for loss in (found, expected)]
    compared = 0
    for (name, _), ours, reference in zip(named, *pairs, strict=True):
        scale = reference.abs().max()
        if scale > 1e-6:
            assert (ours - reference).abs().max() <= 1e-5 * max(scale, 1e-2), name
            compared += 1
    assert compared >= 0.9 * len(named)
