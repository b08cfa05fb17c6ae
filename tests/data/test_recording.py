import json
import sys
import types

import numpy as np
import pytest

from hf_jepa.data import LeRobotTrajectories, TrajectoryWindows, action_statistics, make_environment, record_episodes


class Space:
    low, high, shape = np.array([-1.0, -2.0]), np.array([1.0, 2.0]), (2,)

    def seed(self, seed):
        self.draws = np.random.default_rng(seed)

    def sample(self):
        return self.draws.uniform(self.low, self.high).astype(np.float32)


class Drift:
    """Gymnasium's API: a dot that drifts with the actions, and leaves after `life` steps."""

    def __init__(self, life=100):
        self.action_space, self.life = Space(), life

    def reset(self, seed=None):
        self.place, self.steps, self.seed = np.zeros(2, np.float32), 0, seed
        return self.place, {"place": self.place}

    def step(self, action):
        self.place, self.steps = self.place + action, self.steps + 1
        return self.place, 0.0, self.steps >= self.life, False, {"place": self.place}

    def render(self):
        return np.full((8, 10, 3), self.steps * 10, dtype=np.uint8)


def test_a_recording_is_read_back(tmp_path):
    folder = record_episodes(Drift(life=5), tmp_path / "new", 3, max_steps=7, seed=2)
    source = LeRobotTrajectories(folder)
    assert source.lengths.tolist() == [6, 6, 6]
    for episode in range(3):
        actions, states = source.actions(episode), source.states(episode)
        assert np.isnan(actions[-1]).all()
        np.testing.assert_allclose(np.diff(states, axis=0), actions[:-1], atol=1e-5)
        frames = source.frames(episode, np.array([0, 3, 5]))
        assert frames.shape == (3, 8, 10, 3)
        assert frames[:, 0, 0, 0].tolist() == [0, 30, 50]
    statistics = action_statistics(source)
    windows = TrajectoryWindows(source, 3, 2, mean=statistics.mean, std=statistics.std)
    assert len(windows) == 3
    assert windows[0]["action_mask"].tolist() == [True, True, False]
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["action_bounds"] == {"low": [-1.0, -2.0], "high": [1.0, 2.0]}
    assert info["total_frames"] == 18
    assert not np.array_equal(source.actions(0)[:5], source.actions(1)[:5])


def test_episodes_stop_after_max_steps_and_follow_the_policy(tmp_path):
    folder = record_episodes(
        Drift(), tmp_path, 1, max_steps=4, policy=lambda place: np.array([0.5, -0.5]), state_key="place"
    )
    source = LeRobotTrajectories(folder)
    assert source.lengths.tolist() == [5]
    assert (source.actions(0)[:4] == [0.5, -0.5]).all()


def test_recording_refuses_what_would_be_lost(tmp_path):
    (tmp_path / "old.txt").write_text("keep")
    with pytest.raises(ValueError, match="not empty"):
        record_episodes(Drift(), tmp_path, 1)
    with pytest.raises(ValueError, match="at least 1"):
        record_episodes(Drift(), tmp_path / "new", 0)
    silent = Drift()
    silent.render = lambda: None
    for frame, message in (
        (None, "renders NoneType, not a uint8 image"),
        (np.zeros((8, 10, 1), np.uint8), r"renders uint8 of shape \(8, 10, 1\)"),
        (np.zeros((8, 10), np.uint8), r"shape \(8, 10\)"),
        (np.zeros((8, 10, 3)), "renders float64"),
    ):
        silent.render = lambda frame=frame: frame
        with pytest.raises(ValueError, match=message):
            record_episodes(silent, tmp_path / "new", 1)


@pytest.mark.parametrize(
    ("observation", "key", "message"),
    [
        ({"joints": np.zeros(2)}, None, "name one of joints, place as the state_key"),
        ({"joints": np.zeros(2)}, "velocity", "no 'velocity' to record as the state, but joints, place"),
        (np.zeros((8, 8, 3)), None, r"got shape \(8, 8, 3\): name a state_key"),
        (3, None, r"got shape \(\)"),
        (np.array([0.0, np.nan]), None, "finite"),
    ],
)
def test_states_that_are_no_vectors_are_named(tmp_path, observation, key, message):
    world = Drift()
    world.reset()
    world.reset = lambda seed=None: (observation, {"place": np.zeros(2)})
    with pytest.raises(ValueError, match=message):
        record_episodes(world, tmp_path / "new", 1, state_key=key)
    assert not (tmp_path / "new").exists()


def test_states_come_from_infos_or_from_an_observation_of_parts(tmp_path):
    world = Drift(life=3)
    step, reset = world.step, world.reset
    world.reset = lambda seed=None: ({"joints": np.full(3, 7.0)}, reset(seed)[1])
    world.step = lambda action: ({"joints": np.full(3, 8.0)}, *step(action)[1:])
    parts = LeRobotTrajectories(record_episodes(world, tmp_path / "parts", 1, state_key="joints"))
    assert parts.states(0).tolist() == [[7.0] * 3, *[[8.0] * 3] * 3]
    infos = LeRobotTrajectories(record_episodes(world, tmp_path / "infos", 1, state_key="place"))
    assert infos.states(0).shape == (4, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"low": np.full(2, -np.inf)},
        {"high": np.array([1.0, np.inf])},
        {"low": None, "high": None},
        {"shape": ()},
        {"dtype": np.int64},
    ],
)
def test_actions_that_are_not_bounded_vectors_are_refused_before_anything_is_recorded(tmp_path, changes):
    world = Drift()
    vars(world.action_space).update(changes)
    with pytest.raises(ValueError, match="bounded, continuous actions. A wrapper can"):
        record_episodes(world, tmp_path / "new", 1)
    assert not (tmp_path / "new").exists()


def test_environments_need_gymnasium(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-jepa\[planning\]'"):
        make_environment("Pendulum-v1")


def test_environments_with_discrete_actions_are_refused(monkeypatch):
    class Discrete:
        pass

    closed = []
    fake = types.ModuleType("gymnasium")
    fake.error = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    made = types.SimpleNamespace(action_space=Discrete(), close=lambda: closed.append(True))
    fake.make = lambda name, render_mode: made
    monkeypatch.setitem(sys.modules, "gymnasium", fake)
    with pytest.raises(ValueError, match="bounded, continuous actions"):
        make_environment("CartPole-v1")
    assert closed
    made.action_space = Space()
    assert make_environment("Pendulum-v1") is made

    def missing(name, render_mode):
        raise fake.error.Error("no such environment")

    fake.make = missing
    with pytest.raises(ValueError, match="gymnasium cannot make 'Nowhere-v0': no such environment"):
        make_environment("Nowhere-v0")
