"""What a published LLM-JEPA repository holds: a causal language model, or an adapter, and nothing that needs us."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..parts import load_auto
from .sources import carry_sources, is_hub_name, source_names
from .staging import staged_release

logger = logging.get_logger(__name__)

_CARD_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def describe_text_model(model: PreTrainedModel, published: PreTrainedModel, base_model: str | None) -> dict[str, Any]:
    """The facts of `results["model"]` that an LLM-JEPA model itself knows."""
    config = model.config
    decoder = model.causal_lm
    objective = {
        "stp": f"Objective: next token, and semantic tube prediction of weight {config.jepa_lambda}.",
        "jepa": f"Objective: next token (weight {config.jepa_gamma}), and a {config.distance} JEPA loss of weight "
        f"{config.jepa_lambda} with {config.num_predictor_tokens} predictor tokens ({config.predictor_mode}).",
    }[config.objective]
    if config.jepa_lambda == 0:
        objective = "Objective: next token alone; a baseline without a JEPA loss."
    fields = {name: getattr(decoder.config.get_text_config(), name, None) for name in _CARD_FIELDS}
    return {
        "family": config.model_type,
        "modality": "text",
        "model_type": decoder.config.model_type,
        "class": type(model).__name__,
        "decoder_class": type(decoder).__name__,
        "is_adapter": published is not None and hasattr(published, "peft_config"),
        "base_model": base_model,
        "objective": objective,
        "num_parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "encoder_config": {name: value for name, value in fields.items() if value is not None},
    }


def save_text_release(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase,
    results: dict[str, Any],
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
    merge_adapter: bool = False,
    keep_predictor_tokens: bool = False,
) -> Path:
    """
    Writes a release of an LLM-JEPA model: the decoder as a plain causal LM, or its adapter, the tokenizer,
    `results.json`, `recipe.yaml`, pictures and the card. Staged beside `folder` and moved in at the end.

    Args:
        model ([`~hf_jepa.LLMJepaForCausalLM`]): the trained model.
        folder (`str` or `PathLike`): where to write.
        tokenizer (`PreTrainedTokenizerBase`): with its chat template.
        results (`dict`): what was measured (see [`~hf_jepa.hub.render_card`]); the model's own facts are added.
        recipe (`dict`, *optional*): the resolved recipe.
        pictures (`Sequence` of paths): copied; captions come from `results["pictures"]`.
        merge_adapter (`bool`): write a whole model where the decoder has an adapter, instead of the adapter alone.
        keep_predictor_tokens (`bool`): keep vocabulary rows that were added for predictor tokens, and the tokens of
            the tokenizer.

    Returns:
        The folder.

    Raises:
        `ValueError`: for a picture that does not exist, or a release that fails [`~hf_jepa.hub.check_release`].
    """
    published = model.export_decoder(merge_adapter=merge_adapter, keep_predictor_tokens=keep_predictor_tokens)
    is_adapter = hasattr(published, "peft_config")
    source = next(iter(source_names(model)), None)
    if is_adapter:
        source = next(iter(published.peft_config.values())).base_model_name_or_path or source
    results = carry_sources(results, [source] if source else [])
    base_model = results.get("base_model") or (source if is_adapter else None)
    facts = {"model": {**results.get("model", {}), **describe_text_model(model, published, base_model)}}
    if is_adapter:
        rows = published.get_input_embeddings().weight.shape[0]
        facts["model"]["vocabulary_rows"] = None if rows == _rows_of(base_model) else rows
        if not is_hub_name(base_model):
            logger.warning(
                f"The adapter is for {base_model!r}, which nobody else has: name the repository of its base model in "
                '`results["base_model"]`, or release a whole model with `merge_adapter=True`.'
            )
    with staged_release(folder, results | facts, recipe, pictures) as staged:
        published.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        if not keep_predictor_tokens and model.config.predictor_token_ids:
            _drop_tokens(staged, set(model.config.predictor_token_ids))
    return Path(folder)


def _rows_of(base_model: str | None) -> int | None:
    """Rows of the vocabulary that a base model has; `None` where its config is not on this disk."""
    try:
        return load_auto(AutoConfig, base_model, local_files_only=True).get_text_config().vocab_size
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _drop_tokens(folder: Path, ids: set[int]) -> None:
    """Takes added tokens out of a saved tokenizer, which would else name rows that the embedding no longer has."""
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    saved, config = (json.loads(path.read_text(encoding="utf-8")) for path in (file, config_file))
    names = {token["content"] for token in saved["added_tokens"] if token["id"] in ids}
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["id"] not in ids]
    config["extra_special_tokens"] = [name for name in config.get("extra_special_tokens", []) if name not in names]
    for path, content in ((file, saved), (config_file, config)):
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
