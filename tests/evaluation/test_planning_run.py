import json
import types

import numpy as np
import pytest

from hf_jepa import LatentWorldModel, LatentWorldModelConfig
from hf_jepa.cli import main
from hf_jepa.data import LeRobotTrajectories, action_statistics, record_episodes
from hf_jepa.evaluation import planning_run
from hf_jepa.evaluation.planning_run import GymnasiumGoals, evaluate_planning, load_world_model
from hf_jepa.models.latent_world_model import ConvEncoderConfig
from hf_jepa.planning import CEMPlanner


class Space:
    low, high, shape = np.full(2, -0.2, np.float32), np.full(2, 0.2, np.float32), (2,)

    def seed(self, seed):
        self.draws = np.random.default_rng(seed)

    def sample(self):
        return self.draws.uniform(self.low, self.high).astype(np.float32)


class Dot:
    """A dot in a square that knows goals, by gymnasium's API."""

    success_distance = 0.15

    def __init__(self):
        self.action_space = Space()
        self.unwrapped = self

    def reset(self, seed=None, options=None):
        draws = np.random.default_rng(seed)
        options = options or {"state": draws.uniform(-1, 1, 2), "goal": np.zeros(2)}
        self.place, self.goal = (np.asarray(options[name], np.float32) for name in ("state", "goal"))
        return self.place, self.info()

    def info(self):
        return {"distance": np.linalg.norm(self.place - self.goal)}

    def step(self, action):
        self.place = np.clip(self.place + action, -1, 1).astype(np.float32)
        return self.place, 0.0, False, False, self.info()

    def render(self):
        frame = np.zeros((16, 16, 3), dtype=np.uint8)
        column, row = ((self.place + 1) / 2 * 13).astype(int)
        frame[row : row + 3, column : column + 3] = (255, 200, 40)
        return frame

    def close(self):
        """Nothing to free."""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A recorded data set, a model that was never trained, and environments made by name."""
    monkeypatch.setattr(planning_run, "make_environment", lambda name: Dot())
    data = record_episodes(Dot(), tmp_path / "data", 12, max_steps=9)
    statistics = action_statistics(LeRobotTrajectories(data))
    config = LatentWorldModelConfig(
        encoder_config=ConvEncoderConfig(image_size=16, hidden_sizes=[4, 8], hidden_size=8).to_dict(),
        action_dim=2,
        action_mean=statistics.mean,
        action_std=statistics.std,
        action_low=[-0.2, -0.2],
        action_high=[0.2, 0.2],
        image_mean=[0.1, 0.1, 0.1],
        image_std=[0.2, 0.2, 0.2],
        predictor_hidden_size=16,
        inverse_dynamics_weight=1.0,
    )
    LatentWorldModel(config).save_pretrained(tmp_path / "model")
    return types.SimpleNamespace(data=data, model=tmp_path / "model", folder=tmp_path)


def planner():
    return CEMPlanner(horizon=3, num_samples=8, num_iterations=2, num_elites=2)


def test_every_baseline_and_seed_is_reported(world, monkeypatch):
    for name in ("train_goal_head", "train_goal_conditioned_cloning"):
        plain = getattr(planning_run, name)
        monkeypatch.setattr(planning_run, name, lambda *a, _plain=plain, **k: _plain(*a, num_steps=3, **k))
    results = evaluate_planning(
        world.model, world.data, "dot:Dot-v0", planner(), num_tasks=4, num_seeds=2, max_steps=3, held_out=0.4
    )
    names = {entry["name"] for entry in results["baselines"]}
    assert names == {"random actions", "untrained model", "GC-IDM", "GCBC"}
    ends = [entry for entry in results["evaluations"] if entry["metric"] == "goals reached at the end"]
    assert [entry["seed"] for entry in ends] == [0, 1]
    for entry in ends:
        assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]
        assert entry["initially_solved"] == 0
        assert entry["task"] == "planning, clean protocol"
    latent = [entry["metric"] for entry in results["evaluations"] if entry["task"] == "latent space"]
    assert latent == ["R2 of the state, linear probe", "rank correlation of cost and distance"]


def test_the_command(world, capsys):
    output = world.folder / "results.json"
    argv = ["evaluate", str(world.model), "--dataset", str(world.data), "--task", "planning", "--env", "dot:Dot-v0"]
    options = ["--protocol", "usual", "--offset", "2", "--num-tasks", "3", "--horizon", "2", "--num-samples", "4"]
    options += ["--num-iterations", "1", "--num-elites", "2", "--no-baselines", "--output", str(output)]
    assert main([*argv, *options]) == 0
    shown = capsys.readouterr().out
    assert "planning, usual protocol, goals reached at the end" in shown
    results = json.loads(output.read_text())
    assert results["evaluations"][0]["command"].startswith("hf-jepa evaluate")
    assert results["baselines"] == []
    assert main([*argv[:-2], "--num-tasks", "3"]) == 1
    assert "give --env and --dataset" in capsys.readouterr().err


def test_what_cannot_plan_is_named(world, tmp_path, monkeypatch):
    config = LatentWorldModel.from_pretrained(world.model).config
    config.encoder_config.save_pretrained(tmp_path / "encoder")
    LatentWorldModel.from_pretrained(world.model).encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="no world model: it cannot plan"):
        load_world_model(tmp_path / "encoder")
    silent = LatentWorldModel.from_pretrained(world.model)
    silent.config.action_mean = silent.config.action_std = None
    silent.save_pretrained(tmp_path / "silent")
    with pytest.raises(ValueError, match="no action_mean and action_std"):
        evaluate_planning(tmp_path / "silent", world.data, "dot:Dot-v0", planner())
    monkeypatch.delattr(Dot, "success_distance")
    with pytest.raises(ValueError, match="knows no goals"):
        GymnasiumGoals("dot:Dot-v0", 2)
