"""The world of two rooms: no step passes the wall, frames show where the dot is."""

import importlib

import numpy as np
import pytest


@pytest.fixture(scope="module")
def world():
    return importlib.import_module("trainers.worlds.two_rooms")


def test_no_step_passes_the_wall_except_through_the_door(world):
    generator = np.random.default_rng(0)
    now = world.free_positions(generator, 4000)
    for _ in range(60):
        after = world.move(now, generator.uniform(-0.5, 0.5, (4000, 2)))
        crossed = world.in_different_rooms(now, after)
        share = (world.WALL - now[crossed, 0]) / (after[crossed, 0] - now[crossed, 0])
        height = now[crossed, 1] + share * (after[crossed, 1] - now[crossed, 1])
        assert world.in_door(height).all()
        # A dot that leaves the door sideways is pushed out of the wall's margin.
        pushed = np.abs(np.abs(after[:, 0] - world.WALL) - world.MARGIN) < 1e-9
        assert np.abs(after - now)[~pushed].max() <= world.MAX_STEP + 1e-9
        assert np.abs(after - now).max() <= world.MAX_STEP + world.MARGIN
        assert after.min() >= world.MARGIN - 1e-9
        assert after.max() <= 1 - world.MARGIN + 1e-9
        blocked = ~world.in_door(after[:, 1])
        assert (np.abs(after[blocked, 0] - world.WALL) >= world.MARGIN - 1e-9).all()
        now = after
    assert crossed.sum() > 3


def test_a_dot_at_the_wall_slides_along_it(world):
    start = np.array([[world.WALL - world.MARGIN, 0.3]])
    np.testing.assert_allclose(world.move(start, np.array([[0.07, 0.05]])), [[world.WALL - world.MARGIN, 0.35]])
    door = np.array([[world.WALL - world.MARGIN, 0.8]])
    np.testing.assert_allclose(world.move(door, np.array([[0.07, 0.0]])), [[world.WALL - world.MARGIN + 0.07, 0.8]])


def test_walks_follow_their_actions_and_their_seed(world):
    states, actions = world.random_walks(3, 50, 12)
    assert states.shape == (50, 13, 2)
    for step in range(12):
        moved = world.move(states[:, step].astype(np.float64), actions[:, step].astype(np.float64))
        np.testing.assert_allclose(moved, states[:, step + 1], atol=1e-6)
    again, _ = world.random_walks(3, 50, 12)
    assert np.array_equal(states, again)
    assert not np.array_equal(states, world.random_walks(4, 50, 12)[0])


@pytest.mark.parametrize("size", [32, 64])
def test_frames_show_the_dot_where_it_is(world, size):
    positions = np.random.default_rng(0).uniform(0.03, 0.97, (6, 5, 2))
    frames = world.render(positions, size)
    assert frames.shape == (6, 5, size, size, 3)
    assert frames.dtype == np.uint8
    empty = world.render(np.array([-5.0, -5.0]), size).astype(float)
    weight = np.abs(frames - empty).sum(-1)
    center = np.arange(size) + 0.5
    x = (weight.sum(-2) * center).sum(-1) / weight.sum((-1, -2)) / size
    y = (weight.sum(-1) * center).sum(-1) / weight.sum((-1, -2)) / size
    # A dot on the wall differs less from what is behind it, one at the edge is cut.
    inside = (np.abs(positions - 0.5) < 0.44).all(-1) & (np.abs(positions[..., 0] - world.WALL) > 0.06)
    assert np.abs(np.stack([x, y], -1) - positions)[inside].max() < 0.2 / size


def test_walking_goes_through_the_door(world):
    left, right = np.array([[0.2, 0.2]]), np.array([[0.8, 0.2], [0.3, 0.4]])
    distance = world.walking_distance(left, right)
    assert distance.shape == (1, 2)
    assert distance[0, 1] == pytest.approx(np.hypot(0.1, 0.2))
    assert distance[0, 0] == pytest.approx(2 * np.hypot(0.3, world.DOOR[0] + world.MARGIN / 2 - 0.2), abs=1e-3)


def test_the_vector_environment(world):
    rooms = world.TwoRooms(2)
    options = {"states": np.array([[0.2, 0.2], [0.3, 0.8]]), "goals": np.array([[0.2, 0.34], [0.9, 0.9]])}
    frames, infos = rooms.reset(options=options)
    assert np.array_equal(frames, world.render(options["states"]))
    assert np.array_equal(infos["goal_frame"], world.render(options["goals"]))
    np.testing.assert_allclose(infos["distance"], [0.14, np.hypot(0.6, 0.1)])
    for _ in range(2):
        frames, reward, reached, cut, infos = rooms.step(np.array([[0.0, 0.07], [0.0, 0.0]]))
    assert reached.tolist() == [True, False]
    assert not cut.any()
    np.testing.assert_allclose(reward, -infos["distance"])
    first, _ = rooms.reset(seed=5)
    second, _ = rooms.reset(seed=5)
    assert np.array_equal(first, second)
    with pytest.raises(ValueError, match="finite steps"):
        rooms.step(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="finite positions"):
        rooms.reset(options={"states": np.zeros((3, 2))})
