"""
A whole program under FSDP2, as `accelerate launch` with `fsdp2.yaml` would start it: it trains, evaluates, resumes,
releases what plain transformers loads, and leaves to others what needs the whole model.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoModel

from hf_jepa import IJepaForPreTraining
from hf_jepa.programs.launch import accelerate_config

PROGRAM = Path(__file__).parent / "sharded_program.py"
# What `accelerate launch` hands on of a configuration.
FSDP = yaml.safe_load(accelerate_config("fsdp2").read_text())["fsdp_config"]
ENVIRONMENT = {"ACCELERATE_USE_FSDP": "true", **{name.upper(): str(value) for name, value in FSDP.items()}}
SIZES = {"image_size": 16, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "predictor_hidden_size": 8, "predictor_num_hidden_layers": 1}


@pytest.fixture
def recipe(tmp_path) -> Path:
    for seed, split in enumerate(("train", "validation")):
        noise = np.random.default_rng(seed).integers(0, 256, (34, 16, 16), dtype=np.uint8)
        rows = {"image": [PILImage.fromarray(pixels) for pixels in noise], "label": [row % 3 for row in range(34)]}
        features = Features({"image": Image(), "label": Value("int64")})
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "images" / f"{split}.parquet"))
    content = {
        "model": {"family": "ijepa", **SIZES},
        "data": {"dataset": str(tmp_path / "images"), "probe_split": "validation", "image_mean": [0.5]},
        "masks": {"min_keep": 1, "target_scale": [0.2, 0.25]},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 4, "per_device_train_batch_size": 4},
    }
    content["data"]["image_std"] = [0.5]
    content["training"] |= {"logging_steps": 1, "save_steps": 2, "use_cpu": True, "disable_tqdm": True}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.slow
def test_a_program_under_fsdp(run_program, recipe, tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    said = run_program(PROGRAM, recipe)
    assert said.count("The model is sharded: pictures were not drawn") == 1
    release = tmp_path / "run" / "release"
    results = json.loads((release / "results.json").read_text())
    assert {entry["task"] for entry in results["evaluations"]} >= {"knn", "ridge"}
    pixels = torch.randn(2, 1, 16, 16)
    whole = IJepaForPreTraining.from_pretrained(release / "pretraining").eval()
    with torch.no_grad():
        found = AutoModel.from_pretrained(release).eval()(pixels).last_hidden_state
    assert torch.equal(found, whole.get_features(pixels))
    # From shards, to the same loss.
    before = losses(tmp_path / "run")
    run_program(PROGRAM, recipe, "--resume_from_checkpoint", tmp_path / "run" / "checkpoint-2")
    assert losses(tmp_path / "run") == before
    assert len(before) == 4
