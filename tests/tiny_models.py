"""Models of random weights, small enough to be trained within a second."""

from typing import Any

from transformers import AutoModelForPreTraining, IJepaConfig, LlamaConfig, LlamaForCausalLM

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig

# Fields of a `VJepaConfig`.
TINY_VJEPA = {
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pred_hidden_size": 24,
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
}
# Fields of a `ViTConfig` and its like.
TINY_VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def tiny_llama(tokenizer: Any, **fields: Any) -> LlamaForCausalLM:
    """One layer over a tokenizer's words."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    fields = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **sizes, **fields}
    return LlamaForCausalLM(LlamaConfig(**fields))


def tiny_ijepa(
    encoder: dict[str, Any], config_class: type[IJepaPreTrainingConfig] = IJepaPreTrainingConfig, **fields: Any
) -> IJepaForPreTraining:
    """An I-JEPA or C-JEPA: fields of its encoder's config, and of its own."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    encoder_config = IJepaConfig(**{**sizes, "patch_size": 8, "layer_norm_eps": 1e-6, **encoder})
    fields = {"predictor_hidden_size": 16, "predictor_num_hidden_layers": 1, **fields}
    return AutoModelForPreTraining.from_config(config_class(encoder_config=encoder_config, **fields))
