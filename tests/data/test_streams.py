"""Streams lose nothing: shuffled or not, over workers and processes, stopped and gone on with twice."""

from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from datasets.distributed import split_dataset_by_node
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_jepa.data import SeededImageStream

COUNT = 24


class WithNoise:
    """An image's number, and one draw of its seed."""

    draws_from_torch_only = True

    def __call__(self, image):
        return torch.tensor([float(np.asarray(image)[0, 0, 0]), torch.rand(1).item()])


@pytest.fixture(scope="module")
def images() -> Dataset:
    pictures = [PILImage.fromarray(np.full((8, 8, 3), number, np.uint8)) for number in range(COUNT)]
    return Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))


def stream(images: Dataset, shuffled: bool, share: tuple[int, int] | None = None) -> SeededImageStream:
    rows = images.to_iterable_dataset(num_shards=4)
    rows = rows.shuffle(seed=3, buffer_size=5) if shuffled else rows
    return SeededImageStream(rows if share is None else split_dataset_by_node(rows, *share), WithNoise())


def told(samples) -> list[tuple[int, float, int]]:
    return [(int(s["pixel_values"][0]), s["pixel_values"][1].item(), s["draw"]) for s in samples]


@pytest.mark.parametrize("shuffled", [False, True])
def test_resumed_twice_they_go_on(images, shuffled):
    whole = told(stream(images, shuffled))
    assert sorted(number for number, _, _ in whole) == list(range(COUNT))
    first = stream(images, shuffled)
    seen = told(islice(first, 7))
    second = stream(images, shuffled)
    second.load_state_dict(first.state_dict())
    seen += told(islice(second, 6))
    third = stream(images, shuffled)
    third.load_state_dict(second.state_dict())
    # Stopped again before anything was read.
    fourth = stream(images, shuffled)
    fourth.load_state_dict(third.state_dict())
    assert seen + told(fourth) == whole


@pytest.mark.parametrize("shuffled", [False, True])
def test_after_a_resumed_epoch_comes_a_whole_one(images, shuffled):
    def two_epochs(source, epochs):
        samples = []
        for epoch in epochs:
            source.set_epoch(epoch)
            samples += told(source)
        return samples

    expected = two_epochs(stream(images, shuffled), (0, 1, 2))
    stopped = stream(images, shuffled)
    two_epochs(stopped, (0,))
    stopped.set_epoch(1)
    seen = told(islice(stopped, 5))
    resumed = stream(images, shuffled)
    resumed.load_state_dict(stopped.state_dict())
    seen += told(resumed)
    seen += two_epochs(resumed, (2,))
    assert seen == expected[COUNT:]


def test_processes_share_no_augmentation_and_lose_no_image(images):
    shares = [told(stream(images, False, (rank, 2))) for rank in range(2)]
    both = shares[0] + shares[1]
    assert sorted(number for number, _, _ in both) == list(range(COUNT))
    assert sorted(draw for _, _, draw in both) == list(range(COUNT))
    assert len({noise for _, noise, _ in both}) == COUNT


@pytest.mark.parametrize("shuffled", [False, True])
def test_processes_of_two_workers_each(images, shuffled):
    samples = []
    for rank in range(2):
        loader = DataLoader(stream(images, shuffled, (rank, 2)), batch_size=3, num_workers=2, collate_fn=list)
        samples += [sample for batch in loader for sample in batch]
    assert sorted(number for number, _, _ in told(samples)) == list(range(COUNT))
    assert sorted(draw for _, _, draw in told(samples)) == list(range(COUNT))
