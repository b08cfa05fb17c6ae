"""
Selective decoding of a stream of embeddings (VL-JEPA §4.6): text is made only where the stream shifts. Offline by
Ward's clustering of temporal neighbours, as in the paper; online by a trigger that sees the past alone.
"""

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

DecodeFrom = Literal["mean", "exact"]


@dataclass
class SelectiveDecoding:
    """
    Where a stream is decoded, and from which embeddings.

    Args:
        positions (`torch.LongTensor` of shape `(decodes,)`): windows at whose time text is made, ascending.
        starts (`torch.LongTensor` of shape `(decodes,)`): first window that each text stands for; the first is 0.
        embeds (`torch.FloatTensor` of shape `(decodes, width)`): what to decode.
        shift (`torch.FloatTensor` of shape `(windows,)`): how far each window has moved from those before.
        num_windows (`int`): length of the stream.
    """

    positions: torch.LongTensor
    starts: torch.LongTensor
    embeds: torch.FloatTensor
    shift: torch.FloatTensor
    num_windows: int

    @property
    def num_saved(self) -> int:
        """Decodes saved against one per window."""
        return self.num_windows - len(self.positions)


def check_stream(embeds: torch.Tensor) -> torch.Tensor:
    """
    The stream in float64 on the CPU.

    Raises:
        `ValueError`: unless it is `(windows, width)` with windows, and finite.
    """
    if not isinstance(embeds, torch.Tensor) or embeds.ndim != 2 or not embeds.numel():
        shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
        raise ValueError(f"A stream is a (windows, width) tensor of at least one window, got {shape}.")
    embeds = embeds.detach().cpu().double()
    if not torch.isfinite(embeds).all():
        raise ValueError("The stream holds embeddings that are not finite.")
    return embeds


def embedding_shift(embeds: torch.FloatTensor, window: int = 4) -> torch.FloatTensor:
    """
    How far each window of a stream has moved: 1 - cosine with the mean of the `window` before it. The signal of
    [`ShiftTrigger`]'s `"cosine"`, and the curve to draw.

    Args:
        embeds (`torch.FloatTensor` of shape `(windows, width)`).
        window (`int`): how many windows back the mean goes; fewer at the start.

    Returns:
        `torch.FloatTensor` of shape `(windows,)`, from 0 to 2; 0 for the first.
    """
    embeds = check_stream(embeds)
    sums = torch.cat([embeds.new_zeros(1, embeds.shape[1]), embeds.cumsum(dim=0)])
    index = torch.arange(1, len(embeds))
    start = (index - window).clamp(min=0)
    mean = (sums[index] - sums[start]) / (index - start)[:, None]
    shift = 1 - torch.cosine_similarity(embeds[1:], mean, dim=1)
    return torch.cat([shift.new_zeros(1), shift]).float()


def ward_segments(
    embeds: torch.FloatTensor, num_segments: int | None = None, threshold: float | None = None
) -> torch.LongTensor:
    """
    Cuts a stream into segments by agglomerative clustering of temporal neighbours. The pair merged next is the one of
    least Ward cost |A| |B| / (|A| + |B|) ‖mean A - mean B‖² (VL-JEPA §4.6). Boundaries are those of scikit-learn's
    `AgglomerativeClustering(linkage="ward")` with a chain as `connectivity`, in O(windows log windows).

    Args:
        embeds (`torch.FloatTensor` of shape `(windows, width)`).
        num_segments (`int`, *optional*): how many.
        threshold (`float`, *optional*): instead, as many as merges of this cost or more would still join.

    Returns:
        `torch.LongTensor` of shape `(segments,)`: the first window of each; the first is 0.

    Raises:
        `ValueError`: for both or neither, more segments than windows, or a stream that is none.
    """
    points = check_stream(embeds).numpy()
    total = len(points)
    if (num_segments is None) == (threshold is None):
        raise ValueError("Pass either `num_segments` or `threshold`.")
    if num_segments is not None and not 1 <= num_segments <= total:
        raise ValueError(f"{total} windows make 1 to {total} segments, not {num_segments}.")
    costs, removed = _ward_merges(points)
    if num_segments is None:
        num_segments = 1 + sum(cost >= threshold for cost in costs)
    kept = removed[total - num_segments :]
    return torch.tensor([0, *sorted(kept)])


def _ward_merges(points: np.ndarray) -> tuple[list[float], list[int]]:
    """Cost of each merge in its turn, and the boundary (first window of the right part) that it removes."""
    total = len(points)
    sums, sizes = points.copy(), np.ones(total)
    before, after = list(range(-1, total - 1)), [*range(1, total), -1]
    # How often the part that starts here has grown; an entry of the heap with an older count is void.
    age = [0] * total

    def entry(left: int, right: int) -> tuple[float, int, int, int, int]:
        gap = sums[left] / sizes[left] - sums[right] / sizes[right]
        cost = sizes[left] * sizes[right] / (sizes[left] + sizes[right]) * float(gap @ gap)
        return cost, left, right, age[left], age[right]

    heap = [entry(place, place + 1) for place in range(total - 1)]
    heapq.heapify(heap)
    costs, removed = [], []
    while heap:
        cost, left, right, left_age, right_age = heapq.heappop(heap)
        if age[left] != left_age or age[right] != right_age:
            continue
        costs.append(cost)
        removed.append(right)
        sums[left] += sums[right]
        sizes[left] += sizes[right]
        age[left], age[right] = left_age + 1, -1
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
            heapq.heappush(heap, entry(left, after[left]))
        if before[left] >= 0:
            heapq.heappush(heap, entry(before[left], left))
    return costs, removed


def decode_segments(embeds: torch.FloatTensor, starts: torch.LongTensor, decode: DecodeFrom = "mean") -> torch.Tensor:
    """
    The embeddings to decode, one per segment: of the window in its middle (`"exact"`), or the mean of its windows
    (`"mean"`), which the paper found to help.

    Args:
        embeds (`torch.FloatTensor` of shape `(windows, width)`), starts (`torch.LongTensor` of shape `(segments,)`).
        decode (`str`).

    Returns:
        `torch.FloatTensor` of shape `(segments, width)`.
    """
    if decode == "exact":
        return embeds[segment_middles(starts, len(embeds))]
    if decode != "mean":
        raise ValueError(f'`decode` must be "mean" or "exact", got {decode!r}.')
    lengths = torch.diff(starts, append=torch.tensor([len(embeds)]))
    return torch.stack([part.mean(dim=0) for part in embeds.split(lengths.tolist())])


def segment_middles(starts: torch.LongTensor, num_windows: int) -> torch.LongTensor:
    """The window in the middle of each segment, the earlier of two."""
    return (starts + torch.cat([starts[1:], torch.tensor([num_windows])]) - 1) // 2


def decode_offline(
    embeds: torch.FloatTensor,
    num_segments: int | None = None,
    threshold: float | None = None,
    decode: DecodeFrom = "mean",
) -> SelectiveDecoding:
    """
    The paper's selective decoding of a stream that has ended: one text per segment of [`ward_segments`], at its
    middle.

    Args:
        embeds (`torch.FloatTensor` of shape `(windows, width)`).
        num_segments, threshold: of [`ward_segments`].
        decode (`str`): of [`decode_segments`].
    """
    starts = ward_segments(embeds, num_segments, threshold)
    middles = segment_middles(starts, len(embeds))
    shift = embedding_shift(embeds)
    return SelectiveDecoding(middles, starts, decode_segments(embeds, starts, decode), shift, len(embeds))


class ShiftTrigger:
    """
    Says, embedding by embedding, whether a stream has shifted and should be decoded now. The paper (§2) suggests the
    variance of a local window above a threshold; hysteresis and a minimum gap, which keep one shift from being decoded
    twice, are ours. The first embedding is always decoded.

    Args:
        signal (`"cosine"` or `"variance"`): 1 - cosine of an embedding with the mean of the `window` before it; or the
            mean squared distance of the last `window` normalised embeddings from their mean.
        high (`float`): the signal that triggers.
        low (`float`, *optional*): the signal under which the trigger is armed again; half of `high` by default.
        window (`int`): embeddings that are remembered.
        min_gap (`int`): at least so many embeddings from one decode to the next.

    Raises:
        `ValueError`: for another signal, or numbers out of range.
    """

    def __init__(
        self,
        signal: Literal["cosine", "variance"] = "cosine",
        high: float = 0.2,
        low: float | None = None,
        window: int = 4,
        min_gap: int = 2,
    ) -> None:
        low = high / 2 if low is None else low
        if signal not in ("cosine", "variance"):
            raise ValueError(f'`signal` must be "cosine" or "variance", got {signal!r}.')
        if not 0 <= low <= high:
            raise ValueError(f"Thresholds must be 0 <= low <= high, got low={low} and high={high}.")
        if min_gap < 1 or window < (2 if signal == "variance" else 1):
            raise ValueError(f"`window` ({window}) and `min_gap` ({min_gap}) are too small for {signal!r}.")
        self.signal, self.high, self.low, self.min_gap = signal, high, low, min_gap
        self._recent: deque[torch.Tensor] = deque(maxlen=window)
        self._armed, self._since = True, 0

    def update(self, embed: torch.Tensor) -> tuple[bool, float]:
        """
        Takes the next embedding.

        Args:
            embed (`torch.FloatTensor` of shape `(width,)`).

        Returns:
            `bool` and `float`: whether to decode now, and the signal.
        """
        embed = torch.nn.functional.normalize(check_stream(embed[None])[0], dim=0)
        first = not self._recent
        value = 0.0
        if self.signal == "variance":
            self._recent.append(embed)
            value = float(torch.stack(list(self._recent)).var(dim=0, correction=0).sum())
        elif not first:
            value = float(1 - torch.cosine_similarity(embed, torch.stack(list(self._recent)).mean(dim=0), dim=0))
        if self.signal == "cosine":
            self._recent.append(embed)
        self._since += 1
        if value < self.low:
            self._armed = True
        triggered = first or (self._armed and value > self.high and self._since >= self.min_gap)
        if triggered:
            self._armed, self._since = first, 0
        return triggered, value


def decode_online(embeds: torch.FloatTensor, trigger: ShiftTrigger | None = None) -> SelectiveDecoding:
    """
    Runs a trigger along a stream; each text is made of the embedding that triggered it.

    Args:
        embeds (`torch.FloatTensor` of shape `(windows, width)`).
        trigger ([`ShiftTrigger`], *optional*): a fresh one; by default with its default thresholds.
    """
    check_stream(embeds)
    trigger = ShiftTrigger() if trigger is None else trigger
    found = [trigger.update(embed) for embed in embeds]
    positions = torch.tensor([place for place, (decode, _) in enumerate(found) if decode])
    return SelectiveDecoding(
        positions, positions, embeds[positions], torch.tensor([value for _, value in found]), len(embeds)
    )


def decode_uniformly(embeds: torch.FloatTensor, num_decodes: int, decode: DecodeFrom = "exact") -> SelectiveDecoding:
    """
    The baseline: `num_decodes` equal parts, decoded at their middles.

    Args:
        embeds (`torch.FloatTensor` of shape `(windows, width)`).
        num_decodes (`int`): at most one per window.
        decode (`str`): of [`decode_segments`].
    """
    check_stream(embeds)
    if not 1 <= num_decodes <= len(embeds):
        raise ValueError(f"{len(embeds)} windows take 1 to {len(embeds)} decodes, not {num_decodes}.")
    starts = torch.arange(num_decodes) * len(embeds) // num_decodes
    middles = segment_middles(starts, len(embeds))
    shift = embedding_shift(embeds)
    return SelectiveDecoding(middles, starts, decode_segments(embeds, starts, decode), shift, len(embeds))
