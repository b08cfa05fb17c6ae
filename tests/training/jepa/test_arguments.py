from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_jepa import JepaTrainingArguments


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ema_momentum", 1.2),
        ("ema_momentum_end", -0.1),
        ("learning_rate", -1.0),
        ("weight_decay_end", float("nan")),
        ("schedule_horizon", 0.5),
        ("collapse_patience", 0),
        ("collapse_action", "panic"),
        ("probe_every_steps", 0),
        ("lr_scheduler_kwargs", {"num_cycles": 1}),
        ("remove_unused_columns", True),
        ("logging_nan_inf_filter", True),
    ],
)
def test_bad_values_are_named(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"`{field}` is {str(value)!r}|`{field}` is {value}"):
        JepaTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{field: value})


def test_defaults_are_the_published_recipe(tmp_path: Path) -> None:
    args = JepaTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.learning_rate_start, args.learning_rate, args.learning_rate_end) == (2e-4, 1e-3, 1e-6)
    assert (args.weight_decay, args.weight_decay_end) == (0.04, 0.4)
    assert (args.ema_momentum, args.ema_momentum_end) == (0.996, 1.0)
    assert args.max_grad_norm == 0
    assert args.report_to == []
    assert args.accelerator_config.dispatch_batches is False
    # Rounding up, as the base class does, would give 25,001.
    assert args.get_warmup_steps(187_500) == 25_000


def test_probe_every_steps_switches_evaluation_on(tmp_path: Path) -> None:
    args = JepaTrainingArguments(output_dir=str(tmp_path), use_cpu=True, probe_every_steps=7)
    assert args.eval_strategy == "steps"
    assert args.eval_steps == 7


def test_the_best_model_is_chosen_by_a_metric_that_exists(tmp_path: Path) -> None:
    args = JepaTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, probe_every_steps=2, save_steps=2, load_best_model_at_end=True
    )
    assert args.metric_for_best_model == "eval_knn_accuracy"
    assert args.greater_is_better is True


def test_ordinary_arguments_are_understood(tmp_path: Path) -> None:
    ordinary = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=3e-4, weight_decay=0.1, seed=7)
    args = JepaTrainingArguments.from_plain(ordinary)
    assert (args.learning_rate, args.seed, args.max_grad_norm) == (3e-4, 7, ordinary.max_grad_norm)
    assert (args.weight_decay, args.weight_decay_end) == (0.1, 0.1)
    assert args.remove_unused_columns is False
    assert args.logging_nan_inf_filter is False
    assert JepaTrainingArguments.from_plain(args) is args
