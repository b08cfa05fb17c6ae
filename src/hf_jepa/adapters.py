"""peft's adapters inside a part of a model, recorded in the model's config so that checkpoints load as they are."""

import dataclasses
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .parts import tie_as_declared


def plain_adapter_config(peft_config: Any) -> dict[str, Any]:
    """
    A `peft.PeftConfig` as JSON holds it.

    Raises:
        `ValueError`: for anything else, and for prompt learning, which puts nothing into the part.
    """
    from peft import PeftConfig

    if not isinstance(peft_config, PeftConfig) or peft_config.is_prompt_learning:
        raise ValueError(
            f"An adapter must be a peft.PeftConfig that puts weights into layers, such as peft.LoraConfig, got "
            f"{type(peft_config).__name__}."
        )
    # The version of peft says nothing about the weights, and would make an upgrade look like another run.
    fields = {field.name for field in dataclasses.fields(peft_config) if field.init} - {"peft_version"}
    plain = json.loads(json.dumps(peft_config.to_dict(), default=sorted))
    return {key: value for key, value in plain.items() if key in fields and value is not None}


def adapter_of(part: nn.Module) -> dict[str, Any] | None:
    """
    What [`plain_adapter_config`] makes of the adapter in a peft model; `None` for a model without.

    Raises:
        `ValueError`: for several adapters, or one of another name than peft's "default", which a checkpoint's keys
            would carry.
    """
    configs = getattr(part, "peft_config", None)
    if not configs:
        return None
    places = [parameter.data_ptr() for parameter in part.parameters() if parameter.numel() and not parameter.is_meta]
    if len(places) != len(set(places)):
        raise ValueError(
            "peft ties LoRA of two tied embeddings (`ensure_weight_tying`) by views of one another, which no "
            "safetensors file holds; train copies: `modules_to_save=['embed_tokens']` with `ensure_weight_tying`, "
            "or leave the embedding out of `target_modules`."
        )
    if list(configs) != ["default"]:
        raise ValueError(
            f"The peft model holds the adapters {list(configs)}, but one named 'default' is trained: load it with "
            "`PeftModel.from_pretrained(base, folder, is_trainable=True)`, and merge others into the base first."
        )
    return plain_adapter_config(configs["default"])


def with_adapter(part: PreTrainedModel, config: dict[str, Any]) -> nn.Module:
    """
    The part with a new adapter of [`plain_adapter_config`] in it; all its other weights are frozen.

    Args:
        part (`PreTrainedModel`): changed in place.
        config (`dict`).
    """
    from peft import get_peft_config, get_peft_model

    tie_as_declared(part)
    known = set(part.modules())
    wrapped = get_peft_model(part, get_peft_config(config))
    # Named after the part by peft, which was built from a config here and has no name.
    wrapped.peft_config["default"].base_model_name_or_path = config.get("base_model_name_or_path")
    for module in wrapped.modules():
        if module not in known:
            # peft has drawn it; transformers would draw the factor that starts at zero, too.
            module._is_hf_initialized = True
    return wrapped


def merge_adapter(decoder: nn.Module) -> PreTrainedModel:
    """
    A peft model's causal language model with the adapter merged into its weights, in place. Where an adapter on one of
    two tied embeddings makes them differ, they are tied no more, and the config says so.
    """

    def base(module: nn.Module) -> nn.Module:
        return module.get_base_layer() if hasattr(module, "get_base_layer") else module

    plain = decoder.get_base_model()
    words, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    touched = head is not None and (base(words) is not words or base(head) is not head)
    came_apart = touched and base(head).weight is base(words).weight
    if not came_apart:
        return decoder.merge_and_unload()
    # Merging into the one weight that both share would change the other.
    base(head).weight = nn.Parameter(base(head).weight.detach().clone())
    configs = {id(config): config for config in (plain.config, plain.config.get_text_config())}.values()
    for config in configs:
        config.tie_word_embeddings = False
    return decoder.merge_and_unload()


def trained_names(part: nn.Module) -> frozenset[str]:
    """Names of the parameters of a part that have a gradient; loading replaces parameters, and forgets it."""
    return frozenset(name for name, parameter in part.named_parameters() if parameter.requires_grad)


@torch.no_grad()
def restore_original_rows(part: nn.Module) -> None:
    """Fills the copies of rows that `trainable_token_indices` keeps to unmerge by, which no checkpoint holds."""
    for module in part.modules():
        if hasattr(module, "trainable_tokens_original") and module.tied_adapter is None:
            for name, rows in module.trainable_tokens_original.items():
                rows.copy_(module.get_base_layer().weight[module.token_indices[name]])
