"""The world of moving garments: what its labels say is what its pixels do."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_jepa.data import VideoMaskCollator
from hf_jepa.masking import SHORT_RANGE, MultiBlock3DMaskGenerator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world():
    return importlib.import_module("trainers.worlds.moving_fashion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve bright squares, whose class is their number, for each split."""
    path = tmp_path_factory.mktemp("garments")
    pictures = [PILImage.fromarray(np.pad(np.full((20, 20), 240, np.uint8), 4)) for _ in range(12)]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=12)})
    rows = Dataset.from_dict({"image": pictures, "label": list(range(12))}, features=features)
    for split in ("train", "test"):
        rows.to_parquet(str(path / f"{split}.parquet"))
    return path


def test_samples_are_those_of_a_video_dataset(world, folder):
    clips = world.MovingFashion("train", 40, num_frames=6, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2), folder=folder)
    assert len(clips) == 40
    sample = clips[(3, 77)]
    assert sample["pixel_values_videos"].shape == (6, 3, 48, 48)
    assert sample["pixel_values_videos"].dtype == torch.float32
    assert sample["draw"] == 77
    assert sample["label"] == sample["garment"]
    frames = clips.render([3])
    assert frames.dtype == np.uint8
    expected = (torch.from_numpy(frames[0]).float() / 255 - 0.4) / 0.2
    torch.testing.assert_close(sample["pixel_values_videos"], expected[:, None].expand(-1, 3, -1, -1))
    collator = VideoMaskCollator([MultiBlock3DMaskGenerator(48, 8, num_frames=6, **SHORT_RANGE)])
    batch = next(iter(DataLoader(clips, 4, collate_fn=collator)))
    assert batch["pixel_values_videos"].shape == (4, 6, 3, 48, 48)


def test_clips_depend_on_seed_and_index_alone(world, folder):
    clips, again = (world.MovingFashion("train", 40, seed=2, folder=folder) for _ in range(2))
    whole = clips.render(np.arange(40))
    assert np.array_equal(again.render([7, 30]), whole[[7, 30]])
    assert torch.equal(again[(7, 5)]["pixel_values_videos"], clips[(7, 6)]["pixel_values_videos"])
    assert len({clip.tobytes() for clip in whole}) == 40
    assert not np.array_equal(world.MovingFashion("train", 40, seed=3, folder=folder).render([7]), whole[[7]])
    with pytest.raises(IndexError, match="40"):
        clips[40]


def test_labels_say_what_the_pixels_do(world, folder):
    clips = world.MovingFashion("train", 60, num_frames=12, image_size=64, folder=folder)
    frames, plan = clips.render(np.arange(60)).astype(float), clips.plan(np.arange(60))
    for clip, direction, speed in zip(frames, plan["direction"][:, 0], plan["speed"][:, 0], strict=True):
        bright = clip > 200
        # The picture is a torus: where the main garment is, is an angle.
        wave = np.exp(2j * np.pi * np.arange(64) / 64)
        place = np.stack([np.angle((bright.sum(axis=axis) * wave).sum(axis=-1)) for axis in (2, 1)], axis=-1)
        moved = np.diff(np.unwrap(place, axis=0), axis=0).sum(axis=0) * 64 / (2 * np.pi) / 11
        assert np.hypot(*moved) == pytest.approx(world.SPEEDS[speed], abs=0.15)
        angle = 2 * np.pi * direction / len(world.DIRECTIONS)
        assert np.dot(moved, [np.sin(angle), np.cos(angle)]) == pytest.approx(np.hypot(*moved), rel=0.02)


def test_the_main_garment_is_brighter_and_in_front(world, folder):
    clips = world.MovingFashion("train", 200, num_frames=2, image_size=64, folder=folder)
    frames, plan = clips.render(np.arange(200))[:, 0], clips.plan(np.arange(200))
    # All that is bright in the photo is there, whatever passes behind it.
    expected = (clips.photos[plan["photo"][:, 0]] > 200).sum(axis=(1, 2))
    assert expected.min() > 0
    assert np.array_equal((frames > 200).sum(axis=(1, 2)), expected)
    # The other one, at half of 240, where it is not hidden
    behind = ((frames > 100) & (frames <= 125)).sum(axis=(1, 2))
    assert (behind > 0).mean() > 0.9


def test_no_frame_tells_the_direction(world, folder):
    statistics = []
    for seed in range(5):
        clips = world.MovingFashion("train", 4000, seed=seed, num_frames=8, folder=folder)
        plan = clips.plan(np.arange(4000))
        for frame, axis in ((0, 0), (0, 1), (7, 0), (7, 1)):
            place = plan["position"][:, 0, frame, axis] % 48 // 6
            table = np.zeros((8, 8))
            np.add.at(table, (place, plan["direction"][:, 0]), 1)
            expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / 4000
            statistics.append(((table - expected) ** 2 / expected).sum())
    # Chi-squared of 49 degrees of freedom, standard deviation 9.9; the tables of a seed are related.
    assert np.mean(statistics) < 49 + 4 * 9.9 / np.sqrt(10)
    for name, count in (("direction", 8), ("speed", 3), ("garment", 12)):
        assert np.bincount(plan[name][:, 0], minlength=count).min() > 0.7 * 4000 / count


def test_a_teleport_is_all_that_differs_from_the_possible_twin(world, folder):
    clips = world.MovingFashion("test", 10, num_frames=8, folder=folder)
    possible, impossible, slot = world.teleported(clips)
    assert possible.shape == impossible.shape == (10, 8, 1, 48, 48)
    assert slot == 2
    assert torch.equal(possible[:, :4], impossible[:, :4])
    assert (possible[:, 4:] != impossible[:, 4:]).flatten(2).any(dim=2).all()
    # The same garment, elsewhere: as many bright pixels as before
    bright = [(clips.render(np.arange(10), at) > 200).sum(axis=(2, 3)) for at in (None, 4)]
    assert np.array_equal(*bright)
    assert world.teleported(clips, frame=3)[2] == 1
    with pytest.raises(ValueError, match=r"\[1, 7\], got 8"):
        world.teleported(clips, frame=8)


def test_missing_data_and_bad_sizes_are_named(world, folder, tmp_path):
    with pytest.raises(ValueError, match="validation"):
        world.MovingFashion("validation", 4, folder=folder)
    with pytest.raises(ValueError, match="num_clips=0"):
        world.MovingFashion("train", 0, folder=folder)
