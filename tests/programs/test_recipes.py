"""Recipes: files, flags, types, and misspelt keys."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from hf_jepa.programs.recipes import parse_recipe, resolved, without_folders
from hf_jepa.training import JepaTrainingArguments


@dataclass
class Small:
    hidden_size: int = 8
    rate: float = 0.1
    scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    name: str | None = None
    streaming: bool = False
    method: dict | str | None = None
    steps: int | None = 5
    words: list[str] = field(default_factory=lambda: ["a"])
    num_predictor_tokens: int = 1


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "recipe.yaml").write_text(text)
    return str(tmp_path / "recipe.yaml")


def test_sections_types_and_overrides(tmp_path):
    path = write(tmp_path, "model:\n  hidden_size: 16\n  scale: [0.1, 0.2]\nrate: 1e-4\nstreaming: true\n")
    (small,) = parse_recipe([Small], [path, "--hidden_size", "32"])
    assert small == Small(hidden_size=32, rate=1e-4, scale=[0.1, 0.2], streaming=True)
    assert resolved(small) == {"hidden_size": 32, "rate": 1e-4, "scale": [0.1, 0.2], "streaming": True}
    assert parse_recipe([Small], ["--hidden-size=5", "--scale", "0.3", "0.4"])[0].scale == [0.3, 0.4]


def test_a_flag_takes_back_what_a_recipe_says(tmp_path):
    path = write(tmp_path, "name: validation\nsteps: null\n")
    assert parse_recipe([Small], [path])[0] == Small(name="validation", steps=None)
    (small,) = parse_recipe([Small], [path, "--name", "null"])
    assert small.name is None
    assert resolved(small) == {"steps": None}
    # Of numbers too, but of none that has to be one.
    path = write(tmp_path, "steps: 3\n")
    assert parse_recipe([Small], [path, "--steps", "null"])[0].steps is None
    assert parse_recipe([Small], [path, "--steps=4"])[0].steps == 4
    for flag in ("--steps=nul", "--hidden_size=null"):
        with pytest.raises(ValueError, match=f"invalid int value: '{flag.split('=')[1]}'"):
            parse_recipe([Small], [path, flag])


def test_two_dataclasses_share_one_file(tmp_path):
    path = write(tmp_path, f"hidden_size: 4\noutput_dir: {tmp_path}\nema_momentum: 0.9\nsave_strategy: 'no'\n")
    small, training = parse_recipe([Small, JepaTrainingArguments], [path, "--seed", "7"])
    assert (small.hidden_size, training.ema_momentum, training.seed) == (4, 0.9, 7)
    again = resolved(training)
    assert again["seed"] == 7
    assert not any("token" in key for key in again)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden_size: 3\n", "'hiden_size'; did you mean 'hidden_size'"),
        ("hidden_size: wide\n", "`hidden_size` is 'wide'; could not convert"),
        ("hidden_size: 1.5\n", "whole number"),
        ("hidden_size: null\n", "`hidden_size` is None; give a whole number"),
        ("streaming: 3\n", "true or false"),
        ("name: no\n", "quotes"),
        ("method: [1]\n", "mapping"),
        ("- a\n- b\n", "keys and values"),
        ("a: [1\n", "not valid YAML"),
        ("model:\n  hidden_size: 1\nhidden_size: 2\n", "twice"),
    ],
)
def test_faults_of_the_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe([Small], [write(tmp_path, text)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.yaml"], "no recipe"),
        (["ijepa_fashion_mnst"], "did you mean ijepa_fashion_mnist or"),
        (["--hiden-size", "3"], "did you mean '--hidden_size'"),
        (["--scale", "a"], "'a'"),
        (["--hidden_size", "3", "stray"], "Cannot place 'stray'"),
    ],
)
def test_faults_of_the_command_line(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe([Small], argv)


def test_what_was_run_can_be_run_again(tmp_path):
    text = (
        "hidden_size: 16\nname: null\nsteps: null\nwords: []\nmethod: {deep: {list: [1, null]}, rate: 1.0e-4}\n"
        "num_predictor_tokens: 3\n"
    )
    (small,) = parse_recipe([Small], [write(tmp_path, text)])
    assert (small.steps, small.words, small.method["deep"]) == (None, [], {"list": [1, None]})
    again = resolved(small)
    assert again["num_predictor_tokens"] == 3
    assert parse_recipe([Small], [write(tmp_path, yaml.safe_dump(again))]) == (small,)


def test_a_mapping_at_the_top_is_a_value_where_one_is_taken(tmp_path):
    text = "method: {hidden_size: 3}\nmodel: {hidden_size: 4}\n"
    (small,) = parse_recipe([Small], [write(tmp_path, text)])
    assert small == Small(hidden_size=4, method={"hidden_size": 3})
    assert parse_recipe([Small], ["--method", "{hidden_size: 5}"])[0].method == {"hidden_size": 5}
    assert parse_recipe([Small], ["--method=a/name"])[0].method == "a/name"


def test_paths_of_this_machine_are_not_published(tmp_path):
    folder = str(tmp_path / "my_images")
    small = Small(name=folder, words=["outputs/run", folder], method={"folder": folder})
    assert resolved(small) == {
        "name": "my_images",
        "words": ["outputs/run", "my_images"],
        "method": {"folder": "my_images"},
    }
    assert without_folders(f"--dataset={folder}") == "--dataset=my_images"


def test_trainer_arguments_come_back_with_nested_settings(tmp_path):
    text = f"output_dir: {tmp_path.name}\nlr_scheduler_type: cosine_with_min_lr\nhub_token: hf_secret\n"
    text += "lr_scheduler_kwargs: {min_lr: 1.0e-5}\nuse_cpu: true\nsave_strategy: 'no'\n"
    text += "probe_every_steps: null\nlearning_rate: 1e-3\nlogging_steps: 7\n"
    (training,) = parse_recipe([JepaTrainingArguments], [write(tmp_path, text)])
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-5}
    again = resolved(training)
    assert "hub_token" not in again
    training.hub_token = None
    # The start of the warmup is derived from the peak, and said: a default may change.
    assert again["learning_rate_start"] == 2e-4
    assert parse_recipe([JepaTrainingArguments], [write(tmp_path, yaml.safe_dump(again))]) == (training,)
