"""Predictor tokens as rows of the vocabulary, for parity with the released LLM-JEPA."""

from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKEN = "<|predictor_{}|>"


def predictor_token_ids(
    tokenizer: PreTrainedTokenizerBase,
    num_predictor_tokens: int,
    predictor_position: Literal["end", "front"] = "end",
) -> list[int]:
    """
    Ids of `<|predictor_1|> ... <|predictor_k|>` in the released code's order: descending behind the view, ascending
    before it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`).
        num_predictor_tokens (`int`): k.
        predictor_position (`str`).

    Raises:
        `ValueError`: if the tokenizer lacks them.
    """
    tokens = [_TOKEN.format(number) for number in range(1, num_predictor_tokens + 1)]
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ValueError(
            f"The tokenizer lacks {', '.join(missing)}; call `add_predictor_tokens(decoder, tokenizer, "
            f"{num_predictor_tokens})`, or use predictor_mode='soft', which needs no tokens."
        )
    ids = [vocabulary[token] for token in tokens]
    return ids if predictor_position == "front" else ids[::-1]


def add_predictor_tokens(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_predictor_tokens: int
) -> None:
    """
    Adds `<|predictor_1|> ... <|predictor_k|>` to a tokenizer that lacks them, and rows to the decoder's embedding and
    head where the tokenizer outgrows them. New rows are drawn by `resize_token_embeddings`: the mean of the old rows,
    with a little of their covariance as noise. A vocabulary padded beyond the tokenizer is never shrunk.

    Args:
        decoder (`PreTrainedModel`): changed in place.
        tokenizer (`PreTrainedTokenizerBase`): changed in place.
        num_predictor_tokens (`int`): k.
    """
    tokens = [_TOKEN.format(number) for number in range(1, num_predictor_tokens + 1)]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    if len(tokenizer) > decoder.get_input_embeddings().weight.shape[0]:
        decoder.resize_token_embeddings(len(tokenizer))


def check_vocabulary(decoder: PreTrainedModel, token_ids: list[int] | tuple[int, ...]) -> None:
    """
    Checks that a decoder's head has as many rows as its embedding, and that predictor tokens are among them.

    Raises:
        `ValueError`: if not.
    """
    rows, head = decoder.get_input_embeddings().weight.shape[0], decoder.get_output_embeddings()
    if head is not None and head.weight.shape[0] != rows:
        raise ValueError(
            f"The embedding has {rows} rows but the head {head.weight.shape[0]}: the vocabulary was resized without "
            "its head. Use `resize_token_embeddings`, which resizes both."
        )
    if any(not 0 <= number < rows for number in token_ids):
        raise ValueError(
            f"`predictor_token_ids` {list(token_ids)} lie outside the decoder's vocabulary of {rows}; call "
            "`add_predictor_tokens`, which resizes it."
        )


@torch.no_grad()
def mean_token_vectors(embedding: torch.nn.Module, number: int) -> torch.Tensor:
    """
    `number` vectors like those that `resize_token_embeddings` gives new tokens: the mean of all rows, with noise of
    1e-9 of the rows' variance per dimension.

    Args:
        embedding (`nn.Module`): with a `weight` of shape `(vocabulary, width)`.
        number (`int`).

    Returns:
        `torch.Tensor` of shape `(number, width)`, float32.
    """
    rows = embedding.weight.float()
    noise = torch.randn(number, rows.shape[1], device=rows.device)
    return rows.mean(dim=0) + noise * rows.std(dim=0) * 1e-9**0.5
