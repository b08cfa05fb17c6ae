"""Ten thousand updates: memory, files and speed stay flat, the target is what its momenta say; a late collapse."""

import os
import resource
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from transformers import IJepaConfig, TrainerCallback

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, JepaTrainer, JepaTrainingArguments
from hf_jepa.data import MaskCollator
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.training.callbacks import momentum_at

STEPS = 10_000


def build_trainer(folder: Path, callback: TrainerCallback, **given: Any) -> JepaTrainer:
    torch.manual_seed(0)
    encoder = IJepaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4
    )
    model = IJepaForPreTraining(
        IJepaPreTrainingConfig(
            encoder_config=encoder,
            predictor_hidden_size=8,
            predictor_num_hidden_layers=1,
            initialization="fan_in",
        )
    )
    defaults = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "logging_steps": 100,
        "save_strategy": "steps",
        "save_steps": 2500,
        "save_total_limit": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    pictures = [{"pixel_values": torch.randn(3, 16, 16)} for _ in range(64)]
    collator = MaskCollator(MultiBlockMaskGenerator(16, 4, min_keep=1, mode="balanced", target_scale=(0.2, 0.25)))
    args = JepaTrainingArguments(**{**defaults, **given})
    return JepaTrainer(model, args, collator, pictures, callbacks=[callback])


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Watch(TrainerCallback):
    """Measures every 500 updates, and moves a target of its own, in float64."""

    def __init__(self) -> None:
        self.memory: list[int] = []
        self.files: list[int] = []
        self.seconds: list[float] = []
        self.target: dict[str, torch.Tensor] = {}
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.target = {name: value.double().clone() for name, value in model.target_encoder.named_parameters()}
        self.started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        momentum = momentum_at(state.global_step - 1, args, state.max_steps)
        online = dict(model.encoder.named_parameters())
        for name, value in self.target.items():
            value.lerp_(online[name].detach().double(), 1 - momentum)
        if state.global_step % 500 == 0:
            self.seconds.append(time.process_time() - self.started)
            self.memory.append(resident())
            self.files.append(len(os.listdir("/proc/self/fd")))
            self.started = time.process_time()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc")
def test_ten_thousand_updates_stay_flat(tmp_path: Path) -> None:
    watch = Watch()
    trainer = build_trainer(tmp_path, watch)
    trainer.train()
    # The first quarter warms allocators and caches up.
    settled = len(watch.memory) // 4
    assert max(watch.memory[settled:]) - watch.memory[settled] < 16 * 2**20, watch.memory
    assert max(watch.files[settled:]) <= watch.files[settled], watch.files
    assert median(watch.seconds[-settled:]) < 1.3 * median(watch.seconds[settled : 2 * settled]), watch.seconds
    for name, value in trainer.model.target_encoder.named_parameters():
        torch.testing.assert_close(value.double(), watch.target[name], rtol=1e-4, atol=1e-5, msg=name)
    logs = [entry for entry in trainer.state.log_history if "ema_momentum" in entry]
    assert len(logs) == STEPS // 100
    for entry in logs:
        assert entry["ema_momentum"] == pytest.approx(momentum_at(entry["step"] - 1, trainer.args, STEPS), abs=1e-9)


class Fade(TrainerCallback):
    """What an encoder does that collapses slowly: the spread of its features falls by a thousandth an update."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        with torch.no_grad():
            for part in (model.encoder, model.target_encoder):
                part.layernorm.weight.mul_(0.999)
                part.layernorm.bias.mul_(0.999)


@pytest.mark.slow
def test_a_late_collapse_is_seen(tmp_path: Path) -> None:
    given = {"learning_rate": 0.0, "learning_rate_start": 0.0, "learning_rate_end": 0.0, "weight_decay": 0.0}
    given |= {"weight_decay_end": 0.0, "collapse_action": "stop", "save_strategy": "no"}
    trainer = build_trainer(tmp_path, Fade(), **given)
    trainer.train()
    assert trainer.guard.finding is not None
    assert "target_std" in trainer.guard.finding
    # Healthy at first, and stopped as soon as it has been seen `collapse_patience` times in a row.
    assert 1000 < trainer.state.global_step < STEPS
    spread = [entry["target_std"] for entry in trainer.state.log_history if "target_std" in entry]
    low = [place for place, value in enumerate(spread) if value < trainer.args.collapse_std_threshold]
    assert len(low) == trainer.args.collapse_patience
    assert low[0] > 5
