"""Which causal language models LLM-JEPA can compute in one packed pass."""

import inspect

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ...masking.attention import check_attention

logger = logging.get_logger(__name__)


def check_decoder(causal_lm: PreTrainedModel, backbone: PreTrainedModel) -> None:
    """
    Checks that masks and position ids alone decide what a decoder's states are made of.

    Args:
        causal_lm (`PreTrainedModel`): with its head.
        backbone (`PreTrainedModel`): what the head reads the states of.

    Raises:
        `ValueError`: for layers with a memory of their own (recurrent, linear, convolutional), attention to what
            follows, positions counted in columns of the row (ALiBi included), and an attention backend that takes no
            mask.
    """
    name, config = type(causal_lm).__name__, causal_lm.config.get_text_config()
    if backbone is causal_lm or backbone._is_stateful:
        raise ValueError(
            f"{name} has no attention backbone of its own; LLM-JEPA needs a decoder with full or sliding-window "
            "attention layers."
        )
    # Families that are encoders, too, have both fields.
    is_encoder = getattr(config, "is_decoder", True) is False and hasattr(config, "add_cross_attention")
    if is_encoder or getattr(config, "is_causal", True) is False:
        raise ValueError(
            f"{name} attends to what follows, so it would read the next token; load it with `is_decoder=True`, or use "
            "a causal language model."
        )
    if "position_ids" not in inspect.signature(backbone.forward).parameters or getattr(config, "alibi", False):
        raise ValueError(
            f"{name} counts positions in columns of the row, where packed views do not start at 0 and predictor "
            "tokens stand behind the response; use a decoder that takes `position_ids` (rotary or learned)."
        )
    check_attention(causal_lm.config)


def check_ids(backbone: PreTrainedModel, input_ids: torch.Tensor, position_ids: torch.Tensor) -> None:
    """
    Checks that a decoder has rows for all tokens and, if it has a table of them, for all positions. Values are looked
    at only where that costs no device synchronisation (CPU tensors, outside compilation).

    Raises:
        `ValueError`: if not.
    """
    if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or not input_ids.numel():
        return
    rows, largest = backbone.get_input_embeddings().weight.shape[0], int(input_ids.max())
    if largest >= rows:
        raise ValueError(
            f"Token {largest} lies outside the decoder's vocabulary of {rows}: the tokenizer is another model's, or "
            "has got tokens since; `decoder.resize_token_embeddings(len(tokenizer))` makes room for them."
        )
    limit, last = getattr(backbone.config.get_text_config(), "max_position_embeddings", None), int(position_ids.max())
    words = backbone.get_input_embeddings()
    tables = [part for part in backbone.modules() if isinstance(part, nn.Embedding) and part is not words]
    if limit is None or last < limit:
        return
    if any(limit <= table.num_embeddings <= limit + 2 for table in tables):
        raise ValueError(
            f"A view reaches position {last}, but the decoder's table of positions has {limit}: keep rows shorter, "
            "`pair_format=PairFormat(max_length=...)`, or drop them."
        )
    logger.warning_once(
        # Without the place, so that it is said once.
        f"Views reach beyond the {limit} positions that the decoder's config promises (`max_position_embeddings`): "
        "rotary ones go on, but other programs may cut such texts."
    )
