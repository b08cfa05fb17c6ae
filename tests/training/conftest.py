"""A tiny run: 24 labelled noise pictures, a two-layer I-JEPA, random crops, balanced masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, JepaTrainer, JepaTrainingArguments
from hf_jepa.data import MaskCollator, SeededImageDataset, eval_transform, train_transform
from hf_jepa.masking import MultiBlockMaskGenerator


@pytest.fixture(scope="session")
def pictures() -> Dataset:
    generator = np.random.default_rng(0)
    rows = {"image": [], "label": []}
    for index in range(24):
        # Two classes that are easy to tell apart: dark and bright noise.
        noise = generator.integers(0, 128, (40, 40, 3)) + 127 * (index % 2)
        rows["image"].append(Image.fromarray(noise.astype(np.uint8)))
        rows["label"].append(index % 2)
    return Dataset.from_dict(rows)


@pytest.fixture
def tiny_model() -> Callable[..., IJepaForPreTraining]:
    def build(seed: int = 0, hidden_size: int = 32) -> IJepaForPreTraining:
        torch.manual_seed(seed)
        encoder = IJepaConfig(
            hidden_size=hidden_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=48,
            patch_size=8,
            layer_norm_eps=1e-6,
        )
        config = IJepaPreTrainingConfig(
            encoder_config=encoder,
            predictor_hidden_size=16,
            predictor_num_hidden_layers=1,
            initialization="fan_in",
        )
        return IJepaForPreTraining(config)

    return build


@pytest.fixture
def make_trainer(pictures: Dataset, tiny_model: Callable[..., Any], tmp_path: Path) -> Callable[..., JepaTrainer]:
    def build(model: Any = None, trainer: dict[str, Any] | None = None, **args: Any) -> JepaTrainer:
        collator = MaskCollator(MultiBlockMaskGenerator(48, 8, min_keep=2, mode="balanced"))
        dataset = SeededImageDataset(pictures, train_transform(48), seed=1)
        probes = SeededImageDataset(pictures, eval_transform(48), label_column="label")
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "warmup_steps": 1,
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        given = {
            "data_collator": collator,
            "train_dataset": dataset,
            "eval_dataset": probes,
            "probe_train_dataset": probes,
        }
        return JepaTrainer(
            model=tiny_model() if model is None else model,
            args=JepaTrainingArguments(**{**defaults, **args}),
            **{**given, **(trainer or {})},
        )

    return build
