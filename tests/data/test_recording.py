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
    with pytest.raises(ValueError, match="renders no uint8 image"):
        record_episodes(silent, tmp_path / "new", 1)


def test_environments_need_gymnasium(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"pip install hf-jepa\[planning\]"):
        make_environment("Pendulum-v1")


def test_environments_with_discrete_actions_are_refused(monkeypatch):
    class Discrete:
        pass

    closed = []
    fake = types.ModuleType("gymnasium")
    fake.error = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    fake.spaces = types.SimpleNamespace(Box=Space)
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
