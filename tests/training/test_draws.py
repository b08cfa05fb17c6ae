import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import TrainerCallback

from hf_jepa import JepaTrainer
from hf_jepa.data import SeededImageStream, decode_image, eval_transform, train_transform
from hf_jepa.training.draws import DrawCountedStream, DrawSeededDataset


class Numbers(IterableDataset):
    """24 samples with some randomness each."""

    def __iter__(self) -> Any:
        for number in range(24):
            yield {"pixel_values": torch.tensor([float(number), torch.rand(()).item()])}


def read(
    stream: IterableDataset, batches: int, num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> tuple[list[int], list[list[float]]]:
    counted = DrawCountedStream(stream, 2, seed=3, rank=rank, world_size=world_size, num_workers=num_workers)
    loader = iter(DataLoader(counted, batch_size=2, num_workers=num_workers, collate_fn=list))
    samples = [sample for _ in range(batches) for sample in next(loader)]
    return [sample["draw"] for sample in samples], [
        sample["pixel_values"].flatten()[:2].tolist() for sample in samples
    ]


def test_a_stream_is_the_same_for_any_number_of_workers_and_ranks() -> None:
    draws, values = read(Numbers(), 20)
    assert draws == list(range(40))
    # Endless: a second pass has new augmentations of the same samples.
    assert [value[0] for value in values] == [float(number % 24) for number in range(40)]
    assert values[0][1] != values[24][1]
    assert read(Numbers(), 20, num_workers=2) == (draws, values)
    ranks = [read(Numbers(), 10, rank=rank, world_size=2, num_workers=2 * rank) for rank in range(2)]
    merged = sorted(zip([*ranks[0][0], *ranks[1][0]], [*ranks[0][1], *ranks[1][1]], strict=True))
    assert merged == list(zip(draws, values, strict=True))


def numbered(num_shards: int, shuffle: bool) -> Any:
    """A plain stream of `datasets` with 24 rows that are augmented as they are read."""
    rows = Dataset.from_dict({"number": [float(number) for number in range(24)]}).to_iterable_dataset(num_shards)
    rows = rows.shuffle(seed=1, buffer_size=6) if shuffle else rows
    rows = rows.map(lambda row: {"pixel_values": [row["number"], torch.rand(()).item()]}, remove_columns="number")
    return rows.with_format("torch")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_shards", [1, 4])
def test_a_plain_stream_is_the_same_for_any_number_of_workers_and_ranks(num_shards: int, shuffle: bool) -> None:
    draws, values = read(numbered(num_shards, shuffle), 24)
    assert draws == list(range(48))
    first, second = ([value[0] for value in values[start : start + 24]] for start in (0, 24))
    # No row is lost, and every pass shuffles anew.
    assert sorted(first) == sorted(second) == [float(number) for number in range(24)]
    assert (first != second) == shuffle
    assert (first != sorted(first)) == shuffle
    # Nor is an augmentation used twice.
    assert len({value[1] for value in values}) == 48
    assert read(numbered(num_shards, shuffle), 24, num_workers=2) == (draws, values)
    ranks = [
        read(numbered(num_shards, shuffle), 12, rank=rank, world_size=2, num_workers=2 * rank) for rank in range(2)
    ]
    merged = sorted(zip([*ranks[0][0], *ranks[1][0]], [*ranks[0][1], *ranks[1][1]], strict=True))
    assert merged == list(zip(draws, values, strict=True))


def test_a_stream_that_was_split_before_is_refused() -> None:
    stream = split_dataset_by_node(numbered(4, False), rank=0, world_size=2)
    with pytest.raises(ValueError, match="give it the whole stream"):
        read(stream, 1)


def test_ranks_of_an_image_stream_augment_differently() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8))
    stream = Dataset.from_dict({"image": [image] * 8}).to_iterable_dataset(num_shards=4)
    stream = SeededImageStream(stream, train_transform(48))
    views = [read(stream, 2, rank=rank, world_size=2, num_workers=workers)[1] for rank in (0, 1) for workers in (0, 2)]
    assert all(len({str(view) for view in views[0] + other}) == 8 for other in views[2:])


def test_image_streams_are_split_by_shards(pictures: Dataset) -> None:
    stream = SeededImageStream(pictures.to_iterable_dataset(num_shards=4), train_transform(48), label_column="label")
    seen = [read(stream, 6, rank=rank, world_size=2, num_workers=workers) for rank, workers in ((0, 0), (1, 2))]
    assert sorted(seen[0][0] + seen[1][0]) == list(range(24))
    with pytest.raises(ValueError, match="4 shards"):
        DrawCountedStream(stream, 2, seed=0, rank=0, world_size=2, num_workers=3)


def test_processes_share_shards_that_they_cannot_divide(pictures: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    stream = SeededImageStream(pictures.to_iterable_dataset(num_shards=3), eval_transform(48))
    (draws, pixels), (others, other_pixels) = (read(stream, 6, rank=rank, world_size=2) for rank in range(2))
    assert sorted(draws + others) == list(range(24))
    assert len({str(values) for values in pixels + other_pixels}) == 24
    with pytest.raises(ValueError, match="no multiple of 2"):
        DrawCountedStream(stream, 2, seed=0, rank=0, world_size=2, num_workers=2)
    assert not caplog.records
    # Workers go on with their shares for themselves.
    DrawCountedStream(stream, 2, seed=0, rank=0, world_size=1, num_workers=2)
    assert "up to 2 times as often" in caplog.text


def test_workers_shuffle_by_their_own_epoch(pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # Worker 0 prefetches into later epochs while worker 1 is between setting its epoch and reading it.
    set_epoch = SeededImageStream.set_epoch

    def slow_set_epoch(self: SeededImageStream, epoch: int) -> None:
        set_epoch(self, epoch)
        if (worker := get_worker_info()) is not None and worker.id == 1:
            time.sleep(0.2)

    def epochs_of_worker_1() -> list[list[float]]:
        shuffled = pictures.to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=8)
        stream = SeededImageStream(shuffled, train_transform(48))
        counted = DrawCountedStream(stream, 12, seed=0, rank=0, world_size=1, num_workers=2)
        loader = iter(DataLoader(counted, batch_size=12, num_workers=2, collate_fn=list))
        batches = [next(loader) for _ in range(4)]
        return [[sample["pixel_values"].sum().item() for sample in batch] for batch in batches[1::2]]

    expected = epochs_of_worker_1()
    monkeypatch.setattr(SeededImageStream, "set_epoch", slow_set_epoch)
    assert epochs_of_worker_1() == expected


def test_an_empty_stream_is_an_error() -> None:
    class Nothing(IterableDataset):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match="yields nothing"):
        read(Nothing(), 1)


def test_an_ordinary_dataset_is_seeded_by_its_draws() -> None:
    class Noisy:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"pixel_values": torch.rand(3) + index}

    dataset = DrawSeededDataset(Noisy(), seed=1)
    before = torch.get_rng_state()
    first = dataset[2, 17]
    assert torch.equal(torch.get_rng_state(), before)
    assert first["draw"] == 17
    assert torch.equal(first["pixel_values"], dataset[2, 17]["pixel_values"])
    assert not torch.equal(first["pixel_values"], dataset[2, 18]["pixel_values"])


def crop(row: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values": train_transform(48)(row["image"])}


def plain_stream(pictures: Dataset) -> Any:
    stream = pictures.select_columns("image").to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=8)
    return stream.map(crop, remove_columns="image").with_format("torch")


def image_stream(pictures: Dataset) -> SeededImageStream:
    stream = pictures.to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=8)
    return SeededImageStream(stream, train_transform(48))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("make_stream", [plain_stream, image_stream])
def test_a_stream_that_is_resumed_twice_equals_an_uninterrupted_one(
    make_trainer: Callable[..., JepaTrainer],
    tiny_model: Any,
    pictures: Dataset,
    tmp_path: Any,
    make_stream: Callable[[Dataset], Any],
    num_workers: int,
) -> None:
    settings = {
        "max_steps": 5,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "dataloader_num_workers": num_workers,
    }

    def run(folder: str, seed: int, **more: Any) -> JepaTrainer:
        given = {"train_dataset": make_stream(pictures), **more.pop("trainer", {})}
        return make_trainer(tiny_model(seed), given, output_dir=str(tmp_path / folder), **settings, **more)

    whole = run("whole", 0)
    whole.train()
    # The second pass over the rows begins at the fourth update.
    for start, stop in ((2, 4), (4, 5)):
        part = run("parts", start, trainer={"callbacks": [StopAt(stop)]})
        folder = tmp_path / ("whole" if start == 2 else "parts") / f"checkpoint-{start}"
        part.train(resume_from_checkpoint=str(folder))
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in part.model.state_dict().items())

    if make_stream is image_stream:
        # Shards are dealt out to workers, which count for themselves.
        settings["dataloader_num_workers"] = 2 - num_workers // 2
        with pytest.raises(ValueError, match=f"stream_parts: {max(num_workers, 1)} in the checkpoint"):
            run("parts", 0).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_image_stream_does_not_decode_the_past(
    make_trainer: Callable[..., JepaTrainer],
    pictures: Dataset,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
) -> None:
    decoded = torch.zeros((), dtype=torch.int64).share_memory_()

    def count(value: Any) -> Any:
        decoded.add_(1)
        return decode_image(value)

    def run(**settings: Any) -> JepaTrainer:
        return make_trainer(
            trainer={"train_dataset": image_stream(pictures)},
            max_steps=30,
            dataloader_num_workers=num_workers,
            dataloader_prefetch_factor=1 if num_workers else None,
            **settings,
        )

    run(save_strategy="steps", save_steps=28).train()
    monkeypatch.setattr("hf_jepa.data.dataset.decode_image", count)
    run().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-28"))
    # Of 120 samples 8 are left; loaders read ahead, and each worker decodes one sample that stands in for the past.
    assert 8 <= decoded.item() <= 8 + (num_workers + 1) * 2 * 4 + max(num_workers, 1)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_a_stream_is_refused_where_samples_are_drawn_by_index(make_vl_trainer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="draws samples by their index"):
        make_vl_trainer(trainer={"train_dataset": numbered(1, False)}).train()
