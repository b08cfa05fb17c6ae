"""
Attention in bfloat16 on CPUs by plain products, which are faster there than torch's fused kernel, for those who ask
for it with `attn_implementation="cpu_bf16"`; see `scripts/benchmarks/image.py`.
"""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.utils import logging

logger = logging.get_logger(__name__)

CPU_BF16_ATTENTION = "cpu_bf16"

# Scores of as many heads as fit a processor's cache are worked on at once, measured on 64 to 1,568 tokens.
_CACHED_SCORES = 2**19


class _HeadByHeadAttention(torch.autograd.Function):
    """
    Attention whose scores never leave the cache: a few heads at a time, and again in the backward pass instead of
    kept. Tensors are of shape `(batch * heads, tokens, head_dim)`.
    """

    @staticmethod
    def forward(ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        for q, k, v, out in zip(*_few_heads(query, key, value, output), strict=True):
            torch.bmm(torch.softmax(torch.bmm(q * scaling, k.transpose(1, 2)), dim=-1), v, out=out)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in tensors]
        for q, k, v, g, grad_q, grad_k, grad_v in zip(*_few_heads(*tensors, grad, *grads), strict=True):
            scaled = q * ctx.scaling
            weights = torch.softmax(torch.bmm(scaled, k.transpose(1, 2)), dim=-1)
            torch.bmm(weights.transpose(1, 2), g, out=grad_v)
            scores = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype)
            torch.bmm(scores, k, out=grad_q).mul_(ctx.scaling)
            torch.bmm(scores.transpose(1, 2), scaled, out=grad_k)
        return *grads, None


def _few_heads(query: torch.Tensor, key: torch.Tensor, *others: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Every tensor in pieces of as many heads as have `_CACHED_SCORES` scores."""
    heads = max(1, _CACHED_SCORES // (query.shape[1] * key.shape[1]))
    return [tensor.split(heads) for tensor in (query, key, *others)]


def cpu_bf16_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Attention of every query to every key in bfloat16 on a CPU, by plain products: all heads at once where their scores
    are few, else as many as fit the cache, and then no scores are kept for the backward pass. Unlike `eager`, the
    softmax's result stays in bfloat16 (it is accumulated in float32).

    Everything else is `sdpa`'s, with its results: other precisions (a model trained under autocast is evaluated in
    float32), masks, causal attention, position biases, shared keys and values; and other devices, with a warning.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch, heads, tokens, head_dim)`).
        attention_mask, dropout, scaling, is_causal, position_bias, kwargs: as of `sdpa`.

    Returns:
        `torch.Tensor` of shape `(batch, tokens, heads, head_dim)`, and `None` for the weights.
    """
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    restricted = attention_mask is not None or position_bias is not None or (causal and query.shape[2] > 1)
    if query.device.type not in ("cpu", "meta") and not torch.compiler.is_compiling():
        logger.warning_once(
            f'attn_implementation="{CPU_BF16_ATTENTION}" is for CPUs; on {query.device.type} it is "sdpa", which can '
            "be asked for by that name."
        )
    if (
        query.device.type != "cpu"
        or query.dtype != torch.bfloat16
        or restricted
        or query.shape[:2] != key.shape[:2]
        or kwargs.get("softcap") is not None
    ):
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    num_scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    if num_scores > 2 * _CACHED_SCORES and not dropout and not torch.compiler.is_compiling():
        output = _HeadByHeadAttention.apply(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), scaling)
        return output.unflatten(0, query.shape[:2]).transpose(1, 2).contiguous(), None
    weights = torch.softmax((query * scaling) @ key.transpose(-1, -2), dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(CPU_BF16_ATTENTION, cpu_bf16_attention_forward)
AttentionMaskInterface.register(CPU_BF16_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def cast_once(hidden_states: torch.Tensor) -> torch.Tensor:
    """What a layer projects q, k and v from; autocast would cast the one float32 tensor again for each of them."""
    device = hidden_states.device.type
    # Shapes are tried on `meta`, which knows no autocast.
    if device != "meta" and torch.is_autocast_enabled(device):
        return hidden_states.to(torch.get_autocast_dtype(device))
    return hidden_states
