import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from hf_jepa import JepaTrainer
from hf_jepa.training.jepa.trainer import parameter_groups


def weights(trainer: JepaTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_groups_are_the_originals(tiny_model: Any) -> None:
    model = tiny_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in parameter_groups(model, 0.1)]
    assert [len(group) for group in groups] == [13, 9, 23, 14]
    encoder_decay, rest_decay, encoder_plain, rest_plain = groups
    assert "encoder.embeddings.patch_embeddings.projection.weight" in encoder_decay
    assert "predictor.mask_token" in rest_decay
    assert "encoder.layernorm.weight" in encoder_plain
    assert "predictor.proj.bias" in rest_plain
    assert not any(name.startswith("target_encoder") or "position" in name for group in groups for name in group)


def test_every_trainable_parameter_gets_a_gradient_and_nothing_else(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    for name, parameter in trainer.model.named_parameters():
        frozen = name.startswith("target_encoder.") or "position_embeddings" in name
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.abs().max() > 0 or name.endswith("k_proj.bias"), name


def test_accumulation_equals_one_large_batch(make_trainer: Callable[..., Any]) -> None:
    whole = make_trainer(per_device_train_batch_size=6)
    parts = make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=3)
    whole.train()
    parts.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for name, value in weights(whole).items():
        # Adam turns the rounding of gradients that are zero in truth into whole steps.
        if "k_proj.bias" not in name:
            torch.testing.assert_close(weights(parts)[name], value, rtol=0, atol=2e-5, msg=name)


def test_every_split_of_the_batch_sees_the_same_draws(make_trainer: Callable[..., Any]) -> None:
    def batches(**args: Any) -> list[torch.Tensor]:
        trainer = make_trainer(**args)
        loader = trainer.get_train_dataloader()
        found = []
        for epoch in range(2):
            trainer.train_sampler.set_epoch(epoch)
            found += [batch["pixel_values"] for batch in loader]
        return torch.cat(found)

    whole = batches(per_device_train_batch_size=10)
    # 24 rows make two steps of ten; the rest of an epoch is left out, so that steps and epochs stay in line.
    assert len(whole) == 40
    assert torch.equal(whole, batches(per_device_train_batch_size=5, gradient_accumulation_steps=2))
    assert torch.equal(whole, batches(per_device_train_batch_size=10, dataloader_num_workers=2))
    assert not torch.equal(whole, batches(per_device_train_batch_size=10, data_seed=1))


def test_logs_say_what_a_run_needs_watched(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(logging_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        # The term is a mean over micro-batches, so it must equal the loss, of which it is the only one.
        assert entry["prediction_loss"] == pytest.approx(entry["loss"], rel=1e-5)
        assert 0 < entry["target_std"] < 10
        assert 1 < entry["target_rankme"] <= 32
        assert entry["prediction_token_std"] > 0
        assert entry["images_per_second"] > 0
        assert entry["grad_norm"] > 0


def test_probes_score_the_target_encoder(make_trainer: Callable[..., Any], tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model()
    trainer = make_trainer(
        model,
        probe_every_steps=2,
        probe_num_neighbors=3,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_ridge_accuracy",
        save_total_limit=1,
    )
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_knn_accuracy" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4]
    assert evaluations[0]["eval_knn_accuracy"] == 1.0
    assert evaluations[0]["eval_ridge_accuracy"] == 1.0
    # Not improved at step 4, so the first is the best and was loaded again.
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    best = type(model).from_pretrained(tmp_path / "run" / "checkpoint-2").state_dict()
    assert all(torch.equal(best[name], value) for name, value in model.state_dict().items())

    # Blind the target encoder only: the probes must notice.
    with torch.no_grad():
        model.target_encoder.embeddings.patch_embeddings.projection.weight.zero_()
    assert trainer.evaluate()["eval_knn_accuracy"] < 1.0


def test_probing_does_not_change_training(make_trainer: Callable[..., Any]) -> None:
    plain, probed = make_trainer(), make_trainer(probe_every_steps=1)
    plain.train()
    probed.train()
    assert all(torch.equal(weights(plain)[name], value) for name, value in weights(probed).items())


def test_several_evaluation_sets_are_named(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer()
    metrics = trainer.evaluate({"clean": trainer.eval_dataset, "noisy": trainer.eval_dataset})
    assert {"eval_clean_knn_accuracy", "eval_noisy_ridge_accuracy"} <= metrics.keys()


def test_ordinary_arguments_train(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    reference = make_trainer()
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=False,
    )
    trainer = JepaTrainer(
        model=reference.model, args=args, data_collator=reference.data_collator, train_dataset=reference.train_dataset
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    # Their own schedule: linear from 5e-5, without warmup.
    assert rates == pytest.approx([5e-5, 2.5e-5])


def test_a_schedule_horizon_stretches_every_schedule(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(schedule_horizon=2.0, weight_decay_end=0.4, warmup_steps=0)
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["weight_decay"] == pytest.approx(0.22)
    assert last["learning_rate"] == pytest.approx((1e-3 + 1e-6) / 2)
    assert last["ema_momentum"] == pytest.approx(0.996 + 0.004 * 3 / 8)


def test_bfloat16_weights_are_refused(make_trainer: Callable[..., Any], tiny_model: Any) -> None:
    with pytest.raises(ValueError, match=r"bfloat16.*float32.*bf16=True"):
        make_trainer(tiny_model().bfloat16())


def test_a_dataset_smaller_than_one_step_is_refused(make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"24 rows.*32 samples"):
        make_trainer(per_device_train_batch_size=16, gradient_accumulation_steps=2).train()


def test_missing_parts_are_refused_before_training(make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="probe_train_dataset"):
        make_trainer(trainer={"probe_train_dataset": None}, probe_every_steps=1)
    with pytest.raises(ValueError, match="train_dataset"):
        make_trainer(trainer={"train_dataset": None}).train()
    with pytest.raises(ValueError, match=r"warmup_steps.*10.*4 updates"):
        make_trainer(warmup_steps=10).train()


def test_bf16_autocast_keeps_float32_weights(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(bf16=True, max_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert {value.dtype for value in weights(trainer).values()} == {torch.float32}
    assert trainer.state.global_step == 2
