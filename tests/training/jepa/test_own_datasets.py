"""Datasets that people write themselves, and what their collators say of samples that do not fit."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hf_jepa.data import MaskCollator, MultiViewCollator, VideoMaskCollator, collate_windows
from hf_jepa.masking import MultiBlock3DMaskGenerator, MultiBlockMaskGenerator
from hf_jepa.training.refusals import refuse_several_splits

IMAGE = np.random.default_rng(0).normal(size=(3, 48, 48)).astype("float32")


def rows(sample: object) -> list:
    return [sample] * 8


def collators() -> dict[str, tuple]:
    clips = [MultiBlock3DMaskGenerator(32, 8, 4, mode="balanced", num_blocks=2, spatial_scale=(0.3, 0.3))]
    return {
        "pixel_values": (MaskCollator(MultiBlockMaskGenerator(48, 8, min_keep=2, mode="balanced")), (3, 48, 48)),
        "views": (MultiViewCollator(), (2, 3, 8, 8)),
        "pixel_values_videos": (VideoMaskCollator(clips), (4, 3, 32, 32)),
        "actions": (collate_windows, (2, 1)),
    }


@pytest.mark.parametrize("kind", ["pixel_values", "views", "pixel_values_videos", "actions"])
def test_arrays_are_stacked_as_tensors_are(kind):
    collate, shape = collators()[kind]
    name = "pixel_values" if kind == "views" else kind
    array = np.random.default_rng(0).normal(size=shape).astype("float32")
    found, wanted = (
        collate([{name: value, "draw": draw} for draw in range(2)]) for value in (array, torch.from_numpy(array))
    )
    assert torch.equal(found[name], wanted[name])
    assert found[name].dtype == torch.float32


@pytest.mark.parametrize("kind", ["pixel_values", "views", "pixel_values_videos", "actions"])
def test_a_sample_of_something_else_is_named(kind):
    collate, shape = collators()[kind]
    name = "pixel_values" if kind == "views" else kind
    whole = {name: torch.zeros(shape), "draw": 0}
    with pytest.raises(ValueError, match=f"`{name}`, which is missing in one with image, draw"):
        collate([whole, {"image": torch.zeros(shape), "draw": 1}])
    with pytest.raises(ValueError, match=f"`{name}`, which is a Image in one"):
        collate([whole, {name: Image.new("RGB", (8, 8)), "draw": 1}])
    if kind in ("pixel_values", "pixel_values_videos"):
        with pytest.raises(ValueError, match="Samples need `draw`"):
            collate([{name: torch.zeros(shape)}])


def test_a_dataset_of_arrays_trains_as_one_of_tensors(make_trainer):
    losses = []
    for image in (IMAGE, torch.from_numpy(IMAGE)):
        trainer = make_trainer(trainer={"train_dataset": rows({"pixel_values": image})}, max_steps=2)
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ((torch.zeros(3, 48, 48), 1), "must yield dicts .* got a tuple"),
        ({"image": Image.new("RGB", (48, 48))}, "`pixel_values`, which is missing in one with image, draw"),
        ({"pixel_values": torch.zeros(3, 48, 48, dtype=torch.uint8)}, "must be floating point, .* got torch.uint8"),
    ],
)
def test_samples_that_cannot_be_trained_on_are_refused_by_name(make_trainer, sample, said):
    with pytest.raises(ValueError, match=said):
        make_trainer(trainer={"train_dataset": rows(sample)}).train()


def test_several_splits_are_not_one(make_trainer, make_llm_trainer):
    splits = {"train": Dataset.from_dict({"image": [Image.new("RGB", (48, 48))] * 8}), "test": None}
    for make in (make_trainer, make_llm_trainer):
        with pytest.raises(ValueError, match=r"choose one: `datasets\[...\]` with one of 'train', 'test'"):
            make(trainer={"train_dataset": splits})
    refuse_several_splits(splits["train"])


def test_there_is_nothing_to_predict(make_trainer):
    with pytest.raises(ValueError, match="JepaTrainer has no logits to return: `evaluate` scores"):
        make_trainer().predict([])
