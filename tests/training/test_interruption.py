"""Runs that are told to leave: Ctrl-C, SIGTERM, preemption; and folders that another run has used."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_jepa.training import TrainingInterrupted
from hf_jepa.training.checkpoints import incompleteness
from tests.processes import run_script


class Tell(TrainerCallback):
    """Sends this process a signal in the middle of an update."""

    def __init__(self, number: int, step: int = 1) -> None:
        self.number, self.step = number, step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            # To this thread: others, which earlier tests may have left, would pass it on some time later.
            signal.raise_signal(self.number)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_leave_can_go_on(
    make_any_trainer: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture, number: int
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 2, "save_only_model": True}
    whole = make_any_trainer(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()

    told = make_any_trainer(trainer={"callbacks": [Tell(number)]}, **settings)
    with pytest.raises(TrainingInterrupted) as error:
        told.train()
    assert error.value.code == 128 + number
    assert isinstance(error.value, KeyboardInterrupt)
    # No evaluation, though one was due: who is told to leave may not have the time.
    assert not [entry for entry in told.state.log_history if "eval_runtime" in entry or "eval_loss" in entry]
    lines = [line for line in capsys.readouterr().out.splitlines() if "Go on with" in line]
    assert lines == [
        f"{signal.Signals(number).name}: update 2 is saved. Go on with: trainer.train(resume_from_checkpoint=True)"
    ]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]

    resumed = make_any_trainer(**settings)
    resumed.train(resume_from_checkpoint=True)
    expected = weights(whole)
    assert all(torch.equal(expected[name], value) for name, value in weights(resumed).items())


def test_the_checkpoint_to_go_on_from_outlives_the_best_one(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    trainer = make_trainer(
        trainer={"callbacks": [Tell(signal.SIGTERM, step=2)]},
        probe_every_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        probe_num_neighbors=3,
    )
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert "checkpoint-1" in trainer.state.best_model_checkpoint
    assert incompleteness(tmp_path / "run" / "checkpoint-3") is None


def test_a_second_signal_acts_at_once(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    # Shells have what they start in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt) as error:
        make_trainer(trainer={"callbacks": [Tell(signal.SIGINT), Tell(signal.SIGINT)]}).train()
    assert not isinstance(error.value, TrainingInterrupted)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("event", ["on_evaluate", "on_train_end"])
def test_a_signal_after_the_last_update_is_not_swallowed_and_loses_nothing(
    make_trainer: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture, event: str
) -> None:
    class Late(TrainerCallback):
        pass

    setattr(Late, event, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    trainer = make_trainer(trainer={"callbacks": [Late()]}, max_steps=1, probe_every_steps=1, probe_num_neighbors=3)
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert trainer.state.global_step == 1
    # Nothing else of this run is on disk.
    assert incompleteness(tmp_path / "run" / "checkpoint-1") is None
    assert capsys.readouterr().out.count("SIGTERM: update 1 is saved. Go on with") == 1


def test_a_preempted_checkpoint_of_transformers_is_complete(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    class Preempt(TrainerCallback):
        """What SIGTERM comes to, three seconds after it."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                [manager] = [
                    callback.jit_manager
                    for callback in trainer.callback_handler.callbacks
                    if hasattr(callback, "jit_manager")
                ]
                manager.is_checkpoint_requested = True

    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(trainer={"callbacks": [Preempt()]}, enable_jit_checkpoint=True)
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) == before
    assert trainer.state.global_step == 2
    # While that checkpoint is written, a file lies in it that is gone afterwards.
    assert incompleteness(tmp_path / "run" / "checkpoint-2") is None
    resumed, whole = make_trainer(), make_trainer(output_dir=str(tmp_path / "whole"))
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    expected = weights(whole)
    assert all(torch.equal(expected[name], value) for name, value in weights(resumed).items())


SCRIPT = """
import os, sys, time
import torch
from transformers import TrainerCallback
from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, JepaTrainer, JepaTrainingArguments
from hf_jepa.data import MaskCollator
from hf_jepa.masking import MultiBlockMaskGenerator
from transformers import IJepaConfig

class Tell(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **_):
        os.killpg(0, int(sys.argv[2]))
        # Time for a worker to be missed, had it been hit.
        time.sleep(1)

encoder = IJepaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=48,
                      patch_size=8)
model = IJepaForPreTraining(IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8,
                                                   predictor_num_hidden_layers=1, predictor_mlp_ratio=1))
trainer = JepaTrainer(model, JepaTrainingArguments(output_dir=sys.argv[1], max_steps=3, use_cpu=True, warmup_steps=0,
                      per_device_train_batch_size=2, disable_tqdm=True, dataloader_pin_memory=False,
                      dataloader_num_workers=int(sys.argv[3])),
                      MaskCollator(MultiBlockMaskGenerator(48, 8, min_keep=2, mode="balanced")),
                      [{"pixel_values": torch.rand(3, 48, 48)} for _ in range(4)], callbacks=[Tell()])
trainer.resume_command = "hf-jepa train mine --resume_from_checkpoint true"
trainer.train()
print("not reached")
"""


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 0)])
def test_a_script_ends_quietly_with_one_line(tmp_path: Path, number: int, workers: int) -> None:
    """The signal goes to the process group, as a terminal and launchers send it: workers have to live on."""
    done = run_script(SCRIPT, tmp_path / "run", int(number), workers)
    assert done.returncode == 128 + number, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == [
        f"{number.name}: update 1 is saved. Go on with: hf-jepa train mine --resume_from_checkpoint true"
    ]


def test_a_used_folder_is_noticed(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    make_trainer(save_strategy="steps", save_steps=2).train()
    warned = []
    monkeypatch.setattr("hf_jepa.training.base_trainer.logger.warning", warned.append)
    make_trainer(max_steps=1).train()
    assert "holds checkpoint-4 of an earlier run" in warned[0]
