"""The cluttered world: pictures are a function of seed and row, the garment lies in front, anywhere, in any size."""

import importlib

import numpy as np
import pytest

world = importlib.import_module("trainers.worlds.cluttered_fashion")


@pytest.fixture
def photos() -> np.ndarray:
    """The first is a full square, the others are black but for their middle."""
    photos = np.zeros((5, 28, 28), dtype=np.uint8)
    photos[0] = 255
    photos[1:, 10:18, 10:18] = 120
    return photos


def test_a_picture_follows_from_seed_and_row(photos):
    first = world.render(photos, 0, 3)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, world.render(photos, 0, 3))
    assert not np.array_equal(first, world.render(photos, 0, 4))
    assert not np.array_equal(world.render(photos, 1, 3), world.render(photos, 2, 3))


def test_the_garment_covers_what_is_behind_in_one_colour_place_and_size(photos, monkeypatch):
    # All white pixels of a picture whose garment is a square as bright as can be, untinted and without noise.
    monkeypatch.setattr(world, "tint", lambda rng: np.ones(3))
    sides, corners = set(), set()
    for seed in range(60):
        picture = world.render(photos[:1].repeat(2, axis=0), 0, seed).astype(int).sum(axis=2)
        bright = picture > picture.max() - 120
        rows, columns = np.flatnonzero(bright.mean(axis=1) > 0.35), np.flatnonzero(bright.mean(axis=0) > 0.35)
        sides.add(len(rows))
        corners.add((rows[0], columns[0]))
        assert len(rows) >= world.SMALLEST - 2
    assert len(sides) > 10
    assert len(corners) > 30


def test_colours_are_bright_and_differ():
    colours = np.stack([world.tint(np.random.default_rng(seed)) for seed in range(50)])
    assert (colours.max(axis=1) == 1).all()
    assert colours.min() >= 0.35
    assert colours.std(axis=0).min() > 0.1


def test_splits_are_written_as_a_dataset(photos, monkeypatch, tmp_path):
    from hf_jepa.data import load_image_dataset

    monkeypatch.setattr(world, "load_garments", lambda data, split: (photos, np.arange(5)))
    world.write(tmp_path, sizes={"train": 3, "test": 9})
    rows = load_image_dataset(tmp_path, "train", label_column="label")
    assert rows["label"] == [0, 1, 2]
    assert np.array_equal(np.asarray(rows[1]["image"]), world.render(photos, 1, 0))
    assert len(load_image_dataset(tmp_path, "test", label_column="label")) == 5
