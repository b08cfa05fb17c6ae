from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_jepa.training.jepa.schedules import cosine_weight_decay, linear_ema_momentum, warmup_cosine_learning_rate


@pytest.mark.parametrize(
    ("run", "total", "warmup"),
    [("compressed", 300, 40), ("published", 187_500, 25_000)],
    ids=["compressed", "published"],
)
def test_schedules_equal_the_original_arrays(golden_dir: Path, run: str, total: int, warmup: int) -> None:
    arrays = load_file(golden_dir / "ijepa_schedules.safetensors")
    prefix = f"in1k_vith14_ep300/{run}"
    steps = arrays[f"{prefix}/iteration"].tolist()
    found = {
        "lr": [
            warmup_cosine_learning_rate(step, total, warmup_steps=warmup, start=2e-4, peak=1e-3, end=1e-6)
            for step in steps
        ],
        "weight_decay": [cosine_weight_decay(step, total, start=0.04, end=0.4) for step in steps],
        "momentum": [linear_ema_momentum(step, total, start=0.996, end=1.0) for step in steps],
    }
    for name, values in found.items():
        assert values == pytest.approx(arrays[f"{prefix}/{name}"].tolist(), rel=1e-12, abs=0), name


def test_schedules_equal_the_table_of_a_short_run() -> None:
    # 100 iterations per epoch, 10 epochs, 2 of warmup; positions are 1-based, updates 0-based.
    rates = {1: 2.04e-4, 199: 9.96e-4, 200: 1e-3, 201: 9.999961e-4, 501: 6.898367e-4, 1000: 1e-6}
    for position, expected in rates.items():
        rate = warmup_cosine_learning_rate(position - 1, 1000, warmup_steps=200, start=2e-4, peak=1e-3, end=1e-6)
        assert rate == pytest.approx(expected, rel=1e-6)
    for position, expected in {1: 0.0400009, 199: 0.0740453, 501: 0.2205655, 1000: 0.4}.items():
        assert cosine_weight_decay(position - 1, 1000, start=0.04, end=0.4) == pytest.approx(expected, rel=1e-6)


def test_schedules_stay_at_their_ends_beyond_the_horizon() -> None:
    assert warmup_cosine_learning_rate(150, 100, warmup_steps=0, start=0.0, peak=1.0, end=0.1) == 0.1
    assert cosine_weight_decay(150, 100, start=0.04, end=0.4) == 0.4
    assert linear_ema_momentum(150, 100, start=0.9, end=0.99) == 0.99
    assert linear_ema_momentum(150, 100, start=0.99, end=0.9) == 0.9
