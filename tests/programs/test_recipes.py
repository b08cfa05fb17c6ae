"""Recipes: files, flags, types, and misspelt keys."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hf_jepa.programs.recipes import parse_recipe, resolved
from hf_jepa.training import JepaTrainingArguments


@dataclass
class Small:
    hidden_size: int = 8
    rate: float = 0.1
    scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    name: str | None = None
    streaming: bool = False


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "recipe.yaml").write_text(text)
    return str(tmp_path / "recipe.yaml")


def test_sections_types_and_overrides(tmp_path):
    path = write(tmp_path, "model:\n  hidden_size: 16\n  scale: [0.1, 0.2]\nrate: 1e-4\nstreaming: true\n")
    (small,) = parse_recipe([Small], [path, "--hidden_size", "32"])
    assert small == Small(hidden_size=32, rate=1e-4, scale=[0.1, 0.2], streaming=True)
    assert resolved(small) == {"hidden_size": 32, "rate": 1e-4, "scale": [0.1, 0.2], "streaming": True}
    assert parse_recipe([Small], ["--hidden-size=5", "--scale", "0.3", "0.4"])[0].scale == [0.3, 0.4]


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
        ("hiden_size: 3\n", "'hiden_size'.*did you mean 'hidden_size'"),
        ("hidden_size: wide\n", "wide"),
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
    [(["nowhere.yaml"], "no recipe"), (["--hiden-size", "3"], "did you mean"), (["--scale", "a"], "'a'")],
)
def test_faults_of_the_command_line(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe([Small], argv)
