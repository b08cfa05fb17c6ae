"""What the demos share."""

import itertools
from types import SimpleNamespace

import pytest

from trainers.demos import common


@pytest.mark.parametrize(
    ("busy", "half", "pays"), [((), 1.0, False), ((), 0.5, True), ((0,), 1.0, False), ((1,), 0.5, True)]
)
def test_other_programs_do_not_decide_on_bfloat16(monkeypatch, busy, half, pays):
    """`busy`: the dtype, by its place, whose products take twenty times as long in nine rounds of ten."""
    now = itertools.accumulate(
        step
        for turn in itertools.count()
        for place, seconds in enumerate((1.0, half))
        for step in (0.0, seconds * (20 if place in busy and turn % 10 else 1))
    )
    monkeypatch.setattr(common, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    assert common.bf16_pays() is pays
