"""The schedules of V-JEPA, V-JEPA 2 and its world model, against arrays that the originals' programs returned."""

from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_jepa import JepaTrainingArguments
from hf_jepa.training.jepa.optimization import learning_rate_schedule
from hf_jepa.training.jepa.schedules import (
    cosine_weight_decay,
    linear_ema_momentum,
    progressive_share,
    warmup_cosine_learning_rate,
    warmup_stable_decay_learning_rate,
)

PEAK = 5.25e-4
CONSTANT = {"ema_momentum": 0.99925, "ema_momentum_end": 0.99925, "weight_decay_end": 0.04, "schedule_horizon": 1.25}
WARMUP = {"learning_rate_start": 1e-4, "learning_rate": PEAK, "learning_rate_end": PEAK, "warmup_steps": 12_000}

# Published phases as arguments of the trainer: file, name, updates, arguments.
PHASES = [
    (
        "vjepa_schedules",
        "vitl16",
        90_000,
        {
            "learning_rate_start": 2e-4,
            "learning_rate": 6.25e-4,
            "learning_rate_end": 1e-6,
            "warmup_steps": 40 / 300,
            "weight_decay_end": 0.4,
            "ema_momentum": 0.998,
            "ema_momentum_end": 1.0,
            "schedule_horizon": 1.25,
        },
    ),
    ("vjepa2_schedules", "vitg16_pretrain-256px-16f", 240_000, {**CONSTANT, **WARMUP}),
    (
        "vjepa2_schedules",
        "vitg16_cooldown-384px-64f",
        12_000,
        {
            **CONSTANT,
            "learning_rate": PEAK,
            "learning_rate_end": 1e-6,
            "warmup_steps": 0,
            "learning_rate_linear_decay": 1.0,
        },
    ),
    (
        "vjepa2_schedules",
        "vitg16_droid-256px-8f",
        94_500,
        {
            "learning_rate_start": 7.5e-5,
            "learning_rate": 4.25e-4,
            "learning_rate_end": 0.0,
            "warmup_steps": 15 / 315,
            "learning_rate_linear_decay": 15 / 315,
            "weight_decay_end": 0.04,
        },
    ),
]


@pytest.mark.parametrize(("file", "run", "updates", "settings"), PHASES, ids=[phase[1] for phase in PHASES])
def test_published_phases_equal_the_original_arrays(
    golden_dir: Path, tmp_path: Path, file: str, run: str, updates: int, settings: dict[str, float]
) -> None:
    arrays = load_file(golden_dir / f"{file}.safetensors")
    args = JepaTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
    stretched = args.schedule_horizon * updates
    found = {
        "lr": learning_rate_schedule(args, updates),
        "weight_decay": partial(
            cosine_weight_decay, total_steps=int(stretched), start=args.weight_decay, end=args.weight_decay_end
        ),
        "momentum": partial(
            linear_ema_momentum, total_steps=stretched, start=args.ema_momentum, end=args.ema_momentum_end
        ),
    }
    steps = arrays[f"{run}/iteration"].tolist()
    assert len(steps) > 300
    for name, schedule in found.items():
        if f"{run}/{name}" in arrays:
            expected = arrays[f"{run}/{name}"].tolist()
            assert [schedule(step) for step in steps] == pytest.approx(expected, rel=1e-12, abs=0), name


def test_a_run_that_ends_in_its_warmup_follows_the_original(golden_dir: Path) -> None:
    """V-JEPA 2's file for ViT-L has ten epochs and forty of warmup; the trainer refuses such a run."""
    arrays = load_file(golden_dir / "vjepa2_schedules.safetensors")
    run = "vitl16_pretrain-256px-16f"
    rates = [
        warmup_cosine_learning_rate(step, 3750, warmup_steps=12_000, start=1e-4, peak=PEAK, end=PEAK)
        for step in arrays[f"{run}/iteration"].tolist()
    ]
    assert rates == pytest.approx(arrays[f"{run}/lr"].tolist(), rel=1e-12, abs=0)


def test_end_values_that_the_originals_reach() -> None:
    """Horizons are longer than the runs: no schedule arrives."""
    rate = warmup_cosine_learning_rate(89_999, 112_500, warmup_steps=12_000, start=2e-4, peak=6.25e-4, end=1e-6)
    assert rate == pytest.approx(7.5e-5, rel=1e-3)
    assert cosine_weight_decay(89_999, 112_500, start=0.04, end=0.4) == pytest.approx(0.366, abs=5e-4)
    assert linear_ema_momentum(89_999, 112_500, start=0.998, end=1.0) == pytest.approx(0.9996, abs=1e-6)
    cooldown = {"warmup_steps": 0, "decay_steps": 15_000, "start": 0.0, "end": 1e-6}
    assert warmup_stable_decay_learning_rate(11_999, 15_000, peak=PEAK, **cooldown) == pytest.approx(1.06e-4, rel=5e-3)
    assert warmup_stable_decay_learning_rate(11_999, 15_000, peak=6e-4, **cooldown) == pytest.approx(1.21e-4, rel=5e-3)
    assert warmup_stable_decay_learning_rate(20_000, 15_000, peak=6e-4, **cooldown) == pytest.approx(1e-6)


def test_the_context_loss_comes_in_on_a_line() -> None:
    shares = [
        progressive_share(step, start=15_000, full=30_000) for step in (0, 15_000, 18_000, 29_999, 30_000, 10**6)
    ]
    assert shares == pytest.approx([0, 0, 0.2, 14_999 / 15_000, 1, 1])
    assert progressive_share(0, start=0, full=0) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate_linear_decay": 0.0}, "`learning_rate_linear_decay` is 0.0"),
        ({"learning_rate_linear_decay": 1.5}, "`learning_rate_linear_decay` is 1.5"),
        ({"clip_separately": True}, "`max_grad_norm` is 0"),
        ({"clip_after_steps": 0.5}, "`max_grad_norm` is 0"),
        ({"clip_after_steps": -1, "max_grad_norm": 1.0}, "`clip_after_steps` is -1"),
        ({"context_loss_start_step": 10, "context_loss_full_step": 5}, "`context_loss_full_step` is 5"),
        ({"context_loss_start_step": -1}, "`context_loss_start_step` is -1"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JepaTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_a_warmup_must_not_run_into_the_decay(tmp_path: Path) -> None:
    args = JepaTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, warmup_steps=0.3, learning_rate_linear_decay=0.8
    )
    with pytest.raises(ValueError, match="warmup of 30 updates and a linear decay over 80 do not fit"):
        learning_rate_schedule(args, 100)


def test_clipping_starts_an_epoch_after_the_warmup(tmp_path: Path) -> None:
    args = JepaTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_grad_norm=10.0, clip_after_steps=41 / 300)
    assert args.get_clip_start(90_000) == 12_300
