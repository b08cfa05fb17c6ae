"""The collapse demo: its images, every arm for two steps, its report; and, slowly, what it is there to show."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

PROGRAM = Path(__file__).parents[2] / "trainers" / "demos" / "collapse.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo_collapse", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(demo):
    """Every arm for two steps, as it comes back from results.json."""
    arms = [demo.PIXELS, demo.UNTRAINED, *demo.objectives()]
    return json.loads(json.dumps([demo.run_arm((arm, bn, 0, 2)) for bn in (False, True) for arm in arms]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_digits_are_split_once(demo):
    (train, train_labels), (test, test_labels) = demo.load_digits().values()
    assert train.shape == (1347, 12, 12)
    assert test.shape == (450, 12, 12)
    assert 0 <= train.min() < train.max() <= 1
    assert sorted(set(test_labels.tolist())) == sorted(set(train_labels.tolist())) == list(range(10))


def test_rendering_is_a_function_of_the_seed(demo):
    digits, _ = demo.load_digits()["test"]
    first, again, other = (demo.render(digits[:6], digits, generator(seed)) for seed in (3, 3, 4))
    assert first.shape == (6, 1, 24, 24)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_digit_lies_over_the_fragments_anywhere_with_contrast_and_noise(demo):
    # A digit of -1 among fragments of 1: the 12 x 12 pixels of the digit are the contrast, free of fragments.
    n = 4000
    images = demo.render(-torch.ones(n, 12, 12), torch.ones(5, 12, 12), generator())
    depth, place = F.avg_pool2d(-images, 12, stride=1).flatten(1).max(dim=1)
    assert depth.min() == pytest.approx(0.6, abs=0.04)
    assert depth.max() == pytest.approx(1.4, abs=0.04)
    assert depth.mean() == pytest.approx(1.0, abs=0.03)
    assert place.bincount(minlength=169).min() > 0
    brightness = F.avg_pool2d(images, 6, stride=1).flatten(1).amax(dim=1) / depth
    assert brightness.median() == pytest.approx(0.7, abs=0.05)
    # Four fragments of 36 pixels, some of them partly hidden.
    bright = (images.flatten(1) > 0.35 * depth[:, None]).float().sum(dim=1)
    assert 60 < bright.median() < 144
    # Without digits and fragments only the noise is left.
    assert demo.render(torch.zeros(n, 12, 12), torch.zeros(5, 12, 12), generator()).std() == pytest.approx(
        0.15, abs=1e-3
    )


def test_views_are_pairs_of_every_digit_once_an_epoch(demo, monkeypatch):
    monkeypatch.setattr(demo, "render", lambda digits, others, generator: F.pad(digits[:, None], (6, 6, 6, 6)))
    views = demo.training_views.__wrapped__(0, 12)
    assert views.shape == (12, 2, 128, 1, 24, 24)
    assert torch.equal(views[:, 0], views[:, 1])
    shown = views[:, 0, :, 0, 6:18, 6:18].flatten(0, 1)[:1347]
    expected, _ = demo.load_digits()["train"]
    assert torch.equal(shown.sum(dim=(1, 2)).sort().values, expected.sum(dim=(1, 2)).sort().values)


def test_every_arm_gives_finite_numbers(demo, runs):
    for run in runs:
        expected = ["ridge", "knn"] if run["arm"] == demo.PIXELS else list(demo.METRICS)[:6]
        assert all(math.isfinite(run[key]) for key in expected), run
        assert len(run.get("curve", ())) == (0 if run["arm"] in (demo.PIXELS, demo.UNTRAINED) else 2)
        assert all(math.isfinite(value) for value in run.get("curve", ()))


def test_arms_differ_by_the_loss_alone(demo, runs):
    """Same weights and same images: the first batch's embeddings agree, what two steps make of them does not."""
    for group in demo.GROUPS:
        members = [run for run in runs if run["group"] == group and "curve" in run and run["arm"] != "RDMReg"]
        assert len(members) == 7
        assert len({run["curve"][0] for run in members}) == 1
        assert len({run["projector_std"] for run in members}) == 7
    rectified = {run["arm"] for run in runs if run.get("active_fraction", 1) < 0.9}
    assert rectified == {"RDMReg"}


def test_run_is_repeatable(demo, runs):
    again = demo.run_arm(("SIGReg", True, 0, 2))
    (before,) = (run for run in runs if run["arm"] == "SIGReg" and run["group"] == demo.GROUPS[True])
    assert again["curve"] == before["curve"]
    assert again["knn"] == before["knn"]


def test_report_is_made_from_the_runs(demo, runs, tmp_path):
    text = demo.report(runs + [run | {"seed": 1} for run in runs], tmp_path / "new")
    assert (tmp_path / "new" / "table.md").read_text() == text
    rows = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| with"):
            name, *cells = line.strip("| ").split(" | ")
            rows.setdefault(name, []).append(cells)
    assert list(rows) == [demo.PIXELS, demo.UNTRAINED, *demo.objectives()]
    assert all(len(versions) == 2 for versions in rows.values())
    # Both seeds are the same run here: no spread, and the run's own number.
    knn = runs[0]["knn"]
    assert rows[demo.PIXELS][0][1] == f"{100 * knn:.1f} ± 0.0"
    assert rows["VICReg"][0][-1] == "0 of 2"
    assert "Judge collapse by the projector's std" in text
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert len(results["runs"]) == 2 * len(runs)
    with Image.open(tmp_path / "new" / "collapse.png") as picture:
        assert picture.width > 1000


def test_collapsed_means_five_percent_of_the_untrained_std(demo, runs, tmp_path):
    group = [run for run in runs if run["group"] == demo.GROUPS[0]]
    (untrained,) = (run["projector_std"] for run in group if run["arm"] == demo.UNTRAINED)
    for factor, verdict in ((0.049, "1 of 1"), (0.051, "0 of 1")):
        shrunk = [run | ({"projector_std": factor * untrained} if run["arm"] == demo.NONE else {}) for run in group]
        (line,) = (line for line in demo.report(shrunk, tmp_path).splitlines() if line.startswith(f"| {demo.NONE}"))
        assert line.endswith(f"| {verdict} |")


def test_weak_lambda_is_said_before_training(demo):
    strong, weak = (demo.run_arm((f"lambda {weight}", False, 0, 2)) for weight in (0.05, 0.0004))
    assert strong["within_share"] == weak["within_share"]
    assert weak["ratio"] < strong["within_share"] < 1 < strong["ratio"]


@pytest.mark.slow
def test_without_regularizer_the_network_collapses(demo):
    torch.set_num_threads(1)
    arms = (demo.UNTRAINED, demo.NONE, "SIGReg", "VICReg")
    untrained, none, sigreg, vicreg = (demo.run_arm((arm, False, 0, demo.STEPS)) for arm in arms)
    assert none["projector_std"] < 0.01
    assert none["knn"] < untrained["knn"] - 0.05
    for run in (sigreg, vicreg):
        assert run["projector_std"] > 0.2
        assert run["ridge"] > untrained["ridge"] + 0.1


@pytest.mark.slow
def test_program_runs_to_its_end(tmp_path):
    command = [sys.executable, str(PROGRAM), "--steps", "2", "--seeds", "0", "--output_dir", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["collapse.png", "results.json", "table.md"]
    assert (tmp_path / "out" / "table.md").read_text() in run.stdout
