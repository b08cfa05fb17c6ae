"""Which states semantic tube prediction compares (STP, arXiv 2602.22617)."""

from collections.abc import Sequence
from typing import Literal

import torch

Segments = list[tuple[int, int]]
TubeVariant = Literal["paper", "random_span", "inner_span"]
TUBE_VARIANTS = ("paper", "random_span", "inner_span")


def draw_displacements(
    spans: Sequence[tuple[int, int]],
    generator: torch.Generator,
    variant: TubeVariant = "paper",
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
            code's: the displacement over a random span of the content against that before and after it. What a token
            of the content adds is its state minus that of the token before it, for the first one the last of the
            template; the start is drawn first, the end among what follows. `"inner_span"`: the same between states
            of the content alone, without the step into it, both ends drawn at once. In neither does the jump over the
            template between two spans count.
        times (`int`): pairs to draw.

    Returns:
        `list` of pairs `(predicting, target)` of segment lists, the `displacements` of [`pack_examples`].

    Raises:
        `ValueError`: for too few tokens, spans that are empty or overlap, an unknown variant.
    """
    if variant not in TUBE_VARIANTS:
        raise ValueError(f"`variant` must be one of {TUBE_VARIANTS}, got {variant!r}.")
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
    if variant == "random_span":
        return [_draw_span(spans, generator) for _ in range(times)]
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


def _draw_span(spans: Sequence[tuple[int, int]], generator: torch.Generator) -> tuple[Segments, Segments]:
    """What lies before and after a random span of the steps into each token, and the span."""
    # A conversation's first token has none before it.
    steps = [(column - 1, column) for first, end in spans for column in range(max(first, 1), end)]
    start, end = 0, len(steps)
    while end - start == len(steps):
        start = int(torch.randint(len(steps), (), generator=generator))
        end = start + 1 + int(torch.randint(len(steps) - start, (), generator=generator))
    return _joined(steps[:start]) + _joined(steps[end:]), _joined(steps[start:end])


def _joined(steps: Segments) -> Segments:
    """Steps that follow one another, as one."""
    joined: Segments = []
    for before, after in steps:
        if joined and joined[-1][1] == before:
            joined[-1] = (joined[-1][0], after)
        else:
            joined.append((before, after))
    return joined


def _walk(spans: Sequence[tuple[int, int]], start: int, end: int) -> Segments:
    """From one column to a later one, span by span."""
    parts = [(max(first, start), min(stop - 1, end)) for first, stop in spans]
    return [(a, b) for a, b in parts if a < b]
