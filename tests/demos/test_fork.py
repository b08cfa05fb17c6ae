"""The fork demo: its world, every arm for a few steps, its record; and, slowly, what it is there to show."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

PROGRAM = Path(__file__).parents[2] / "trainers" / "demos" / "fork.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_fork", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_dots_are_where_they_are_said_to_be(demo):
    places = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    frames = demo.render(places)
    assert frames.shape == (2, 1, demo.SIDE, demo.SIDE)
    assert frames.dtype == torch.uint8
    axis = (torch.arange(demo.SIDE) + 0.5) / demo.SIDE
    weights = frames[:, 0].double()
    weights = weights / weights.sum(dim=(1, 2), keepdim=True)
    right = (weights.sum(dim=1) * axis).sum(dim=1)
    up = (weights.sum(dim=2) * axis.flip(0)).sum(dim=1)
    torch.testing.assert_close(torch.stack([right, up], dim=1), places.double(), atol=0.01, rtol=0)


def test_action_says_how_far_and_not_where(demo):
    frames, actions, path, side = demo.forks(4000, generator())
    steps = path.diff(dim=1)
    assert torch.equal(steps[..., 0] > 0, side == 1)
    far = demo.NEAREST + (actions[..., 0] + 1) / 2 * (demo.FARTHEST - demo.NEAREST)
    torch.testing.assert_close(steps.norm(dim=2), far)
    assert (steps[..., 1] > 0).all()
    assert path.min() > 0.08
    assert path.max() < 0.92
    assert side.double().mean() == pytest.approx(0.5, abs=0.02)
    assert abs(torch.corrcoef(torch.stack([side.flatten().double(), actions.flatten().double()]))[0, 1]) < 0.03
    assert torch.equal(demo.forks(8, generator())[0], demo.forks(8, generator())[0])
    assert frames.shape == (4000, demo.FRAMES, 1, demo.SIDE, demo.SIDE)


def test_walks_say_where_they_go(demo):
    _, moves, path = demo.walks(200, generator())
    torch.testing.assert_close(moves * 0.1, path.diff(dim=1))
    assert path.min() >= 0.08
    assert path.max() <= 0.92


def test_where_predictions_lie(demo):
    ways = torch.stack([torch.zeros(5, 3), torch.ones(5, 3)])
    mean = demo._position(ways.mean(dim=0)[None], ways)
    assert mean == {"to_mean": 0.0, "to_nearest": pytest.approx(1.0)}
    both = demo._position(ways.flip(0), ways)
    assert both == {"to_mean": pytest.approx(1.0), "to_nearest": 0.0, "to_own_way": 0.0}
    one = demo._position(ways[:1].expand(2, -1, -1), ways)
    assert one["to_own_way"] == pytest.approx(1.0)


def test_wells_are_found(demo):
    two = torch.minimum((demo.LINE - 0).square(), (demo.LINE - 1).square())
    ends = {"left": pytest.approx(0.0, abs=1e-6), "right": pytest.approx(0.0, abs=1e-6)}
    assert demo._shape_of(two) == {"minima": [0.0, 1.0], "middle": pytest.approx(0.25), **ends}
    assert demo._shape_of((demo.LINE - 0.5).square())["minima"] == [0.5]


@pytest.mark.slow
def test_runs_end_to_end(demo, tmp_path):
    command = [sys.executable, "-m", "trainers.demos.fork", "--seeds", "3", "--output_dir", str(tmp_path)]
    command += ["--walk_steps", "2", "--fork_steps", "2"]
    run = subprocess.run(command, cwd=PROGRAM.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "two codes" in run.stdout
    record = json.loads((tmp_path / "fork.json").read_text())
    (numbers,) = record["runs"]
    assert numbers["arms"].keys() == demo.ARMS.keys()
    assert {"purity", "error_shuffled", "transfer_to_source", "perplexity"} <= numbers["arms"]["two codes"].keys()
    assert Image.open(tmp_path / "fork.png").size[0] > 1000


@pytest.mark.slow
def test_two_codes_find_both_ways(demo):
    torch.set_num_threads(1)
    numbers, _ = demo.run_seed(0)
    without, codes = numbers["arms"]["no variable"], numbers["arms"]["two codes"]
    assert without["to_mean"] < 0.25
    assert codes["to_own_way"] < 0.25
    assert codes["error"] < 0.1 * codes["error_without"]
    assert codes["purity"] > 0.95
    assert numbers["wells"]["no variable"]["minima"] == [0.5]
    assert numbers["wells"]["two codes"]["minima"] == [0.0, 1.0]
