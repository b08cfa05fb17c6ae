"""One of two processes of tiny runs, of which one is told to leave in the middle."""

import json
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import IJepaConfig, TrainerCallback

from hf_jepa import (
    IJepaForPreTraining,
    IJepaPreTrainingConfig,
    JepaTrainer,
    JepaTrainingArguments,
)
from hf_jepa.data import MaskCollator
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.training import TrainingInterrupted


class Pictures:
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"pixel_values": torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(index))}


class Tell(TrainerCallback):
    """The second process alone is told, in its second update."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.process_index == 1 and state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)


class Draws(TrainerCallback):
    """What a process draws from the global generator in each update, as its dropout would."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.seen.append(torch.rand(()).item())


def build_arguments(output: Path) -> JepaTrainingArguments:
    return JepaTrainingArguments(
        output_dir=str(output),
        max_steps=6,
        per_device_train_batch_size=2,
        warmup_steps=1,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def build_trainer(output: Path, seed: int, *callbacks: TrainerCallback) -> JepaTrainer:
    torch.manual_seed(seed)
    encoder = IJepaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=48, patch_size=8
    )
    config = IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    collator = MaskCollator(MultiBlockMaskGenerator(48, 8, min_keep=2, mode="balanced"))
    return JepaTrainer(
        IJepaForPreTraining(config), build_arguments(output), collator, Pictures(), callbacks=list(callbacks)
    )


def interrupt_and_go_on(output: Path) -> None:
    draws = Draws()
    whole = build_trainer(output / "whole", 0, draws)
    whole.train()
    told = build_trainer(output / "told", 0, Tell())
    try:
        told.train()
    except TrainingInterrupted as error:
        stopped = [told.state.global_step, error.code]
    resumed = build_trainer(output / "told", 5)
    resumed.train(resume_from_checkpoint=True)
    expected = whole.model.state_dict()
    same = all(torch.equal(expected[name], value) for name, value in resumed.model.state_dict().items())
    report = {"stopped": stopped, "same": same, "draws": draws.seen}
    (output / f"interrupted-{told.args.process_index}.json").write_text(json.dumps(report))
