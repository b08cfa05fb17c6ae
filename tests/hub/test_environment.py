"""The environment section of results files."""

import datetime
import subprocess

import torch

import hf_jepa
from hf_jepa.hub import environment, environment_info


def test_environment_is_that_of_this_process():
    info = environment_info()
    assert set(info) == {"commit", "torch", "transformers", "hf_jepa", "hardware", "num_threads", "date"}
    assert info["torch"] == torch.__version__
    assert info["hf_jepa"] == hf_jepa.__version__
    assert info["num_threads"] == torch.get_num_threads()
    assert abs(datetime.date.fromisoformat(info["date"]) - datetime.datetime.now(datetime.UTC).date()).days <= 1
    assert info["hardware"]


def test_commit_tells_clean_from_changed_and_installed(tmp_path, monkeypatch):
    package = tmp_path / "src" / "hf_jepa" / "hub"
    package.mkdir(parents=True)
    source = package / "environment.py"
    source.write_text("first\n")
    monkeypatch.setattr(environment, "__file__", str(source))
    assert environment_info()["commit"] is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.invalid"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert environment_info()["commit"] == git("rev-parse", "HEAD")[:12]
    source.write_text("second\n")
    assert environment_info()["commit"] == git("rev-parse", "HEAD")[:12] + "-dirty"
