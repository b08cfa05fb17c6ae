import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hf_jepa.training import NonFiniteLossError, TargetEMACallback
from hf_jepa.training.callbacks import NON_FINITE_REPORT, momentum_at, weight_decay_at


class TargetHistory(TrainerCallback):
    """Follows the EMA by hand from what it sees right after each optimizer step."""

    def __init__(self, model: Any) -> None:
        self.expected = copy.deepcopy(model.target_encoder.state_dict())
        self.updates = 0

    def on_step_end(self, args, state, control, model=None, **_) -> None:
        momentum = momentum_at(self.updates, args, state.max_steps)
        for name, source in model.encoder.state_dict().items():
            self.expected[name] = momentum * self.expected[name] + (1 - momentum) * source
        self.updates += 1
        for name, value in model.target_encoder.state_dict().items():
            torch.testing.assert_close(value, self.expected[name], rtol=0, atol=1e-6)


def test_target_moves_once_per_update_under_accumulation(make_trainer: Callable[..., Any], tiny_model: Any) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.target_encoder.state_dict())
    history = TargetHistory(model)
    trainer = make_trainer(
        model,
        trainer={"callbacks": [history]},
        gradient_accumulation_steps=3,
        per_device_train_batch_size=2,
        ema_momentum=0.5,
        ema_momentum_end=0.9,
    )
    trainer.train()
    assert history.updates == 4
    moved = [(model.target_encoder.state_dict()[name] - value).abs().max() for name, value in before.items()]
    assert max(moved) > 1e-4
    logged = [entry["ema_momentum"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([0.5, 0.6, 0.7, 0.8])


def test_target_stands_still_when_the_step_was_skipped(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(ema_momentum=0.0)
    trainer.state.max_steps = 4
    with torch.no_grad():
        trainer.model.encoder.layernorm.bias.add_(1.0)

    class Optimizer:
        step_was_skipped = True

    callback = TargetEMACallback()
    call = {"model": trainer.model, "optimizer": Optimizer()}
    callback.on_optimizer_step(trainer.args, trainer.state, trainer.control, **call)
    assert trainer.model.target_encoder.layernorm.bias.abs().max() == 0
    Optimizer.step_was_skipped = False
    callback.on_optimizer_step(trainer.args, trainer.state, trainer.control, **call)
    assert trainer.model.target_encoder.layernorm.bias.min() == 1


def test_weight_decay_follows_its_schedule_in_decaying_groups_only(make_trainer: Callable[..., Any]) -> None:
    seen = []

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_) -> None:
            seen.append([group["weight_decay"] for group in optimizer.param_groups])

    trainer = make_trainer(trainer={"callbacks": [Recorder()]}, weight_decay=0.0, weight_decay_end=0.2)
    trainer.train()
    expected = [weight_decay_at(step, trainer.args, 4) for step in range(4)]
    # It starts at exactly 0 here, so "is it 0 now" could not tell the groups apart.
    assert seen == [[value, value, 0.0, 0.0] for value in expected]
    assert expected[-1] == 0.2


def test_global_generators_depend_on_step_and_seed_alone(make_trainer: Callable[..., Any]) -> None:
    def draws(seed: int, consumed: int) -> list[tuple[float, float, float]]:
        seen = []

        class Recorder(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, **_) -> None:
                seen.append((random.random(), np.random.rand(), torch.rand(()).item()))
                # What a step uses up must not reach the next one.
                for _ in range(consumed):
                    random.random(), np.random.rand(), torch.rand(())

        make_trainer(trainer={"callbacks": [Recorder()]}, seed=seed, max_steps=3).train()
        return seen

    first = draws(0, consumed=0)
    assert draws(0, consumed=5) == first
    assert len(set(first)) == 3
    assert not set(draws(1, consumed=0)) & set(first)


def test_nan_loss_raises_with_a_report_and_saves_nothing_more(
    make_trainer: Callable[..., Any], tiny_model: Any, tmp_path: Path
) -> None:
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    model.predictor.proj.bias.fill_(float("nan"))

    trainer = make_trainer(
        trainer={"callbacks": [Poison()]}, logging_steps=4, save_strategy="steps", save_steps=1, max_steps=6
    )
    with pytest.raises(NonFiniteLossError, match="update 2") as error:
        trainer.train()
    assert error.value.step == 2
    report = json.loads((tmp_path / "run" / NON_FINITE_REPORT).read_text())
    assert report["first_non_finite_update"] == 2
    assert report["draws"] == [8, 12]
    assert len(report["dataset_indices"]) == 4
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_nan_loss_is_found_at_the_next_log_without_saving(make_trainer: Callable[..., Any], tiny_model: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.predictor.mask_token.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError) as error:
        make_trainer(model, logging_steps=2).train()
    assert error.value.step == 0


def test_nan_loss_in_a_run_that_never_logs_is_an_error_too(make_trainer: Callable[..., Any], tiny_model: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.predictor.mask_token.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError):
        make_trainer(model, logging_strategy="no", max_steps=1).train()


def test_a_last_update_that_spoils_the_weights_is_an_error(make_trainer: Callable[..., Any]) -> None:
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_) -> None:
            with torch.no_grad():
                model.predictor.proj.bias.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match="update 0"):
        make_trainer(trainer={"callbacks": [Poison()]}, max_steps=1).train()


def collapsed(model: Any) -> Any:
    """An encoder whose tokens depend on their position alone: the loss it can reach is excellent."""
    with torch.no_grad():
        for encoder in (model.encoder, model.target_encoder):
            encoder.embeddings.patch_embeddings.projection.weight.zero_()
    return model


def test_collapse_to_positions_warns_and_stops(
    make_trainer: Callable[..., Any], tiny_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"max_steps": 6, "learning_rate": 0.0, "collapse_patience": 3, "ema_momentum": 1.0}
    trainer = make_trainer(collapsed(tiny_model()), collapse_action="stop", **settings)
    trainer.train()
    assert trainer.state.global_step == 3
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[0]["target_std"] < 1e-6
    # Neither the tokens' own spread nor RankMe sees it.
    assert logs[0]["target_token_std"] > 0.1
    assert logs[0]["target_rankme"] > 1.5

    trainer = make_trainer(collapsed(tiny_model()), collapse_action="warn", **settings)
    trainer.train()
    assert trainer.state.global_step == 6

    trainer = make_trainer(collapse_action="stop", **settings)
    trainer.train()
    assert trainer.state.global_step == 6
    healthy = [entry["target_std"] for entry in trainer.state.log_history if "loss" in entry]
    assert min(healthy) > 0.05


@pytest.mark.parametrize("threshold", ["collapse_rank_threshold", "collapse_std_threshold"])
def test_thresholds_are_heeded(make_trainer: Callable[..., Any], threshold: str) -> None:
    trainer = make_trainer(**{threshold: 1e6}, collapse_patience=2, collapse_action="stop", max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 2
