import io
import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_jepa.data import (
    CountedSampler,
    SeededImageDataset,
    SeededImageStream,
    eval_transform,
    mix_seed,
    train_transform,
)


def png(value: int) -> dict:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (20, 20), dtype=np.uint8)
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def images() -> Dataset:
    features = Features({"picture": Image(), "class": ClassLabel(num_classes=3), "note": Value("string")})
    columns = {"picture": [png(i) for i in range(24)], "class": [i % 3 for i in range(24)], "note": ["x"] * 24}
    return Dataset.from_dict(columns, features=features)


def seeded(images: Dataset, **kwargs) -> SeededImageDataset:
    transform = kwargs.pop("transform", train_transform(16, mean=(0.5,), std=(0.5,)))
    return SeededImageDataset(images, transform, "picture", **kwargs)


def as_list(samples: list[dict]) -> list[dict]:
    return samples


def test_samples_hold_pixels_draw_and_label(images):
    dataset = seeded(images, label_column="class", transform=eval_transform(20, mean=(0.0,), std=(1.0,)))
    assert len(dataset) == 24
    sample = dataset[(4, 77)]
    assert sample.keys() == {"pixel_values", "draw", "label"}
    assert (sample["draw"], sample["label"]) == (77, 1)
    expected = torch.from_numpy(np.array(images[4]["picture"])).float()[None] / 255
    torch.testing.assert_close(sample["pixel_values"], expected)
    assert dataset[4]["draw"] == 4
    assert "label" not in seeded(images)[0]


def test_random_transform_depends_on_seed_and_draw_alone(images):
    dataset = seeded(images)
    torch.manual_seed(1)
    first = dataset[(5, 9)]["pixel_values"]
    torch.manual_seed(2)
    assert torch.equal(first, dataset[(5, 9)]["pixel_values"])
    assert not torch.equal(first, dataset[(5, 10)]["pixel_values"])
    assert not torch.equal(first, seeded(images, seed=1)[(5, 9)]["pixel_values"])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(images, num_workers):
    dataset = seeded(images, label_column="class")

    def epoch(workers: int) -> list[dict]:
        sampler = CountedSampler(24, seed=5, batch_size=6)
        sampler.set_epoch(2)
        loader = DataLoader(dataset, 6, sampler=sampler, num_workers=workers, collate_fn=as_list)
        return [sample for batch in loader for sample in batch]

    for ours, expected in zip(epoch(num_workers), epoch(0), strict=True):
        assert (ours["draw"], ours["label"]) == (expected["draw"], expected["label"])
        assert torch.equal(ours["pixel_values"], expected["pixel_values"])


def messy(image: PILImage.Image) -> torch.Tensor:
    """A user's transform that draws from all three global generators."""
    return torch.tensor([random.random(), np.random.rand(), torch.rand(1).item()])


@pytest.mark.parametrize("transform", [train_transform(16), messy])
def test_global_random_state_is_untouched(images, transform):
    dataset = seeded(images, transform=transform)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = dataset[(1, 2)]["pixel_values"]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    assert torch.equal(first, dataset[(1, 2)]["pixel_values"])
    assert not torch.equal(first, dataset[(1, 3)]["pixel_values"])


def test_mixed_seeds_do_not_overlap():
    seeds = {mix_seed(seed, draw) for seed in range(20) for draw in range(500)}
    assert len(seeds) > 9990
    assert max(seeds) < 2**32
    assert mix_seed(1, 2) != mix_seed(2, 1)


def test_missing_column_lists_the_columns_there_are(images):
    with pytest.raises(ValueError, match=r"image_column='image'.*\['class', 'note', 'picture'\]"):
        SeededImageDataset(images, eval_transform(8))
    with pytest.raises(ValueError, match="label_column='target'"):
        seeded(images, label_column="target")
    with pytest.raises(ValueError, match="class_encode_column"):
        seeded(images, label_column="note")


def test_wrong_kinds_of_dataset_are_refused(images):
    with pytest.raises(ValueError, match="must be a datasets.Dataset, got IterableDataset"):
        seeded(images.to_iterable_dataset())
    with pytest.raises(ValueError, match="IterableDataset, got Dataset"):
        SeededImageStream(images, eval_transform(8))
    with pytest.raises(ValueError, match="no rows"):
        seeded(images.select([]))
    with pytest.raises(ValueError, match="max_bad_fraction"):
        seeded(images, max_bad_fraction=1.5)


def stream(images: Dataset, num_shards: int = 4, **kwargs) -> SeededImageStream:
    transform = train_transform(16, mean=(0.5,), std=(0.5,))
    return SeededImageStream(images.to_iterable_dataset(num_shards), transform, "picture", "class", **kwargs)


def test_stream_gives_every_image_once_and_repeats(images):
    samples = list(stream(images))
    assert [sample["draw"] for sample in samples] == list(range(24))
    assert [sample["label"] for sample in samples] == [i % 3 for i in range(24)]
    for ours, again in zip(samples, stream(images), strict=True):
        assert torch.equal(ours["pixel_values"], again["pixel_values"])


def test_stream_goes_on_with_new_draws_in_the_next_epoch(images):
    source = stream(images)
    first = list(source)
    second = list(source)
    assert [sample["draw"] for sample in second] == list(range(24, 48))
    assert not torch.equal(first[0]["pixel_values"], second[0]["pixel_values"])


def test_stream_shards_over_workers(images):
    loader = DataLoader(stream(images), 4, num_workers=2, collate_fn=as_list)
    samples = [sample for batch in loader for sample in batch]
    assert sorted(sample["draw"] for sample in samples) == list(range(24))
    assert sorted(sample["label"] for sample in samples) == sorted(i % 3 for i in range(24))


def test_stream_resumes_where_it_stood(images):
    whole = list(stream(images))
    source = stream(images)
    iterator = iter(source)
    for _ in range(10):
        next(iterator)
    resumed = stream(images)
    resumed.load_state_dict(source.state_dict())
    rest = list(resumed)
    assert [sample["draw"] for sample in rest] == list(range(10, 24))
    for ours, expected in zip(rest, whole[10:], strict=True):
        assert torch.equal(ours["pixel_values"], expected["pixel_values"])
