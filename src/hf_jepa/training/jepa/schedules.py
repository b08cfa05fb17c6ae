"""Learning rate, weight decay and EMA momentum as pure functions of `(step, total_steps)`.

`step` is always the 0-based index of the optimizer update. Nothing here has state, so a resumed run reads the same
values as an uninterrupted one. The offsets are those of the original I-JEPA code, whose learning-rate and weight-decay
counters are incremented *before* they are read (update 0 uses position 1) while the momentum's is not; V-JEPA and
V-JEPA 2 have the same.
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


def warmup_stable_decay_learning_rate(
    step: int, total_steps: int, *, warmup_steps: int, decay_steps: int, start: float, peak: float, end: float
) -> float:
    """
    Linear warmup from `start` to `peak`, then constant, and over the last `decay_steps` a straight line to `end`
    (V-JEPA 2's cooldown, which is all decay, and V-JEPA 2-AC; released code).

    Args:
        step (`int`): 0-based index of the optimizer update.
        total_steps (`int`): updates until `end` is reached; already stretched by the schedule horizon.
        warmup_steps (`int`): updates until `peak` is reached.
        decay_steps (`int`): updates of the line down.
        start (`float`): value that the warmup starts from; the first update already uses one increment more.
        peak (`float`): highest value.
        end (`float`): last value.

    Returns:
        `float`: learning rate of this update.
    """
    position = step + 1
    if position < warmup_steps:
        return start + position / warmup_steps * (peak - start)
    decayed = position - (total_steps - decay_steps)
    return peak + min(1.0, max(0, decayed) / max(1, decay_steps)) * (end - peak)


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


def progressive_share(step: int, *, start: int, full: int) -> float:
    """
    0 before `start`, 1 from `full` on, a straight line between them: how V-JEPA 2.1 brings in its loss on visible
    tokens (released code: 15,000 and 30,000).

    Args:
        step (`int`): 0-based index of the optimizer update.
        start (`int`): last update with the share 0.
        full (`int`): first update with the share 1.

    Returns:
        `float`: in [0, 1].
    """
    if step >= full:
        return 1.0
    return max(0, step - start) / (full - start)
