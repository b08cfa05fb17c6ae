"""Attention masks of packed documents with branches, in the form each attention backend takes."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from .text import BLANK

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_KINDS = ("full_attention", "sliding_attention")
_MASKED_BACKENDS = ("sdpa", "flex_attention", "eager")


class Tokens(NamedTuple):
    """
    What decides who sees whom: three int64 tensors of shape `(rows, length)`. `document` is -1 for padding, -2 for
    blanks; `branch` may be missing, which is 0 everywhere.
    """

    document: torch.Tensor
    branch: torch.Tensor | None
    position_ids: torch.Tensor


def _sees(
    query: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, ...], window: int | None, blanks: bool
) -> torch.Tensor:
    """The rule; query and key are (index, document, branch, position) that broadcast against each other."""
    (i, document, branch, position), (j, key_document, key_branch, key_position) = query, key
    seen = (i >= j) & (document == key_document) & (document >= 0) & ((key_branch == 0) | (key_branch == branch))
    if window is not None:
        # By position: a predictor token stands right behind its Text, however long the response between them.
        seen = seen & (position - key_position < window)
    return seen | ((i == j) & ((document != BLANK) | (not blanks)))


def _columns(tokens: Tokens) -> tuple[torch.Tensor, ...]:
    document, branch, position_ids = tokens
    index = torch.arange(document.shape[1], device=document.device).expand_as(document)
    return index, document, torch.zeros_like(document) if branch is None else branch, position_ids


def visible_tokens(tokens: Tokens, window: int | None = None, blanks: bool = True) -> torch.Tensor:
    """
    Which tokens each token attends to: itself, and what stands before it in its document, in branch 0 or its own, less
    than `window` positions back. Padding (document -1) attends to itself only, a blank (-2) to nothing.

    Args:
        tokens ([`Tokens`]).
        window (`int`, *optional*): of sliding attention, in positions.
        blanks (`bool`): `False` lets blanks attend to themselves.

    Returns:
        `torch.BoolTensor` of shape `(rows, 1, length, length)`: [row, head, query, key].
    """
    columns = _columns(tokens)
    query, key = tuple(x[:, :, None] for x in columns), tuple(x[:, None, :] for x in columns)
    return _sees(query, key, window, blanks)[:, None]


def visible_from(index: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """
    Which tokens of all rows some tokens attend to, without a window.

    Args:
        index (int64 tensor of shape `(n, 2)`): [row, column] of these tokens.
        tokens ([`Tokens`]).

    Returns:
        `torch.BoolTensor` of shape `(n, rows * length)`.
    """
    columns = _columns(tokens)
    query = tuple(x[index[:, 0], index[:, 1]][:, None] for x in columns)
    seen = _sees(query, tuple(x.flatten()[None] for x in columns), None, True)
    rows, length = tokens.document.shape
    row = torch.arange(rows, device=index.device).repeat_interleave(length, output_size=rows * length)
    return seen & (index[:, :1] == row)


def _block_mask(tokens: Tokens, window: int | None) -> "BlockMask":
    from torch.nn.attention.flex_attention import create_block_mask

    _, document, branch, position_ids = _columns(tokens)

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> torch.Tensor:
        query = (i, document[b, i], branch[b, i], position_ids[b, i])
        key = (j, document[b, j], branch[b, j], position_ids[b, j])
        return _sees(query, key, window, True)

    rows, length = document.shape
    # Compiled, no dense mask is materialised; on CPU the compiler costs more than the mask.
    compiled = document.device.type != "cpu" and not torch.compiler.is_compiling()
    create = torch.compile(create_block_mask) if compiled else create_block_mask
    return create(mask_mod, rows, None, length, length, device=document.device)


def attention_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """
    The kinds of attention in a decoder, by the names of `layer_types`, with their windows in positions (`None`: all).

    Args:
        config (`PreTrainedConfig`): of the decoder.

    Raises:
        `ValueError`: for layers that no mask can keep apart: recurrent, linear, convolutional, chunked.
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    # Where the class does not know `layer_types`, its model has one mask for all, windowed if there is a window.
    kinds = set(config.layer_types or ()) if hasattr(type(config), "layer_types") else set()
    if not kinds:
        kinds = {_KINDS[0] if window is None else _KINDS[1]}
    unknown = sorted(kinds.difference(_KINDS))
    if unknown:
        raise ValueError(
            f"{config.model_type} has {', '.join(unknown)} layers, which attention masks do not govern; packed views "
            "would leak into each other. Use a decoder of full_attention and sliding_attention layers."
        )
    return {kind: window if kind == _KINDS[1] else None for kind in sorted(kinds)}


def is_varlen(attn_implementation: str) -> bool:
    """Whether a backend takes no mask but keeps documents apart by their positions (FlashAttention)."""
    return "flash" in attn_implementation and not attn_implementation.startswith("paged")


def check_attention(config: PreTrainedConfig) -> dict[str, int | None]:
    """
    Checks that a decoder can compute LLM-JEPA's attention.

    Args:
        config (`PreTrainedConfig`): of the decoder.

    Returns:
        [`attention_windows`].

    Raises:
        `ValueError`: for a backend or layers that cannot take such a mask.
    """
    backend = config.get_text_config()._attn_implementation
    if backend not in _MASKED_BACKENDS and not is_varlen(backend):
        raise ValueError(
            f"attn_implementation={backend!r} cannot take LLM-JEPA's mask; load the decoder with one of "
            f"{', '.join(_MASKED_BACKENDS)}, or with flash_attention_2 or _3 and layout='replicated'."
        )
    return attention_windows(config)


def attention_masks(
    document: torch.Tensor,
    branch: torch.Tensor | None,
    position_ids: torch.Tensor,
    config: PreTrainedConfig,
    dtype: torch.dtype = torch.float32,
) -> "torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask] | None":
    """
    What a decoder takes as `attention_mask` for packed rows: boolean for sdpa, additive for eager, a block mask for
    FlexAttention, nothing for FlashAttention; a dict by layer type where layers differ.

    Blanks (document -2) see nothing, as the released code's additive mask has it; under eager attention, where that
    makes every output NaN, they see themselves.

    Args:
        document, position_ids (int64 tensors of shape `(rows, length)`): see [`visible_tokens`].
        branch (the same, *optional*).
        config (`PreTrainedConfig`): of the decoder.
        dtype (`torch.dtype`): of the decoder's activations, for eager attention.

    Raises:
        `ValueError`: as [`check_attention`].
    """
    tokens, windows = Tokens(document, branch, position_ids), check_attention(config)
    backend = config.get_text_config()._attn_implementation
    if is_varlen(backend):
        return None
    masks = {}
    for kind, window in windows.items():
        if backend == "flex_attention":
            masks[kind] = _block_mask(tokens, window)
            continue
        seen = visible_tokens(tokens, window, blanks=backend == "sdpa")
        if backend == "eager":
            # A boolean mask would be added as 0 and 1, silently.
            seen = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        masks[kind] = seen
    return masks if len(masks) > 1 else next(iter(masks.values()))
