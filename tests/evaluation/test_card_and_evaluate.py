"""What a card says of a run's probes is what `hf-jepa evaluate` finds on the release."""

import json
import shlex

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from transformers import IJepaConfig, ViTConfig

from hf_jepa import (
    IJepaForPreTraining,
    IJepaPreTrainingConfig,
    JepaTrainer,
    JepaTrainingArguments,
    SimSiamForPreTraining,
    SimSiamPreTrainingConfig,
)
from hf_jepa.cli import main
from hf_jepa.data import (
    MaskCollator,
    MultiViewCollator,
    MultiViewTransform,
    SeededImageDataset,
    ViewAugmentation,
    processor_transform,
    train_transform,
)
from hf_jepa.hub.processors import default_processor
from hf_jepa.masking import MultiBlockMaskGenerator

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZES |= {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of several shapes, so that squashing and cropping differ, of classes that are not quite separable."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 60), ("test", 60)):
        pictures, labels = [], []
        for number in range(count):
            label = number % 3
            height, width = generator.integers(30, 90, 2)
            level = generator.integers(0, 120) + 30 * label
            pixels = generator.integers(0, 40, (height, width, 3)) + level
            pixels[:, : width // 4] += 60
            pictures.append(PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)))
            labels.append(label)
        features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
        splits[split] = Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    DatasetDict(splits).save_to_disk(folder / "data")
    return folder / "data"


def masked():
    encoder = IJepaConfig(**SIZES)
    config = IJepaPreTrainingConfig(
        encoder_config=encoder,
        predictor_hidden_size=24,
        predictor_num_attention_heads=2,
        predictor_num_hidden_layers=1,
    )
    collator = MaskCollator(MultiBlockMaskGenerator(32, 8, mode="balanced", min_keep=1))
    return IJepaForPreTraining(config), train_transform(32), collator


def joint():
    config = SimSiamPreTrainingConfig(encoder_config=ViTConfig(**SIZES), projector_hidden_size=32, projector_size=32)
    return SimSiamForPreTraining(config), MultiViewTransform(2 * [ViewAugmentation(32)]), MultiViewCollator()


@pytest.mark.parametrize("build", [masked, joint])
def test_the_number_on_the_card_is_the_number_of_evaluate(photos, tmp_path, capsys, build):
    torch.manual_seed(0)
    model, transform, collator = build()
    processor = default_processor(model)
    splits = DatasetDict.load_from_disk(photos)
    seen = processor_transform(processor)
    probes = {name: SeededImageDataset(rows, seen, label_column="label") for name, rows in splits.items()}
    trainer = JepaTrainer(
        model,
        JepaTrainingArguments(
            tmp_path / "run", max_steps=2, per_device_train_batch_size=8, probe_num_neighbors=5, use_cpu=True,
            disable_tqdm=True, report_to=[],
        ),
        data_collator=collator,
        train_dataset=SeededImageDataset(splits["train"], transform),
        eval_dataset=probes["test"],
        probe_train_dataset=probes["train"],
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    release = trainer.write_release()
    said = {
        entry["task"]: entry["value"] for entry in json.loads((release / "results.json").read_text())["evaluations"]
    }
    assert said.keys() == {"knn", "ridge"}
    assert 0.4 < said["ridge"] < 1.0
    for task, value in said.items():
        command = (
            f"evaluate {release} --dataset {photos} --task {task} --k 5 --device cpu --output {tmp_path}/found.json"
        )
        assert main(shlex.split(command)) == 0
        (entry,) = json.loads((tmp_path / "found.json").read_text())["evaluations"]
        assert entry["value"] == value
