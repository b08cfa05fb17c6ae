"""Cards say what was measured, and nothing else."""

import ast
import copy
import json
import re
import runpy
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_jepa.hub import render_card

ROOT = Path(__file__).parents[2]


def evaluation(value: float | None, **changes) -> dict:
    entry = {
        "task": "knn",
        "dataset": "someone/pictures",
        "split": "test",
        "num_examples": 1000,
        "metric": "accuracy",
        "value": value,
        "features": "mean",
        "seed": 0,
        "command": "hf-jepa evaluate tiny --task knn",
    }
    return entry | changes


@pytest.fixture
def results() -> dict:
    return {
        "model": {
            "name": "tiny",
            "family": "ijepa",
            "model_type": "ijepa_pretraining",
            "num_parameters": 123456,
            "encoder_config": {"hidden_size": 16, "image_size": 28},
        },
        "data": {
            "name": "someone/pictures", "revision": "abc", "split": "train", "num_examples": 54000, "licence": "mit",
        },
        "training": {
            "steps": 1000, "batch_size": 64, "seconds": 300.5, "images_per_second": 213.0, "recipe": "demo.yaml",
        },
        "environment": {"commit": "0123456789ab", "torch": "2.14.1", "hardware": "2 cores"},
        "compute": {"cpu_seconds": 600.0, "energy_kwh": None, "energy_note": "no meter on this machine"},
        "evaluations": [evaluation(0.75), evaluation(0.81, task="linear")],
        "baselines": [evaluation(0.7, name="random init")],
        "licence": "apache-2.0",
        "source_licence": None,
        "pictures": [{"file": "curves.png", "caption": "Loss by step"}],
    }  # fmt: skip


def test_front_matter_is_read_by_the_hub(results):
    data = ModelCard(render_card(results)).data
    assert data.to_dict()["library_name"] == "transformers"
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.license == "apache-2.0"
    assert data.datasets == ["someone/pictures"]
    assert {"hf-jepa", "jepa", "ijepa"} == set(data.tags)
    measured = {(entry.metric_name, entry.metric_type): entry.metric_value for entry in data.eval_results}
    assert measured == {("knn accuracy (mean)", "accuracy"): 0.75, ("linear accuracy (mean)", "accuracy"): 0.81}


def test_commands_of_baselines_are_shown_once(results):
    results["baselines"] += [evaluation(0.6, name="other recipe", command="python other.py")]
    block = render_card(results).split("```bash\n")[1].split("\n```")[0]
    assert block.splitlines() == ["hf-jepa evaluate tiny --task knn", "python other.py"]


def test_runs_of_several_seeds_and_arms_become_one_card(results, tmp_path, monkeypatch):
    program = runpy.run_path(str(ROOT / "scripts" / "cards" / "collect_demo_runs.py"))
    for place, (run, value) in enumerate({"seed0": 0.5, "seed1": 0.7, "arm": 0.2}.items()):
        found = copy.deepcopy(results) | {"evaluations": [evaluation(value, seed=place)], "pictures": []}
        (tmp_path / run / "release").mkdir(parents=True)
        (tmp_path / run / "release" / "results.json").write_text(json.dumps(found | {"baselines": []}))
    flags = [*(str(tmp_path / run) for run in ("seed0", "seed1")), "--baselines", f"other arm={tmp_path / 'arm'}"]
    monkeypatch.setattr("sys.argv", ["collect", *flags, "--name", "joint", "--folder", str(tmp_path)])
    program["main"]()
    joint = json.loads((tmp_path / "joint.json").read_text())
    assert [entry["value"] for entry in joint["evaluations"]] == [0.5, 0.7]
    assert [(entry["name"], entry["value"]) for entry in joint["baselines"]] == [("other arm", 0.2)]
    assert joint["compute"]["cpu_seconds"] == 1200
    assert "0.6 ± 0.14 (2 seeds) | 0.2 |" in (tmp_path / "joint.md").read_text()
    assert not (tmp_path / "joint").exists()


def test_every_number_comes_from_the_results(results):
    """Changing a measured value changes the card; no number on it is left without a source."""
    card = render_card(results)
    for shown in ("0.75", "0.81", "0.7", "123,456", "54,000", "300.5", "213", "1,000 x 64", "0123456789ab", "600"):
        assert shown in card
    changed = copy.deepcopy(results)
    changed["evaluations"][0]["value"] = 0.123
    assert "0.75" not in render_card(changed)
    assert "| 0.123 | 0.7 |" in render_card(changed)


def test_missing_numbers_say_so(results):
    results["evaluations"][0]["value"] = None
    card = render_card(results)
    assert "| not evaluated | 0.7 |" in card
    assert "| 0.81 | not evaluated |" in card
    assert "Energy: not measured (no meter on this machine)" in card
    entries = ModelCard(card).data.eval_results
    assert [entry.metric_name for entry in entries] == ["linear accuracy (mean)"]


def test_bare_results_still_give_a_card():
    card = render_card({"model": {"name": "x", "family": "cjepa"}, "licence": "apache-2.0"})
    assert "not evaluated" in card
    assert "Compute time: not measured" in card
    assert "Energy: not measured" in card
    assert "2410.19560" in card
    assert "None" not in card
    assert "Undefined" not in card


def test_measured_energy_is_shown(results):
    results["compute"]["energy_kwh"] = 0.0125
    assert "Energy: 0.0125 kWh" in render_card(results)


def test_seeds_are_summarised(results):
    results["evaluations"] = [evaluation(value, seed=seed) for seed, value in enumerate([0.70, 0.80, 0.75])]
    card = render_card(results)
    assert "0.75 ± 0.05 (3 seeds)" in card
    assert ModelCard(card).data.eval_results[0].metric_value == 0.75


def test_snippets_are_python_and_name_both_floors(results):
    results["model"]["repo_id"] = "me/tiny"
    card = render_card(results)
    plain, pretraining = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    ast.parse(plain)
    ast.parse(pretraining)
    assert "hf_jepa" not in plain
    assert 'AutoModel.from_pretrained("me/tiny")' in plain
    assert "import hf_jepa" in pretraining
    assert 'from_pretrained("me/tiny", subfolder="pretraining")' in pretraining


def test_source_licence_method_and_pictures(results):
    results["source_licence"] = "cc-by-nc-4.0"
    card = render_card(results)
    assert "`cc-by-nc-4.0`" in card
    assert "arXiv:2301.08243" in card
    assert "![Loss by step](curves.png)" in card


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda r: r.pop("licence"), "licence"),
        (lambda r: r["model"].pop("name"), "model.name"),
        (lambda r: r["evaluations"][1].pop("metric"), r"evaluations\[1\]\.metric"),
        (lambda r: r["baselines"][0].pop("name"), r"baselines\[0\]\.name"),
    ],
)
def test_incomplete_results_are_refused(results, harm, named):
    harm(results)
    with pytest.raises(ValueError, match=named):
        render_card(results)


def render_script(*arguments: str) -> int:
    return runpy.run_path(str(ROOT / "scripts" / "cards" / "render.py"))["main"](arguments)


def test_script_writes_then_notices_a_card_that_was_edited(results, tmp_path, capsys):
    (tmp_path / "tiny.json").write_text(json.dumps(results))
    assert render_script("--folder", str(tmp_path), "--check") == 1
    assert render_script("--folder", str(tmp_path)) == 0
    assert (tmp_path / "tiny.md").read_text() == render_card(results)
    assert render_script("--folder", str(tmp_path), "--check") == 0
    (tmp_path / "tiny.md").write_text(render_card(results).replace("0.75", "0.95"))
    capsys.readouterr()
    assert render_script("--folder", str(tmp_path), "--check") == 1
    assert "0.95" in capsys.readouterr().out


def test_script_notices_cards_without_results(tmp_path):
    (tmp_path / "invented.md").write_text("0.99")
    assert render_script("--folder", str(tmp_path), "--check") == 1


def test_committed_cards_match_their_results(capsys):
    assert render_script("--check") == 0, capsys.readouterr().out
