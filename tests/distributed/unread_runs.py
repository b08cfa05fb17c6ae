"""Tiny runs with encoders that have parameters which no loss reads; see the test."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    BeitConfig,
    BeitModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from hf_jepa import JepaTrainer, JepaTrainingArguments, LeJepaForPreTraining
from hf_jepa.data import MultiViewCollator

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SIZES |= {"image_size": 32, "patch_size": 8}
# Mask tokens, poolers and heads that features are not read from.
ENCODERS = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES)),
    "beit": lambda: BeitModel(BeitConfig(**SIZES, use_mask_token=True)),
}


class Views:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(index))}


def run(output: Path, name: str) -> None:
    torch.manual_seed(0)
    model = LeJepaForPreTraining.from_encoder(ENCODERS[name](), regularizer_weight=0.5)
    args = JepaTrainingArguments(
        output_dir=str(output / name),
        max_steps=3,
        per_device_train_batch_size=2,
        warmup_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    JepaTrainer(model, args, MultiViewCollator(), Views()).train()
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, output / f"{name}-{args.process_index}.safetensors")


def run_all(output: Path) -> None:
    for name in ENCODERS:
        run(output, name)
