"""The attention that pretraining models use by default, chosen by measurement; see `scripts/benchmark.py`."""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

MEASURED_ATTENTION = "jepa_measured"


def measured_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    torch's fused attention, except in bfloat16 on CPUs, where plain products are faster. Unlike `eager`, the softmax's
    result stays in bfloat16 (it is accumulated in float32), which takes a third of the memory.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch, heads, tokens, head_dim)`).

    Returns:
        `torch.Tensor` of shape `(batch, tokens, heads, head_dim)`, and `None` for the weights.
    """
    if not (query.device.type == "cpu" and query.dtype == torch.bfloat16 and attention_mask is None):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = torch.softmax((query * scaling) @ key.transpose(-1, -2), dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(MEASURED_ATTENTION, measured_attention_forward)
AttentionMaskInterface.register(MEASURED_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def cast_once(module: nn.Module, args: tuple) -> tuple:
    """Forward pre-hook: without it, autocast casts the one float32 input again for each of q, k and v."""
    device = args[0].device.type
    if torch.is_autocast_enabled(device):
        return (args[0].to(torch.get_autocast_dtype(device)), *args[1:])
    return args


def cast_attention_inputs_once(model: PreTrainedModel) -> None:
    """Adds [`cast_once`] to every attention of an in-tree ViT-like model."""
    for module in model.modules():
        if hasattr(module, "q_proj") and hasattr(module, "k_proj"):
            module.register_forward_pre_hook(cast_once)
