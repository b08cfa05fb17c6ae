"""The LLM-JEPA demo at sizes that cost seconds: its world, every arm for a few steps, table, picture and release."""

import importlib
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from trainers.worlds import nl_regex

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def programs():
    return {"demo_llm": importlib.import_module("trainers.demos.llm"), "nl_regex": nl_regex}


@pytest.fixture(scope="module")
def world(programs):
    return programs["nl_regex"]


@pytest.fixture(scope="module")
def demo(programs):
    """The demo with sizes at which an arm takes a second."""
    module = programs["demo_llm"]
    small = {"TRAIN": 40, "VALIDATION": 20, "TEST": 24, "BATCH": 8, "WIDTH": 16, "LAYERS": 1, "HEADS": 2}
    before = {name: getattr(module, name) for name in small}
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    for name, value in small.items():
        setattr(module, name, value)
    yield module
    for name, value in before.items():
        setattr(module, name, value)
    logging.set_verbosity(verbosity)
    if bars:
        logging.enable_progress_bar()


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """Two seeds of every arm for four steps, on the test split."""
    folder = str(tmp_path_factory.mktemp("demo"))
    return [demo.run_arm(name, seed, 4, "test", folder, {}) for seed in (0, 1) for name in demo.ARMS]


# ---- The world ----


def test_splits_share_no_regex_and_are_a_function_of_the_seed(world):
    splits = world.make_splits((300, 50, 50))
    assert [len(rows) for rows in splits] == [300, 50, 50]
    codes = [row["code"] for rows in splits for row in rows]
    assert len(set(codes)) == 400
    assert splits == world.make_splits((300, 50, 50))
    assert splits != world.make_splits((300, 50, 50), seed=1)
    # A longer list of rows begins with the shorter one.
    assert world.make_splits((350,))[0] == splits[0] + splits[1]


def test_swapped_sides_count_as_one_regex(world, monkeypatch):
    said = iter([("a or b", "(a|b)"), ("b or a", "(b|a)"), ("a before b", "a.*b"), ("c or a", "(c|a)")])
    monkeypatch.setattr(world, "make_pair", lambda draw: dict(zip(("text", "code"), next(said), strict=True)))
    assert [row["code"] for row in world.make_splits((3,))[0]] == ["(a|b)", "a.*b", "(c|a)"]


def test_every_regex_is_one_and_every_sentence_has_one_answer(world):
    draw = random.Random(7)
    answers: dict[str, str] = {}
    for _ in range(3000):
        pair = world.make_pair(draw)
        re.compile(pair["code"])
        assert answers.setdefault(pair["text"], pair["code"]) == pair["code"]
    assert len(answers) > 2000


def test_tokens_are_lossless(world):
    tokenizer = world.build_tokenizer()
    draw = random.Random(3)
    for _ in range(500):
        pair = world.make_pair(draw)
        ids = tokenizer(pair["code"], add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids + tokenizer(pair["text"])["input_ids"]
        assert tokenizer.decode(ids) == pair["code"]


# ---- The demo ----


def test_arms_start_from_the_same_weights(demo, world):
    tokenizer = world.build_tokenizer()
    first, *others = (
        demo.build_model(fields, tokenizer, 3).causal_lm.state_dict() for fields, _ in demo.ARMS.values()
    )
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    another = demo.build_model({"jepa_lambda": 0.0}, tokenizer, 4).causal_lm.state_dict()
    assert not all(torch.equal(first[name], another[name]) for name in first)


def test_a_step_of_the_jepa_arm_processes_the_view_and_the_predictors_more(demo, world):
    tokenizer = world.build_tokenizer()
    row = {"text": "lines with a digit", "code": "[0-9]"}
    # <bos> <user> lines with a digit <end> <assistant> [0-9] <end>; the view is <bos> <assistant> [0-9].
    predictors = demo.ARMS["LLM-JEPA"][0]["num_predictor_tokens"]
    assert demo.token_ratio([row, row], tokenizer) == pytest.approx((10 + 3 + predictors) / 10)


def test_every_arm_is_trained_and_measured(demo, runs):
    assert [(run["arm"], run["seed"]) for run in runs] == [(name, seed) for seed in (0, 1) for name in demo.ARMS]
    for run in runs:
        assert run["num_examples"] == 24
        assert run["history"][-1]["lm_loss"] < run["history"][0]["lm_loss"]
        numbers = [run["exact_match"], run["lm_loss"], run["linear_map_error"], *run["pairs"].values()]
        assert all(math.isfinite(number) for number in numbers + run["spectrum"])
        assert len(run["spectrum"]) == demo.WIDTH
        assert (run["history"][0]["jepa_loss"] > 0) is (not run["arm"].startswith("LM only"))
    # Same weights and examples, another objective from the first step on.
    first = [run["history"][0]["lm_loss"] for run in runs[:5]]
    assert first == pytest.approx([first[0]] * 5, rel=1e-5)
    assert len({run["lm_loss"] for run in runs[:4]}) == 4
    # At equal steps the stretched arm is the plain one.
    assert runs[0]["lm_loss"] == runs[4]["lm_loss"]
    assert [run["arm"] for run in runs if run["release"]] == [demo.RELEASED]


def test_a_run_is_repeatable(demo, runs, tmp_path):
    again = demo.run_arm("STP", 1, 4, "test", str(tmp_path), {})
    (before,) = (run for run in runs if run["arm"] == "STP" and run["seed"] == 1)
    assert again["spectrum"] == before["spectrum"]
    assert again["lm_loss"] == before["lm_loss"]


def test_validation_is_another_split(demo, tmp_path):
    run = demo.run_arm("LM only", 0, 1, "validation", str(tmp_path), {"learning_rate": 1e-4})
    assert run["num_examples"] == 20
    _, validation, test = demo.make_splits((demo.TRAIN, demo.VALIDATION, demo.TEST))
    assert [text for text, _, _ in run["examples"]] == [row["text"] for row in validation[:8]]


def test_table_counts_seeds_above_the_baseline(demo, runs):
    scores = dict(zip(demo.ARMS, [(0.5, 0.5), (0.6, 0.4), (0.9, 0.8), (0.5, 0.5), (0.7, 0.8)], strict=True))
    rows = demo.table([run | {"exact_match": scores[run["arm"]][run["seed"]]} for run in runs])
    assert [row[0] for row in rows[1:]] == list(demo.ARMS)
    assert [row[-1] for row in rows[1:]] == ["", "1 of 2", "2 of 2", "0 of 2", "2 of 2"]
    column = rows[0].index("exact match %")
    assert [row[column] for row in rows[2:]] == ["50.0 ± 14.1", "85.0 ± 7.1", "50.0 ± 0.0", "75.0 ± 7.1"]


def test_report_makes_table_picture_and_release(demo, runs, tmp_path, capsys):
    demo.report(runs, "test", tmp_path, "python -m trainers.demos.llm --seeds 2")
    printed = capsys.readouterr().out
    assert "test split, 24 sentences" in printed
    assert "the same answers" in printed
    with Image.open(tmp_path / "text_to_code.png") as picture:
        assert picture.width > 1000
    assert json.loads((tmp_path / "runs.json").read_text()) == json.loads(json.dumps(runs))
    release = Path(next(run["release"] for run in runs if run["release"]))
    results = json.loads((release / "results.json").read_text())
    assert {entry["seed"] for entry in results["evaluations"]} == {0, 1}
    values = [entry["value"] for entry in results["evaluations"] if entry["metric"] == "loss per answer token"]
    assert values == [run["lm_loss"] for run in runs if run["arm"] == demo.RELEASED]
    assert {entry["name"] for entry in results["baselines"]} == {
        f"{name} (4 steps)" for name in demo.ARMS if name != demo.RELEASED
    }
    card = (release / "README.md").read_text()
    assert "python -m trainers.demos.llm --seeds 2" in card
    assert "text_to_code.png" in card
    AutoTokenizer.from_pretrained(release)
    assert type(AutoModelForCausalLM.from_pretrained(release)).__name__ == "LlamaForCausalLM"


def test_a_release_that_answers_otherwise_ends_the_program(demo, runs, tmp_path):
    release = Path(next(run["release"] for run in runs if run["release"]))
    with pytest.raises(SystemExit, match="does not answer alike"):
        demo.loaded_by_a_stranger(release, [["lines with a digit", "[0-9]", "no such answer"]], tmp_path)


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path):
    command = [sys.executable, "-m", "trainers.demos.llm", "--split", "validation", "--seeds", "1"]
    command += ["--steps", "3", "--output_dir", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert " 0 of " in run.stdout
    assert "the same answers" in run.stdout
    assert (tmp_path / "text_to_code.png").stat().st_size > 10_000
    assert (tmp_path / "release" / "README.md").is_file()
