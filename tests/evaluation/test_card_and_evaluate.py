"""What a card says of a run's probes is what `hf-jepa evaluate` finds on the release."""

import json

import av
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
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VJepaConfig,
)
from hf_jepa.cli import main
from hf_jepa.data import (
    MaskCollator,
    MultiViewCollator,
    MultiViewTransform,
    SeededImageDataset,
    SeededVideoDataset,
    VideoMaskCollator,
    ViewAugmentation,
    load_video_dataset,
    processor_transform,
    train_transform,
    video_eval_transform,
)
from hf_jepa.evaluation import ClipProtocol
from hf_jepa.hub.processors import default_processor
from hf_jepa.masking import MultiBlock3DMaskGenerator, MultiBlockMaskGenerator

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
    config = SimSiamPreTrainingConfig(encoder_config=ViTConfig(**SIZES), projector_hidden_size=32, projection_size=32)
    return SimSiamForPreTraining(config), MultiViewTransform(2 * [ViewAugmentation(32)]), MultiViewCollator()


@pytest.mark.parametrize("build", [masked, joint])
def test_the_number_on_the_card_is_the_number_of_evaluate(photos, tmp_path, build):
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
    compare(release, photos, tmp_path)


def compare(release, data, tmp_path, *flags: str) -> None:
    """The card's entries, each measured again by the command."""
    entries = json.loads((release / "results.json").read_text())["evaluations"]
    assert [entry["task"] for entry in entries] == ["knn", "ridge"]
    assert 0.2 < entries[1]["value"] < 1.0
    for entry in entries:
        command = ["evaluate", release, "--dataset", data, "--task", entry["task"], "--k", "5", "--device", "cpu"]
        assert main([*map(str, command), "--output", str(tmp_path / "found.json"), *flags]) == 0
        (found,) = json.loads((tmp_path / "found.json").read_text())["evaluations"]
        assert found["value"] == entry["value"]


def test_the_number_of_a_video_run(tmp_path):
    """Some clips are shorter than 4 frames with a step of 3."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(2):
            for number in range(8):
                level = generator.integers(0, 120) + 40 * label
                pixels = generator.integers(0, 60, (int(generator.integers(6, 30)), 3, 32, 48)) + level
                path = tmp_path / "clips" / split / "ab"[label] / f"{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                with av.open(str(path), "w") as container:
                    stream = container.add_stream("mpeg4", rate=8)
                    stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
                    for frame in pixels.transpose(0, 2, 3, 1).astype(np.uint8):
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                    container.mux(stream.encode())
    torch.manual_seed(0)
    encoder = VJepaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, crop_size=32, patch_size=8, frames_per_clip=4,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip
    model = VJepa2ForPreTraining(VJepa2PreTrainingConfig(encoder_config=encoder))
    sampler = ClipProtocol(4, frame_step=3).sampler()
    probes = [
        SeededVideoDataset(rows, sampler, video_eval_transform(32), label_column="label")
        for rows in (
            load_video_dataset(tmp_path / "clips", split, label_column="label") for split in ("train", "test")
        )
    ]
    arguments = JepaTrainingArguments(tmp_path / "run", probe_num_neighbors=5, use_cpu=True, report_to=[])
    collator = VideoMaskCollator([MultiBlock3DMaskGenerator(32, 8, num_frames=4, mode="balanced")])
    trainer = JepaTrainer(
        model, arguments, data_collator=collator, train_dataset=probes[0], eval_dataset=probes[1],
        probe_train_dataset=probes[0], processing_class=default_processor(model),
    )  # fmt: skip
    trainer.evaluate()
    compare(trainer.write_release(), tmp_path / "clips", tmp_path, "--num-frames", "4", "--frame-step", "3")
