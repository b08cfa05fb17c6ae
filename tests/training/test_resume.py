import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_jepa import JepaTrainer
from hf_jepa.training.checkpoints import COMPLETE_MARKER, TRAINING_ARGS


def states_equal(first: JepaTrainer, second: JepaTrainer) -> bool:
    weights = [trainer.model.state_dict() for trainer in (first, second)]
    moments = [trainer.optimizer.state_dict()["state"] for trainer in (first, second)]
    return (
        all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
        and moments[0].keys() == moments[1].keys()
        and all(
            torch.equal(moments[0][index][name], value)
            for index, entries in moments[1].items()
            for name, value in entries.items()
        )
    )


@pytest.fixture
def saved_run(make_trainer: Callable[..., JepaTrainer]) -> JepaTrainer:
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "loader",
    [
        {},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    ],
    ids=["in process", "workers", "persistent workers"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_trainer: Callable[..., JepaTrainer], tiny_model: Any, tmp_path: Path, loader: dict[str, Any]
) -> None:
    # 24 rows, 8 per step: epochs of 3 steps. Checkpoints fall inside an epoch (2, 4) and on its end (6).
    settings = {"max_steps": 7, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2, **loader}
    whole = make_trainer(tiny_model(), **settings)
    whole.train()
    for step in (2,) if loader else (2, 6):
        resumed = make_trainer(tiny_model(seed=5), **{**settings, "save_strategy": "no"})
        # What the process has drawn before must not matter.
        torch.manual_seed(1234 + step)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 7
        assert states_equal(whole, resumed)
        losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
        assert losses[0] == losses[1]


def test_resuming_a_finished_run_changes_nothing(
    make_trainer: Callable[..., JepaTrainer], saved_run: JepaTrainer, tiny_model: Any
) -> None:
    resumed = make_trainer(tiny_model(seed=5))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    expected = saved_run.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.model.state_dict().items())


def test_resuming_with_other_data_order_would_be_noticed(
    make_trainer: Callable[..., JepaTrainer], saved_run: JepaTrainer
) -> None:
    with pytest.raises(ValueError, match=r"seed: 42 in the checkpoint, 7 now"):
        make_trainer(seed=7).train(resume_from_checkpoint=True)


def test_training_checkpoints_hold_no_pickles(saved_run: JepaTrainer, tmp_path: Path) -> None:
    saved_run.save_model()
    saved_run.save_state()
    names = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    assert {"model.safetensors", "optimizer.safetensors", TRAINING_ARGS, COMPLETE_MARKER} <= names
    # Module names, which the trainer's own resume needs; from_pretrained reads them too.
    keys = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors").keys()
    assert keys == saved_run.model.state_dict().keys()
    loaded = type(saved_run.model).from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in saved_run.model.state_dict().items())


def test_tokens_are_not_written(make_trainer: Callable[..., JepaTrainer], tmp_path: Path) -> None:
    make_trainer(hub_token="hf_secret").save_model()
    assert "hf_secret" not in (tmp_path / "run" / TRAINING_ARGS).read_text()


def remove_marker(folder: Path) -> None:
    (folder / COMPLETE_MARKER).unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def lose_optimizer(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_marker, "interrupted"),
        (cut_weights, "1000 bytes instead of"),
        (lose_optimizer, "optimizer.safetensors is missing"),
        (empty_folder, "interrupted"),
    ],
)
def test_a_half_written_checkpoint_is_skipped_and_named(
    make_trainer: Callable[..., JepaTrainer],
    saved_run: JepaTrainer,
    tmp_path: Path,
    damage: Callable[[Path], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newest = tmp_path / "run" / "checkpoint-4"
    damage(newest)
    warned = []
    monkeypatch.setattr("hf_jepa.training.checkpoints.logger.warning", warned.append)
    resumed = make_trainer()
    seen = []
    monkeypatch.setattr(
        JepaTrainer, "_load_from_checkpoint", lambda self, folder, model=None: seen.append(Path(folder).name)
    )
    resumed.train(resume_from_checkpoint=True)
    assert seen == ["checkpoint-2"]
    assert "checkpoint-4" in warned[0]
    assert reason in warned[0]
    # Asked for by name, it is refused.
    with pytest.raises(ValueError, match=reason):
        make_trainer().train(resume_from_checkpoint=str(newest))


def test_no_complete_checkpoint_is_an_error(make_trainer: Callable[..., JepaTrainer], tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-9").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no complete checkpoint.*checkpoint-9"):
        make_trainer().train(resume_from_checkpoint=True)


def test_an_interrupted_save_keeps_the_checkpoint_before(
    make_trainer: Callable[..., JepaTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=1)

    def fail(self: JepaTrainer, output_dir: str) -> None:
        if self.state.global_step == 3:
            raise OSError("No space left on device")
        original(self, output_dir)

    original = JepaTrainer._save_optimizer_and_scheduler
    monkeypatch.setattr(JepaTrainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(OSError, match="No space"):
        trainer.train()
    monkeypatch.undo()
    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert (tmp_path / "run" / "checkpoint-2" / COMPLETE_MARKER).is_file()
    assert not (tmp_path / "run" / "checkpoint-1").exists()


def refresh_sizes(folder: Path) -> None:
    marker = json.loads((folder / COMPLETE_MARKER).read_text())
    marker["files"]["model.safetensors"] = (folder / "model.safetensors").stat().st_size
    (folder / COMPLETE_MARKER).write_text(json.dumps(marker))


@pytest.mark.parametrize("fault", ["missing", "unexpected", "mis-shaped"])
def test_weights_that_do_not_fit_are_refused_whole(
    make_trainer: Callable[..., JepaTrainer], saved_run: JepaTrainer, tmp_path: Path, fault: str, tiny_model: Any
) -> None:
    folder = tmp_path / "run" / "checkpoint-4"
    tensors = load_file(folder / "model.safetensors")
    key = "encoder.layers.1.mlp.fc1.weight"
    if fault == "missing":
        del tensors[key]
    elif fault == "unexpected":
        key = "encoder.pooler.weight"
        tensors[key] = torch.zeros(2)
    else:
        tensors[key] = tensors[key][:3].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refresh_sizes(folder)
    model = tiny_model(seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"1 {fault} \({key}"):
        make_trainer(model).train(resume_from_checkpoint=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_best_model_is_loaded_whole_or_not_at_all(
    make_trainer: Callable[..., JepaTrainer], saved_run: JepaTrainer, tmp_path: Path
) -> None:
    cut_weights(tmp_path / "run" / "checkpoint-2")
    saved_run.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="bytes instead of"):
        saved_run._load_best_model()


def test_weights_alone_cannot_be_resumed(make_trainer: Callable[..., JepaTrainer]) -> None:
    make_trainer(save_strategy="steps", save_steps=2, save_only_model=True).train()
    with pytest.raises(ValueError, match="save_only_model"):
        make_trainer().train(resume_from_checkpoint=True)


def test_changed_settings_are_listed(
    make_trainer: Callable[..., JepaTrainer], saved_run: JepaTrainer, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="other settings") as error:
        make_trainer(learning_rate=2e-3, ema_momentum=0.9, per_device_train_batch_size=2).train(True)
    for change in (
        "learning_rate: 0.001 in the checkpoint, 0.002 now",
        "ema_momentum: 0.996 in the checkpoint, 0.9 now",
        "global_batch_size: 4 in the checkpoint, 2 now",
    ):
        assert change in str(error.value)
    model = tiny_model()
    model.config.loss_type = "l1"
    with pytest.raises(ValueError, match=r"config\.loss_type: 'smooth_l1' in the checkpoint, 'l1' now"):
        make_trainer(model).train(resume_from_checkpoint=True)

    # Another split of the same batch, or other logs, are no change.
    make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=2).train(True)

    warned = []
    monkeypatch.setattr("hf_jepa.training.checkpoint_trainer.logger.warning", warned.append)
    longer = make_trainer(max_steps=5, allow_changed_settings=True)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 5
    assert "max_steps: 4 in the checkpoint, 5 now" in warned[0]


def test_old_checkpoints_go_only_after_the_new_one_is_complete(
    make_trainer: Callable[..., JepaTrainer], tmp_path: Path
) -> None:
    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert trainer.args.save_total_limit == 2
    assert json.loads((tmp_path / "run" / "checkpoint-4" / TRAINING_ARGS).read_text())["save_total_limit"] == 2
