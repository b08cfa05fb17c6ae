"""Which states semantic tube prediction compares (STP, arXiv 2602.22617)."""

from collections.abc import Sequence
from typing import Literal

import torch

Segments = list[tuple[int, int]]


def draw_displacements(
    spans: Sequence[tuple[int, int]],
    generator: torch.Generator,
    variant: Literal["paper", "random_span"] = "paper",
    times: int = 1,
) -> list[tuple[Segments, Segments]]:
    """
    Draws pairs of displacements that lie on a straight line in a semantic tube. A displacement is a sum of differences
    of states, end minus start, given as a list of `(start, end)` columns.

    Args:
        spans (`Sequence` of `(first, end)`): columns of the tokens drawn from, end excluded: the whole conversation,
            or the user's and the assistant's content, without the template between them.
        generator (`torch.Generator`): on the CPU.
        variant (`str`): `"paper"`: random s < r < t, `h_r - h_s` against `h_t - h_r`. `"random_span"`, the released
            code's: the displacement over a random span of the content against that before and after it; the jump over
            the template between two spans counts in neither.
        times (`int`): pairs to draw.

    Returns:
        `list` of pairs `(predicting, target)` of segment lists, the `displacements` of [`pack_examples`].

    Raises:
        `ValueError`: for too few tokens, spans that are empty or overlap, an unknown variant.
    """
    if variant not in ("paper", "random_span"):
        raise ValueError(f'`variant` must be "paper" or "random_span", got {variant!r}.')
    if any(first >= end for first, end in spans) or any(
        end > first for (_, end), (first, _) in zip(spans, spans[1:], strict=False)
    ):
        raise ValueError(f"Spans must not be empty or overlap, and be in order, got {list(spans)}.")
    columns = [column for first, end in spans for column in range(first, end)]
    number = len(columns)
    if number < 3:
        raise ValueError(f"Semantic tube prediction needs at least 3 tokens, got {number}; drop the example.")
    if variant == "paper":
        triples = [torch.randperm(number, generator=generator)[:3].sort().values.tolist() for _ in range(times)]
        return [([(columns[s], columns[r])], [(columns[r], columns[t])]) for s, r, t in triples]
    if number - len(spans) < 2:
        raise ValueError(f"No span of {list(spans)} leaves tokens around it; drop the example.")
    pairs = []
    while len(pairs) < times:
        a, b = torch.randperm(number, generator=generator)[:2].sort().values.tolist()
        around = _walk(spans, columns[0], columns[a]) + _walk(spans, columns[b], columns[-1])
        span = _walk(spans, columns[a], columns[b])
        # A span of everything, or of nothing but the template between two spans, is drawn again.
        if around and span:
            pairs.append((around, span))
    return pairs


def _walk(spans: Sequence[tuple[int, int]], start: int, end: int) -> Segments:
    """From one column to a later one, span by span."""
    parts = [(max(first, start), min(stop - 1, end)) for first, stop in spans]
    return [(a, b) for a, b in parts if a < b]
