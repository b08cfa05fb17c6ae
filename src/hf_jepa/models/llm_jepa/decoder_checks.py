"""Which causal language models LLM-JEPA can compute in one packed pass."""

import inspect

from transformers import PreTrainedModel

from ...masking.attention import check_attention


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
