"""What every trainer has and refuses, whichever method it trains."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer

from hf_jepa import VLJepaTrainer


def test_a_run_is_released_pushed_and_measured(make_any_trainer: Callable[..., Any], uploads: Any) -> None:
    trainer = make_any_trainer(hub_model_id="someone/tiny", hub_private_repo=True)
    trainer.train()
    trainer.evaluate()
    results = trainer.measured_results()
    assert results["training"]["steps"] == trainer.state.max_steps
    assert results["training"][trainer.throughput] > 0
    assert results["evaluations"]
    assert {entry["num_examples"] for entry in results["evaluations"]} == {len(trainer.eval_dataset)}

    release = trainer.write_release(results={**results, "licence": "mit"})
    assert json.loads((release / "results.json").read_text())["licence"] == "mit"
    assert trainer.push_to_hub("Done", license="apache-2.0") == "https://hub.invalid/someone/tiny"
    [(repo_id, message, files)] = uploads
    assert (repo_id, message, uploads.private) == ("someone/tiny", "Done", True)
    assert {"config.json", "model.safetensors", "README.md", "results.json"} <= files
    assert "license: apache-2.0" in (release / "README.md").read_text()
    with pytest.raises(ValueError, match="blocking=False"):
        trainer.push_to_hub(blocking=False)


def test_the_newest_scores_go_on_the_card(make_any_trainer: Callable[..., Any]) -> None:
    trainer = make_any_trainer()
    metrics = trainer.evaluate()
    trainer.log(dict.fromkeys(metrics, 0.125))
    assert {entry["value"] for entry in trainer.measured_results()["evaluations"]} == {0.125}


def test_scores_of_several_datasets_go_on_the_card_by_name(make_any_trainer: Callable[..., Any]) -> None:
    rows = make_any_trainer().eval_dataset
    trainer = make_any_trainer(trainer={"eval_dataset": {"plain": rows, "other": rows}})
    assert trainer.measured_results()["evaluations"] == []
    metrics = trainer.evaluate()
    entries = trainer.measured_results()["evaluations"]
    assert {entry["dataset"] for entry in entries} == {"plain", "other"}
    assert {entry["num_examples"] for entry in entries} == {len(rows)}
    assert all(entry["value"] in metrics.values() for entry in entries)


@pytest.mark.parametrize(
    ("trainer", "args", "message"),
    [
        ({"compute_metrics": print}, {}, "`compute_metrics` would never be called"),
        ({"preprocess_logits_for_metrics": print}, {}, "`preprocess_logits_for_metrics` would never be called"),
        ({"compute_loss_func": print}, {}, "`compute_loss_func` would be ignored"),
        ({"model_init": print}, {}, "`model_init` would be ignored"),
        ({}, {"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1"),
        ({}, {"train_sampling_strategy": "group_by_length"}, "'random' or 'sequential'"),
        ({}, {"ignore_data_skip": True}, "ignore_data_skip"),
        ({}, {"push_to_hub": True, "hub_strategy": "checkpoint"}, "'every_save' or 'end'"),
        ({}, {"push_to_hub": True, "hub_strategy": "all_checkpoints"}, "'every_save' or 'end'"),
    ],
)
def test_what_would_be_ignored_is_refused(
    make_any_trainer: Callable[..., Any], trainer: dict[str, Any], args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_any_trainer(trainer=trainer, **args)


def test_the_best_of_several_sets_needs_a_name(make_any_trainer: Callable[..., Any]) -> None:
    rows = make_any_trainer().eval_dataset
    given = {"trainer": {"eval_dataset": {"plain": rows, "other": rows}}, "max_steps": 2}
    given |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(ValueError, match="choose one of 'eval_plain_"):
        make_any_trainer(**given, load_best_model_at_end=True)
    name = next(score["name"] for score in make_any_trainer()._reported(rows))
    name = "lm_loss" if name == "exact_match" else name
    trainer = make_any_trainer(**given, load_best_model_at_end=True, metric_for_best_model=f"other_{name}")
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None


def test_pushes_at_each_save_are_refused_under_fsdp(
    make_any_trainer: Callable[..., Any], uploads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = not isinstance(make_any_trainer(), VLJepaTrainer)
    # As if the stock trainer, which makes `control` at its end, had found FSDP configured.
    enabled = property(lambda self: "control" in vars(self), lambda self, value: None)
    monkeypatch.setattr("hf_jepa.training.base_trainer.BaseTrainer.is_fsdp_enabled", enabled, raising=False)
    with pytest.raises(ValueError, match='hub_strategy="end"'):
        make_any_trainer(push_to_hub=True)
    with nullcontext() if cuts else pytest.raises(ValueError, match="Use DDP or DeepSpeed ZeRO-2"):
        make_any_trainer(push_to_hub=True, hub_strategy="end")


def test_weights_below_float32_are_refused(make_any_trainer: Callable[..., Any]) -> None:
    trainer = make_any_trainer()
    with pytest.raises(ValueError, match=r"bfloat16.*float32.*bf16=True"):
        type(trainer)(
            trainer.model.bfloat16(),
            trainer.args,
            train_dataset=trainer.train_dataset,
            data_collator=trainer.data_collator,
            processing_class=trainer.processing_class,
        )


def test_pushing_at_each_save_survives_a_failed_upload(
    make_any_trainer: Callable[..., Any], uploads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = []
    monkeypatch.setattr("hf_jepa.training.base_trainer.logger.error", logged.append)
    settings = {"push_to_hub": True, "hub_model_id": "someone/tiny", "save_strategy": "steps", "save_steps": 2}
    trainer = make_any_trainer(max_steps=2, **settings)
    trainer.train()
    assert [message for _, message, _ in uploads] == ["Training in progress, step 2"]
    assert not logged

    make_any_trainer(max_steps=2, hub_strategy="end", **settings).train()
    assert len(uploads) == 1

    uploads.error = PermissionError("401 Unauthorized")
    trainer = make_any_trainer(max_steps=2, **settings)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "hf upload someone/tiny" in logged[0]


def test_evaluation_and_saving_are_no_time_of_training(
    make_any_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still but while evaluating, when an hour goes by."""
    now = [0.0]
    monkeypatch.setattr("hf_jepa.training.base_metrics.time.perf_counter", lambda: now[0])
    trainer = make_any_trainer(eval_strategy="steps", eval_steps=1, max_steps=2)
    score, step = trainer._score, trainer.training_step

    def slow_score(*args: Any) -> Any:
        now[0] += 3600
        return score(*args)

    def timed_step(*args: Any) -> Any:
        now[0] += 1
        return step(*args)

    trainer._score, trainer.training_step = slow_score, timed_step
    trainer.train()
    rates = [entry[trainer.throughput] for entry in trainer.state.log_history if trainer.throughput in entry]
    assert len(rates) == 2
    # The second log follows the first evaluation, and does not count it.
    assert rates[1] == pytest.approx(rates[0], rel=0.5)


def test_what_a_run_ends_with_is_said_on_its_card(make_any_trainer: Callable[..., Any]) -> None:
    trainer = make_any_trainer()
    trainer.train()
    trainer.guard.finding = "Everything looks alike."
    assert trainer.measured_results()["limits"] == ["Everything looks alike."]
    assert "Everything looks alike." in (trainer.write_release() / "README.md").read_text()


def test_one_process_alone_writes(
    make_any_trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_any_trainer()
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    assert trainer.push_to_hub() is None
    assert trainer.write_release() == tmp_path / "run" / "release"
    assert not (tmp_path / "run" / "release").exists()


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, plugin: SimpleNamespace) -> None:
    """Trainers are made as where accelerate has been told to use a plugin."""
    create = Trainer.create_accelerator_and_postprocess

    def create_with_plugin(trainer: Trainer) -> None:
        create(trainer)
        trainer.accelerator.state = SimpleNamespace(**{f"{name}_plugin": plugin})
        setattr(trainer, f"is_{name}_enabled", True)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", create_with_plugin)


def test_zero_3_is_refused_and_zero_2_is_not(make_any_trainer: Callable[..., Any], monkeypatch) -> None:
    pretend(monkeypatch, "deepspeed", SimpleNamespace(zero_stage=3))
    with pytest.raises(ValueError, match="DeepSpeed ZeRO-3 cuts parameters into pieces.*use ZeRO-2, or FSDP2"):
        make_any_trainer()
    pretend(monkeypatch, "deepspeed", SimpleNamespace(zero_stage=2))
    assert make_any_trainer().is_deepspeed_enabled
