"""The sequence that VL-JEPA's predictor reads: vision tokens, then the query's."""

from typing import NamedTuple

import torch

from .configuration_vl_jepa import VLJepaConfig


class PredictorSequence(NamedTuple):
    """Embeddings `(batch, tokens, width)`, mask and position ids, int64 of shape `(batch, tokens)`."""

    embeds: torch.Tensor
    mask: torch.Tensor
    position_ids: torch.Tensor


def check_lengths(vision_embeds: torch.Tensor, query_input_ids: torch.Tensor | None, config: VLJepaConfig) -> None:
    """
    Raises:
        `ValueError`: for vision tokens of another width, queries that are not one per row, no query where the pool is
            over the query, or more tokens than the predictor has positions.
    """
    if vision_embeds.ndim != 3 or vision_embeds.shape[2] != config.vision_hidden_size:
        raise ValueError(
            f"`vision_embeds` must have shape (batch, tokens, {config.vision_hidden_size}), got "
            f"{tuple(vision_embeds.shape)}."
        )
    if query_input_ids is None and config.pool_tokens == "query":
        raise ValueError('pool_tokens="query" averages over the query; pass one, or set pool_tokens="all".')
    if query_input_ids is not None and (query_input_ids.ndim != 2 or len(query_input_ids) != len(vision_embeds)):
        raise ValueError(
            f"{len(vision_embeds)} images or clips need as many queries, got `query_input_ids` of shape "
            f"{tuple(query_input_ids.shape)}."
        )
    limit = getattr(config.predictor_config, "max_position_embeddings", None)
    length = 0 if query_input_ids is None else query_input_ids.shape[1]
    if limit is not None and vision_embeds.shape[1] + length > limit:
        raise ValueError(
            f"{vision_embeds.shape[1]} vision tokens and a query of {length} make {vision_embeds.shape[1] + length}, "
            f"but the predictor has {limit} positions; shorten the query or the clip."
        )


def join_sequence(
    vision: torch.Tensor,
    vision_mask: torch.Tensor,
    words: torch.Tensor | None,
    query_mask: torch.Tensor | None,
    vision_positions: str,
) -> PredictorSequence:
    """
    Puts a query behind vision tokens.

    Args:
        vision (`torch.FloatTensor` of shape `(batch, N, width)`): projected.
        vision_mask (`torch.LongTensor` of shape `(batch, N)`): 0 for padding.
        words (`torch.FloatTensor` of shape `(batch, length, width)`, *optional*): embedded query.
        query_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 for padding, on either side.
        vision_positions (`str`): as in [`VLJepaConfig`].

    Returns:
        [`PredictorSequence`]: positions count real tokens, so that padding moves nothing.
    """
    embeds, mask = vision, vision_mask
    if words is not None:
        embeds, mask = torch.cat([vision.to(words.dtype), words], dim=1), torch.cat([vision_mask, query_mask], dim=1)
    counted = mask
    if vision_positions == "shared":
        counted = mask.clone()
        counted[:, 1 : vision.shape[1]] = 0
    return PredictorSequence(embeds, mask, (counted.cumsum(dim=1) - 1).clamp(min=0))
