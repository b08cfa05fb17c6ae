"""Seeded clips: which frames, from which row, whatever the workers; and mixtures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value, Video
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_jepa.data import (
    ClipSampler,
    CountedSampler,
    MixedVideoDataset,
    SeededVideoDataset,
    clip_indices,
    mix_seed,
    video_eval_transform,
    video_train_transform,
)

NUM_FRAMES = 60


def identity(frames: torch.Tensor) -> torch.Tensor:
    return frames.float()


@pytest.fixture
def videos(tmp_path, write_video) -> Dataset:
    paths = [str(write_video(tmp_path / f"{i}.mp4", num_frames=NUM_FRAMES, fps=8)) for i in range(6)]
    return Dataset.from_dict({"video": paths, "label": [0, 1, 2, 0, 1, 2], "note": ["x"] * 6})


def seeded(videos: Dataset, sampler: ClipSampler | None = None, transform=identity, **kwargs) -> SeededVideoDataset:
    return SeededVideoDataset(videos, sampler or ClipSampler(4, frame_step=3), transform, **kwargs)


def test_samples_hold_the_frames_that_the_seed_draws(videos, frame_numbers):
    dataset = seeded(videos, label_column="label", seed=5)
    assert len(dataset) == 6
    sample = dataset[(4, 77)]
    assert sample.keys() == {"pixel_values_videos", "draw", "label"}
    assert (sample["draw"], sample["label"]) == (77, 1)
    generator = np.random.Generator(np.random.PCG64(mix_seed(5, 77, 1)))
    expected = clip_indices(NUM_FRAMES, 4, 3, generator=generator)[0].tolist()
    assert frame_numbers(sample["pixel_values_videos"]) == expected
    assert dataset[4]["draw"] == 4
    assert "label" not in seeded(videos)[0]


def test_rates_are_those_of_the_clip(videos, frame_numbers):
    sampler = ClipSampler(4, fps=4, random_start=False)
    assert frame_numbers(seeded(videos, sampler)[0]["pixel_values_videos"]) == [0, 2, 5, 7]


def test_variable_rates_keep_equal_times_equal(tmp_path, write_video, frame_numbers):
    # 40 frames in the first two seconds, then one a second: two a second on average
    seconds = [*(i / 20 for i in range(40)), *range(2, 40)]
    path = write_video(tmp_path / "clip.mkv", num_frames=78, seconds=seconds, fps=2)
    dataset = Dataset.from_dict({"video": [str(path)]})

    def times(sampler: ClipSampler) -> np.ndarray:
        shown = frame_numbers(seeded(dataset, sampler)[0]["pixel_values_videos"])
        return np.array(seconds)[shown]

    by_clock = times(ClipSampler(8, fps=1, random_start=False))
    # Eight frames of a second each, as far as frames of a second can show it
    assert 6.5 < by_clock[-1] - by_clock[0] < 8.5
    assert (np.diff(by_clock) > 0.7).all()
    by_number = times(ClipSampler(8, frame_step=2, random_start=False))
    assert by_number[-1] - by_number[0] < 1


def test_clip_and_augmentation_depend_on_seed_and_draw_alone(videos):
    dataset = seeded(videos, transform=video_train_transform(16))
    torch.manual_seed(1)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = dataset[(2, 9)]["pixel_values_videos"]
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()
    torch.manual_seed(2)
    assert torch.equal(first, dataset[(2, 9)]["pixel_values_videos"])
    assert not torch.equal(first, dataset[(2, 10)]["pixel_values_videos"])
    assert not torch.equal(
        first, seeded(videos, transform=video_train_transform(16), seed=1)[(2, 9)]["pixel_values_videos"]
    )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(videos, num_workers):
    dataset = seeded(videos, ClipSampler(4, fps=4), video_train_transform(16), label_column="label")

    def epoch(workers: int) -> list[dict]:
        sampler = CountedSampler(6, seed=5, batch_size=3)
        loader = DataLoader(dataset, 3, sampler=sampler, num_workers=workers, collate_fn=list)
        return [sample for batch in loader for sample in batch]

    for ours, expected in zip(epoch(num_workers), epoch(0), strict=True):
        assert (ours["draw"], ours["label"]) == (expected["draw"], expected["label"])
        assert torch.equal(ours["pixel_values_videos"], expected["pixel_values_videos"])


def test_segments_and_views_stack_in_front(videos, frame_numbers):
    sampler = ClipSampler(4, frame_step=3, num_clips=2, allow_overlap=True, random_start=False)
    clips = seeded(videos, sampler)[0]["pixel_values_videos"]
    assert clips.shape == (2, 4, 3, 32, 48)
    assert [frame_numbers(clip) for clip in clips] == clip_indices(NUM_FRAMES, 4, 3, 2, True).tolist()
    views = seeded(videos, sampler, video_eval_transform(16, num_views=3))[0]["pixel_values_videos"]
    assert views.shape == (2, 3, 4, 3, 16, 16)
    one = seeded(videos, ClipSampler(4, frame_step=3), video_eval_transform(16, num_views=3))[0]["pixel_values_videos"]
    assert one.shape == (1, 3, 4, 3, 16, 16)


def test_every_kind_of_column(videos, tmp_path, frame_numbers):
    paths = videos["video"]
    data = [Path(path).read_bytes() for path in paths]
    columns = [
        Dataset.from_dict({"video": paths}, features=Features({"video": Video()})),
        Dataset.from_dict({"video": [{"bytes": cell, "path": None} for cell in data]}, Features({"video": Video()})),
        Dataset.from_dict({"video": data}, features=Features({"video": Value("binary")})),
    ]
    expected = frame_numbers(seeded(videos)[3]["pixel_values_videos"])
    for column in columns:
        assert frame_numbers(seeded(column)[3]["pixel_values_videos"]) == expected


def test_images_are_still_clips_or_single_frames():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    images = Dataset.from_dict(
        {"image": [PILImage.fromarray(image) for image in pixels]}, Features({"image": Image()})
    )
    still = seeded(images, ClipSampler(4, fps=4), video_column="image")[1]["pixel_values_videos"]
    assert torch.equal(still, torch.from_numpy(pixels[1]).permute(2, 0, 1).float().expand(4, -1, -1, -1))
    single = seeded(images, ClipSampler(1, fps=4), video_train_transform(16), video_column="image")
    assert single[0]["pixel_values_videos"].shape == (1, 3, 16, 16)


def test_missing_columns_and_wrong_datasets_are_refused(videos):
    with pytest.raises(ValueError, match=r"video_column='clip'.*\['label', 'note', 'video'\]"):
        seeded(videos, video_column="clip")
    with pytest.raises(ValueError, match="label_column='note' holds string"):
        seeded(videos, label_column="note")
    with pytest.raises(ValueError, match="must be a datasets.Dataset, got IterableDataset"):
        seeded(videos.to_iterable_dataset())


class Numbers(torch.utils.data.Dataset):
    """Says where a sample came from."""

    def __init__(self, name: int, length: int) -> None:
        self.name, self.length = name, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int, int]:
        return self.name, *key


def test_without_weights_rows_come_one_after_the_other():
    mixture = MixedVideoDataset([Numbers(0, 3), Numbers(1, 2)])
    assert len(mixture) == 5
    assert [mixture[(index, 10 + index)] for index in range(5)] == [
        (0, 0, 10), (0, 1, 11), (0, 2, 12), (1, 0, 13), (1, 1, 14),
    ]  # fmt: skip
    assert mixture[4] == (1, 1, 4)


def test_weights_are_the_shares_of_the_draws():
    mixture = MixedVideoDataset([Numbers(0, 10), Numbers(1, 1000), Numbers(2, 5)], [0.335, 0.1, 0.0])
    drawn = [mixture[(0, draw)] for draw in range(8000)]
    share = sum(name == 0 for name, _, _ in drawn) / 8000
    assert abs(share - 0.335 / 0.435) < 0.015
    assert not any(name == 2 for name, _, _ in drawn)
    counts = np.bincount([row for name, row, _ in drawn if name == 0], minlength=10)
    assert len(counts) == 10
    assert counts.min() > 0.8 * counts.mean()
    assert [mixture[(7, draw)] for draw in range(100)] == drawn[:100]
    assert MixedVideoDataset(mixture.datasets, [0.335, 0.1, 0.0], seed=1)[(0, 5)] != drawn[5]


def test_blocks_of_draws_share_a_dataset():
    mixture = MixedVideoDataset([Numbers(0, 50), Numbers(1, 50)], [1, 1], block_size=4)
    names = np.array([mixture[(0, draw)][0] for draw in range(800)]).reshape(-1, 4)
    assert (names == names[:, :1]).all()
    assert 70 < names[:, 0].sum() < 130
    rows = {mixture[(0, draw)][1] for draw in range(4)}
    assert len(rows) > 1


@pytest.mark.parametrize(
    ("datasets", "kwargs", "message"),
    [
        ([], {}, "at least one dataset"),
        ([Numbers(0, 0)], {}, "none that is empty"),
        ([Numbers(0, 3)], {"weights": [0.5, 0.5]}, "must be 1 non-negative"),
        ([Numbers(0, 3), Numbers(1, 3)], {"weights": [1, -1]}, r"\[1, -1\]"),
        ([Numbers(0, 3)], {"weights": [0]}, "not all 0"),
        ([Numbers(0, 3)], {"block_size": 4}, "1 without weights"),
    ],
)
def test_bad_mixtures_are_refused(datasets, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MixedVideoDataset(datasets, **kwargs)
