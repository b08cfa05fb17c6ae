import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from hf_jepa import JepaTrainer
from hf_jepa.hub.release import PushError


def test_a_push_sends_a_release_without_pickles(
    make_trainer: Callable[..., JepaTrainer], uploads: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(hub_model_id="someone/tiny")
    trainer.train()
    trainer.evaluate()
    assert trainer.push_to_hub(license="mit") == "https://hub.invalid/someone/tiny"
    [(repo_id, message, files)] = uploads
    assert (repo_id, message) == ("someone/tiny", "End of training")
    assert {"config.json", "model.safetensors", "README.md", "pretraining/model.safetensors"} <= files
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".md", ".yaml"}

    release = tmp_path / "run" / "release"
    encoder = AutoModel.from_pretrained(release)
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(encoder(pixels).last_hidden_state, trainer.model.get_features(pixels))
    results = json.loads((release / "results.json").read_text())
    assert results["training"]["steps"] == 4
    assert {entry["task"]: entry["value"] for entry in results["evaluations"]} == {"knn": 1.0, "ridge": 1.0}
    assert results["data"]["num_examples"] == 24
    assert results["licence"] == "mit"
    # The trainer cannot know the licence of weights that it was given.
    assert trainer.measured_results()["licence"] == "unknown"


def test_a_failed_push_loses_nothing_and_names_the_command(
    make_trainer: Callable[..., JepaTrainer], uploads: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(hub_model_id="someone/tiny")
    trainer.train()
    uploads.error = PermissionError("401 Unauthorized")
    release = tmp_path / "run" / "release"
    with pytest.raises(PushError, match=rf"hf upload someone/tiny {release}"):
        trainer.push_to_hub()
    assert (release / "model.safetensors").is_file()
    assert (tmp_path / "run" / "trainer_state.json").is_file()
