"""Workers that read 50,000 samples hold no more memory at the end than after the first quarter."""

import io
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from hf_jepa.data import SeededImageDataset, SeededImageStream, train_transform

SAMPLES, WORKERS, BATCH = 50_000, 2, 50


def rows() -> Dataset:
    cells = []
    for seed in range(500):
        buffer = io.BytesIO()
        PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({"image": cells}, features=Features({"image": Image()}))


def measured(_: list[dict[str, Any]]) -> torch.Tensor:
    """This process and its bytes in memory, in place of a batch."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return torch.tensor([os.getpid(), pages * resource.getpagesize()])


class Rounds(TorchDataset):
    def __init__(self, dataset: SeededImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return SAMPLES

    def __getitems__(self, draws: list[int]) -> list[dict[str, Any]]:
        return self.dataset.__getitems__([(draw % len(self.dataset), draw) for draw in draws])


class Endless(IterableDataset):
    def __init__(self, stream: SeededImageStream) -> None:
        self.stream = stream

    def __iter__(self) -> Any:
        while True:
            yield from self.stream


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize("is_stream", [False, True])
def test_workers_stay_flat(is_stream: bool) -> None:
    transform = train_transform(16, mean=[0.5], std=[0.5])
    data = (
        Endless(SeededImageStream(rows().to_iterable_dataset(num_shards=4), transform))
        if is_stream
        else Rounds(SeededImageDataset(rows(), transform))
    )
    loader = iter(DataLoader(data, BATCH, num_workers=WORKERS, collate_fn=measured))
    memory: dict[int, list[int]] = {}
    for _ in range(SAMPLES // BATCH):
        process, size = next(loader).tolist()
        memory.setdefault(process, []).append(size)
    assert len(memory) == WORKERS
    for sizes in memory.values():
        settled = len(sizes) // 4
        assert max(sizes[settled:]) - sizes[settled] < 8 * 2**20, sizes[:: len(sizes) // 10]
