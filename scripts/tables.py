"""What the tables of runs share."""

import statistics
from collections.abc import Sequence


def percent(shares: Sequence[float]) -> str:
    """Mean ± standard deviation of shares from 0 to 1, in %; of one its value, of none nothing."""
    values = [100 * share for share in shares]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
