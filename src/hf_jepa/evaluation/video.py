"""Clips of a batch one by one, and their tokens together again."""

import torch


def split_clips(clips: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """
    Clips of a batch one by one.

    Args:
        clips (`torch.Tensor` of shape `(batch, frames, channels, height, width)`, `(batch, segments, frames, ...)` or
            `(batch, segments, views, frames, ...)`).

    Returns:
        `tuple`: clips of shape `(batch * segments * views, frames, channels, height, width)`, segments, views.

    Raises:
        ValueError: For another number of dimensions.
    """
    if not 5 <= clips.ndim <= 7:
        raise ValueError(
            "Clips must have shape (batch, frames, channels, height, width), (batch, segments, frames, ...) or "
            f"(batch, segments, views, frames, ...), got {tuple(clips.shape)}."
        )
    segments = clips.shape[1] if clips.ndim >= 6 else 1
    views = clips.shape[2] if clips.ndim == 7 else 1
    return clips.reshape(-1, *clips.shape[-4:]), segments, views


def join_clips(tokens: torch.Tensor, segments: int, views: int) -> torch.Tensor:
    """
    Tokens of [`split_clips`]' clips by row: those of all segments of a view in one sequence (V-JEPA, released
    evaluation).

    Args:
        tokens (`torch.Tensor` of shape `(batch * segments * views, tokens, width)`).
        segments (`int`): of a row.
        views (`int`): of a segment.

    Returns:
        `torch.Tensor` of shape `(batch, views, segments * tokens, width)`.
    """
    return tokens.unflatten(0, (-1, segments, views)).transpose(1, 2).flatten(2, 3)
