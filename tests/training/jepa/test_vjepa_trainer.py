"""What `JepaTrainer` does for video: logs, resumed runs, phases, mixed clip lengths."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_jepa import (
    JepaTrainer,
    JepaTrainingArguments,
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VJepaConfig,
    VJepaForPreTraining,
    VJepaPreTrainingConfig,
)
from hf_jepa.data import MixedVideoDataset, VideoMaskCollator
from hf_jepa.masking import IMAGE_BLOCKS, LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator
from tests.tiny_models import TINY_VJEPA


class Clips:
    """Noise, shifted by a random number, so that augmentation depends on the draw; every third one is an image."""

    def __init__(self, num_frames: int = 4, size: int = 32, with_images: bool = False) -> None:
        self.num_frames, self.size, self.with_images = num_frames, size, with_images

    def __len__(self) -> int:
        return 18

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        frames = 1 if self.with_images and index % 3 == 0 else self.num_frames
        generator = torch.Generator().manual_seed(index)
        clip = torch.randn(frames, 3, self.size, self.size, generator=generator)
        return {"pixel_values_videos": clip + torch.rand(())}


def tiny_model(generation: str = "2", seed: int = 0, **kwargs: Any) -> VJepa2ForPreTraining:
    torch.manual_seed(seed)
    kwargs = {"hierarchical_layers": [0, 1], "pred_num_hidden_layers": 1, **kwargs} if generation == "2.1" else kwargs
    config = VJepa2PreTrainingConfig.from_size(
        "tiny", generation, **{**TINY_VJEPA, "initializer_range": 0.2, **kwargs}
    )
    return VJepa2ForPreTraining(config)


def generators(num_frames: int = 4, size: int = 32) -> list[MultiBlock3DMaskGenerator]:
    return [
        MultiBlock3DMaskGenerator(size, 8, num_frames, mode="balanced", **recipe)
        for recipe in (SHORT_RANGE, LONG_RANGE)
    ]


MIXED = {4: generators(), 1: [MultiBlock3DMaskGenerator(32, 8, mode="balanced", **IMAGE_BLOCKS)]}


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., JepaTrainer]:
    def build(model: Any = None, data: Any = None, masks: Any = None, callbacks: Any = (), **args: Any) -> JepaTrainer:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 6,
            "warmup_steps": 1,
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return JepaTrainer(
            model=tiny_model() if model is None else model,
            args=JepaTrainingArguments(**{**defaults, **args}),
            data_collator=VideoMaskCollator(generators() if masks is None else masks),
            train_dataset=Clips() if data is None else data,
            callbacks=list(callbacks),
        )

    return build


def logs_of(trainer: JepaTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def states_equal(first: JepaTrainer, second: JepaTrainer) -> bool:
    weights = [trainer.model.state_dict() for trainer in (first, second)]
    moments = [trainer.optimizer.state_dict()["state"] for trainer in (first, second)]
    return all(torch.equal(weights[0][name], value) for name, value in weights[1].items()) and all(
        torch.equal(moments[0][index][name], value)
        for index, entries in moments[1].items()
        for name, value in entries.items()
    )


def test_logs_of_a_video_run(make_trainer: Callable[..., JepaTrainer]) -> None:
    trainer = make_trainer()
    trainer.train()
    assert trainer.data_collator.draws_per_step == 6
    for entry in logs_of(trainer):
        for name in ("prediction_loss", "prediction_token_std", "target_token_std", "target_std", "images_per_second"):
            assert entry[name] > 0, name
        assert 1 < entry["target_rankme"] <= 24
        assert "context_loss_weight" not in entry
    assert trainer.state.total_flos > 0
    clips = torch.zeros(2, 4, 3, 32, 32)
    stock = Trainer.floating_point_ops(trainer, {"pixel_values_videos": clips})
    assert trainer.floating_point_ops({"pixel_values_videos": clips}) == stock > 0
    assert trainer.floating_point_ops({"pixel_values_videos": [clips, clips]}) == 2 * stock
    assert trainer.floating_point_ops({"latents": clips}) == 0


@pytest.mark.parametrize("generation", ["2", "2.1"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_trainer: Callable[..., JepaTrainer], tmp_path: Path, generation: str, workers: int
) -> None:
    # 18 clips, 6 per step: epochs of 3 steps; the checkpoint falls inside the second one.
    settings: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 4,
        "dataloader_num_workers": workers,
        "context_loss_full_step": 5,
    }
    if generation == "2.1":
        settings |= {"data": Clips(with_images=True), "masks": MIXED}
    whole = make_trainer(tiny_model(generation), **settings)
    whole.train()
    resumed = make_trainer(tiny_model(generation, seed=5), **{**settings, "save_strategy": "no"})
    # What the process has drawn before must not matter.
    torch.manual_seed(1234)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.state.global_step == 6
    assert states_equal(whole, resumed)
    assert [entry["loss"] for entry in logs_of(whole)] == [entry["loss"] for entry in logs_of(resumed)]


class Numbered(Clips):
    """Keeps the draws that it was asked for."""

    def __init__(self, num_frames: int) -> None:
        super().__init__(num_frames)
        self.asked: list[tuple[int, int]] = []

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        self.asked.append(key)
        return {**super().__getitem__(key[0]), "draw": key[1]}


def test_mixtures_are_asked_for_draws_counted_over_the_run(make_trainer: Callable[..., JepaTrainer]) -> None:
    parts = [Numbered(4), Numbered(1)]
    trainer = make_trainer(
        tiny_model("2.1"), data=MixedVideoDataset(parts, [0.5, 0.5], seed=1), masks=MIXED, max_steps=8
    )
    trainer.train()
    draws = sorted(draw for part in parts for _, draw in part.asked)
    # Two epochs of six steps; the loader is a batch ahead.
    assert draws[:48] == list(range(48))
    assert all(len(part.asked) > 12 for part in parts)


def test_images_and_clips_train_together(make_trainer: Callable[..., JepaTrainer]) -> None:
    model = tiny_model("2.1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(model, data=Clips(with_images=True), masks=MIXED)
    trainer.train()
    after = model.state_dict()
    for name in ("patch_embeddings.proj.weight", "image_patch_embeddings.proj.weight", "image_modality"):
        assert not torch.equal(after[f"encoder.embeddings.{name}"], before[f"encoder.embeddings.{name}"]), name
    for entry in logs_of(trainer):
        assert entry["target_std"] > 0
        assert entry["context_loss"] > 0
    # Two groups, two mask tokens; the others stay as they were.
    moved = (after["predictor.embeddings.mask_tokens"] != before["predictor.embeddings.mask_tokens"]).flatten(1).any(1)
    assert moved.tolist() == [True, True] + [False] * 6


def test_a_batch_without_two_clips_of_one_length_logs_no_spread(make_trainer: Callable[..., JepaTrainer]) -> None:
    data = [Clips(with_images=True)[index] for index in (0, 1)]
    trainer = make_trainer(tiny_model("2.1"), data=data, masks=MIXED, per_device_train_batch_size=2, max_steps=2)
    trainer.train()
    for entry in logs_of(trainer):
        assert "target_std" not in entry
        assert "target_rankme" not in entry
        assert entry["prediction_loss"] > 0


def test_probes_read_labelled_clips(make_trainer: Callable[..., JepaTrainer]) -> None:
    probes = [{**Clips()[index], "label": index % 2} for index in range(12)]
    for index, sample in enumerate(probes):
        sample["pixel_values_videos"] = sample["pixel_values_videos"] + 3.0 * (index % 2)
    trainer = make_trainer(max_steps=2)
    trainer.probe_train_dataset, trainer.eval_dataset = probes, probes[:7]
    metrics = trainer.evaluate()
    # Bright against dark, which an untrained encoder tells apart too.
    assert metrics["eval_ridge_accuracy"] == 1.0
    assert 0.5 < metrics["eval_knn_accuracy"] <= 1.0


def test_the_target_follows_frozen_parameters_too() -> None:
    encoder = VJepaConfig(**TINY_VJEPA, position_embedding_type="sincos")
    model = VJepaForPreTraining(VJepaPreTrainingConfig(encoder_config=encoder))
    table, target = (part.embeddings.position_embeddings for part in (model.encoder, model.target_encoder))
    assert not table.requires_grad
    before = target.clone()
    with torch.no_grad():
        table += 1.0
    model.update_target(0.75)
    torch.testing.assert_close(target, before + 0.25)


class Weights(TrainerCallback):
    """What the context loss weighed while the loss was computed."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_) -> None:
        self.seen.append(float(model.context_loss_weight))


def test_the_context_loss_is_warmed_up(make_trainer: Callable[..., JepaTrainer]) -> None:
    weights = Weights()
    trainer = make_trainer(
        tiny_model("2.1"), callbacks=[weights], max_steps=6, context_loss_start_step=1, context_loss_full_step=5
    )
    trainer.train()
    assert weights.seen == [0.0, 0.0, 0.125, 0.25, 0.375, 0.5]
    for entry, weight in zip(logs_of(trainer), weights.seen, strict=True):
        assert entry["context_loss_weight"] == weight
        assert entry["loss"] == pytest.approx(entry["prediction_loss"] + weight * entry["context_loss"], rel=1e-5)

    # Published cooldowns have it from the start.
    trainer = make_trainer(tiny_model("2.1"), max_steps=1)
    trainer.train()
    assert logs_of(trainer)[0]["context_loss_weight"] == 0.5


@pytest.mark.parametrize("separately", [True, False])
def test_clipping(make_trainer: Callable[..., JepaTrainer], separately: bool) -> None:
    norms = []

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_) -> None:
            parts = (model.encoder, model.predictor)
            gradients = [[p.grad for p in part.parameters() if p.grad is not None] for part in parts]
            norms.append([torch.nn.utils.get_total_norm(part).item() for part in gradients])

    trainer = make_trainer(
        callbacks=[Norms()], max_grad_norm=0.01, clip_separately=separately, clip_after_steps=0.5, learning_rate=0.0
    )
    trainer.train()
    for step, (parts, entry) in enumerate(zip(norms, logs_of(trainer), strict=True)):
        total = torch.tensor(parts).norm().item()
        if step < 2:
            assert total > 0.05
            assert entry["grad_norm"] == pytest.approx(total, rel=1e-5)
        elif separately:
            assert parts == pytest.approx([0.01, 0.01], rel=1e-3)
            assert entry["grad_norm"] > 0.05
        else:
            assert total == pytest.approx(0.01, rel=1e-3)


@pytest.fixture
def first_phase(make_trainer: Callable[..., JepaTrainer]) -> JepaTrainer:
    trainer = make_trainer(save_strategy="steps", save_steps=4, learning_rate_end=1e-3, weight_decay_end=0.04)
    trainer.train()
    return trainer


def test_a_phase_starts_from_another_with_its_optimizer(
    make_trainer: Callable[..., JepaTrainer], first_phase: JepaTrainer, tmp_path: Path
) -> None:
    """V-JEPA 2's cooldown: larger frames, more of them, and the learning rate falls from where it was."""
    settings = {
        "output_dir": str(tmp_path / "cooldown"),
        "data": Clips(num_frames=8, size=48),
        "masks": generators(num_frames=8, size=48),
        "start_from_checkpoint": str(tmp_path / "run" / "checkpoint-4"),
        "warmup_steps": 0,
        "learning_rate_linear_decay": 1.0,
        "schedule_horizon": 1.25,
        "adam_beta2": 0.95,
        "max_steps": 4,
    }
    seen: dict[str, Any] = {"rates": [], "betas": set()}

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **_) -> None:
            if state.global_step == 0:
                seen["weights"] = {name: value.clone() for name, value in model.state_dict().items()}
                states = optimizer.optimizer.state_dict()["state"]
                seen["moments"] = {index: entry["exp_avg_sq"].clone() for index, entry in states.items()}
                seen["counts"] = {float(entry["step"]) for entry in states.values()}

        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_) -> None:
            seen["rates"].append(optimizer.param_groups[0]["lr"])
            seen["betas"].add(optimizer.param_groups[0]["betas"])

    trainer = make_trainer(tiny_model(seed=7), callbacks=[Steps()], **settings)
    trainer.train()
    expected = first_phase.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in seen["weights"].items())
    moments = first_phase.optimizer.state_dict()["state"]
    assert all(torch.equal(moments[index]["exp_avg_sq"], value) for index, value in seen["moments"].items())
    assert len(seen["moments"]) == len(moments)
    assert seen["counts"] == {4.0}
    assert trainer.state.global_step == 4
    # Its settings are its own, from the first update on.
    assert seen["rates"] == pytest.approx([1e-3 + step / 5 * (1e-6 - 1e-3) for step in (1, 2, 3, 4)])
    assert seen["betas"] == {(0.9, 0.95)}

    # Interrupted, the phase goes on from its own checkpoint.
    settings |= {"output_dir": str(tmp_path / "again"), "save_strategy": "steps", "save_steps": 2}
    make_trainer(tiny_model(seed=8), **settings).train()
    resumed = make_trainer(tiny_model(seed=9), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-2"))
    assert states_equal(trainer, resumed)


def test_a_phase_does_not_start_from_half_a_checkpoint(
    make_trainer: Callable[..., JepaTrainer], first_phase: JepaTrainer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="Cannot start from .*nowhere: it is not a folder"):
        make_trainer(start_from_checkpoint=str(tmp_path / "nowhere")).train()
    other = tiny_model(num_hidden_layers=1)
    with pytest.raises(ValueError, match="does not fit this VJepa2ForPreTraining"):
        make_trainer(other, start_from_checkpoint=str(tmp_path / "run" / "checkpoint-4")).train()
    (tmp_path / "run" / "checkpoint-4" / "optimizer.safetensors").unlink()
    with pytest.raises(ValueError, match=r"optimizer.safetensors is missing"):
        make_trainer(start_from_checkpoint=str(tmp_path / "run" / "checkpoint-4")).train()


def test_checkpoints_from_before_these_options_can_be_resumed(
    make_trainer: Callable[..., JepaTrainer], first_phase: JepaTrainer, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "checkpoint-4" / "training_args.json"
    gained = ("clip_separately", "clip_after_steps", "learning_rate_linear_decay", "context_loss_full_step")
    saved = json.loads(path.read_text())
    text = json.dumps({name: value for name, value in saved.items() if name not in gained})
    marker = tmp_path / "run" / "checkpoint-4" / "checkpoint_complete.json"
    complete = json.loads(marker.read_text())
    path.write_text(text)
    complete["files"]["training_args.json"] = len(text)
    marker.write_text(json.dumps(complete))
    same = {"learning_rate_end": 1e-3, "weight_decay_end": 0.04}
    resumed = make_trainer(**same)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    with pytest.raises(ValueError, match="clip_separately: None in the checkpoint, True now"):
        make_trainer(clip_separately=True, max_grad_norm=1.0, **same).train(resume_from_checkpoint=True)
