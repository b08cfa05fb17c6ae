"""What shapes a run is compared when it is resumed, and named key by key."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torchvision.transforms import v2

from hf_jepa.data import (
    MaskCollator,
    MixedVideoDataset,
    MultiViewTransform,
    PairFormat,
    SeededImageDataset,
    ViewAugmentation,
    train_transform,
)
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.training.checkpoints import COMPLETE_MARKER
from hf_jepa.training.settings import describe


def changes_of(trainer: Any, folder: Path) -> str:
    with pytest.raises(ValueError, match="other settings") as error:
        trainer.train(resume_from_checkpoint=str(folder))
    return str(error.value).partition("other settings: ")[2].partition(". Set them back")[0]


def test_changed_data_and_masks_are_named(
    make_trainer: Callable[..., Any], pictures: Dataset, tmp_path: Path, tiny_model: Any
) -> None:
    same = {"max_steps": 2, "lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 1.5}}
    make_trainer(**same, save_strategy="steps", save_steps=2).train()
    folder = tmp_path / "run" / "checkpoint-2"
    for change, expected in (
        (
            {"trainer": {"data_collator": MaskCollator(MultiBlockMaskGenerator(48, 8, min_keep=3, mode="balanced"))}},
            "data_collator.mask_generator.min_keep: 2 in the checkpoint, 3 now",
        ),
        (
            {"trainer": {"train_dataset": SeededImageDataset(pictures, train_transform(48, (0.5, 1.0)), seed=1)}},
            "train_dataset.transform.scale: [0.3, 1.0] in the checkpoint, [0.5, 1.0] now",
        ),
        (
            {"trainer": {"train_dataset": SeededImageDataset(pictures, train_transform(48), seed=2)}},
            "train_dataset.seed: 1 in the checkpoint, 2 now",
        ),
        (
            {"lr_scheduler_kwargs": {"power": 2.0}},
            "lr_scheduler_kwargs.power: 1.5 in the checkpoint, 2.0 now",
        ),
        (
            {"train_sampling_strategy": "sequential"},
            "train_sampling_strategy: 'random' in the checkpoint, 'sequential' now",
        ),
    ):
        assert changes_of(make_trainer(**{**same, **change}), folder) == expected
    # None of these: other workers, another split of a batch whose images are not compared.
    make_trainer(**same, per_device_train_batch_size=2, gradient_accumulation_steps=2).train(True)


def test_changed_pairs_and_splits_are_named(make_llm_trainer: Callable[..., Any], tmp_path: Path) -> None:
    model = {"regularizer": "vicreg", "target": "stop_gradient"}
    make_llm_trainer(model, save_strategy="steps", save_steps=2).train()
    folder = tmp_path / "run" / "checkpoint-2"
    for change, expected in (
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            "batch_per_forward: 8 in the checkpoint, 4 now",
        ),
        (
            {"trainer": {"pair_format": PairFormat(train_on="all")}},
            "train_dataset.pair_format.train_on: 'response' in the checkpoint, 'all' now",
        ),
        ({"max_row_tokens": 200}, "max_row_tokens: None in the checkpoint, 200 now"),
        ({"regime": "official"}, "regime: 'clean' in the checkpoint, 'official' now"),
    ):
        assert expected in changes_of(make_llm_trainer(model, **change), folder)


def test_the_split_counts_in_the_official_regime_and_for_images_that_are_compared(
    make_llm_trainer: Callable[..., Any], make_vl_trainer: Callable[..., Any]
) -> None:
    official = make_llm_trainer(regime="official", gradient_accumulation_steps=2)._run_description()
    assert official["gradient_accumulation_steps"] == 2
    assert "batch_per_forward" not in official
    # Negatives come from one forward pass.
    assert make_vl_trainer()._run_description()["batch_per_forward"] == 8
    assert "batch_per_forward" not in make_vl_trainer({"loss": "l2"})._run_description()


def test_what_a_processor_does_to_pixels_is_compared(make_vl_trainer: Callable[..., Any], tmp_path: Path) -> None:
    make_vl_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "run" / "checkpoint-1"
    changed = make_vl_trainer(max_steps=1)
    changed.processing_class.video_processor.image_mean = [0.0, 0.0, 0.0]
    assert "data_collator.processor.video_processor.image_mean" in changes_of(changed, folder)
    # The processor that was saved with the checkpoint is the same.
    saved = type(changed.processing_class).from_pretrained(folder)
    make_vl_trainer(trainer={"processing_class": saved}, max_steps=1).train(resume_from_checkpoint=True)


def test_what_a_checkpoint_does_not_say_is_not_compared(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    marker = tmp_path / "run" / "checkpoint-2" / COMPLETE_MARKER
    content = json.loads(marker.read_text())
    # As an earlier version of the package has written it.
    del content["run"]["train_dataset"], content["run"]["data_collator"]["mask_generator"]["min_keep"]
    marker.write_text(json.dumps(content))
    make_trainer(max_steps=2).train(resume_from_checkpoint=True)


def jitter(image: torch.Tensor) -> torch.Tensor:
    return image


class Own(torch.utils.data.Dataset):
    """A user's: what it counts must not look like a setting."""

    def __init__(self, transform: Any) -> None:
        self.transform, self.seen = transform, 0


def test_settings_are_read_at_any_depth(pictures: Dataset) -> None:
    views = MultiViewTransform([ViewAugmentation(48, blur_probability=0.25)] * 2)
    parts = [SeededImageDataset(pictures, views), SeededImageDataset(pictures, partial(jitter))]
    found = json.loads(json.dumps(describe(MixedVideoDataset(parts, weights=[1, 3]))))
    assert found["shares"] == [0.25, 1.0]
    assert found["datasets"][0]["transform"]["global_views"][1]["blur_probability"] == 0.25
    assert found["datasets"][1]["transform"]["function"] == "jitter"

    own = describe(Own(v2.Compose([v2.RandomResizedCrop(32, scale=(0.4, 1.0)), v2.RandomHorizontalFlip(0.3)])))
    assert own["transform"]["transforms"][0]["scale"] == [0.4, 1.0]
    assert own["transform"]["transforms"][0]["interpolation"] == "bilinear"
    assert own["transform"]["transforms"][1]["p"] == 0.3
    assert "seen" not in own
    assert describe(Own(jitter)) == "Own"
    assert describe([{"pixel_values": torch.zeros(3, 48, 48)}] * 99) == 99
