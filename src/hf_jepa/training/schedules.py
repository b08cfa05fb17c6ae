"""Learning rate, weight decay and EMA momentum as pure functions of `(step, total_steps)`.

`step` is always the 0-based index of the optimizer update. Nothing here has state, so a resumed run reads the same
values as an uninterrupted one. The offsets are those of the original I-JEPA code, whose learning-rate and weight-decay
counters are incremented *before* they are read (update 0 uses position 1) while the momentum's is not.
"""

import math


def warmup_cosine_learning_rate(
    step: int, total_steps: int, *, warmup_steps: int, start: float, peak: float, end: float
) -> float:
    """
    Linear warmup from `start` to `peak`, then half a cosine down to `end`, never below `end` (original I-JEPA code).

    Args:
        step (`int`): 0-based index of the optimizer update.
        total_steps (`int`): updates until `end` is reached; already stretched by the schedule horizon.
        warmup_steps (`int`): updates until `peak` is reached.
        start (`float`): value that the warmup starts from; the first update already uses one increment more.
        peak (`float`): highest value.
        end (`float`): last value.

    Returns:
        `float`: learning rate of this update.
    """
    position = step + 1
    if position < warmup_steps:
        return start + position / warmup_steps * (peak - start)
    progress = min(1.0, (position - warmup_steps) / max(1, total_steps - warmup_steps))
    return max(end, end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def cosine_weight_decay(step: int, total_steps: int, *, start: float, end: float) -> float:
    """
    Half a cosine from `start` to `end` (original I-JEPA code; the paper says "linearly").

    Args:
        step (`int`): 0-based index of the optimizer update.
        total_steps (`int`): updates until `end` is reached; already stretched by the schedule horizon.
        start (`float`): value before the first update.
        end (`float`): last value; may be above or below `start`.

    Returns:
        `float`: weight decay of this update.
    """
    progress = min(1.0, (step + 1) / max(1, total_steps))
    value = end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return max(end, value) if end <= start else min(end, value)


def linear_ema_momentum(step: int, total_steps: float, *, start: float, end: float) -> float:
    """
    Straight line from `start` (exactly, at update 0) towards `end` (original I-JEPA code).

    Args:
        step (`int`): 0-based index of the optimizer update that the EMA update follows.
        total_steps (`float`): updates until `end` is reached; stretched by the schedule horizon and not rounded.
        start (`float`): first momentum.
        end (`float`): last momentum.

    Returns:
        `float`: momentum of the EMA update that follows this optimizer update.
    """
    if total_steps <= 0:
        return end
    value = start + step * (end - start) / total_steps
    return min(value, end) if start <= end else max(value, end)
