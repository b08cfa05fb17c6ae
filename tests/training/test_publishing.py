import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModel

from hf_jepa import JepaTrainer
from hf_jepa.hub.release import PushError


class Uploads(list):
    """What a stand-in for the Hub was sent; `error` is raised instead if there is one."""

    error: Exception | None = None

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: Any, commit_message: str, **_: Any) -> str:
        if self.error is not None:
            raise self.error
        files = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()}
        self.append((repo_id, commit_message, files))
        return f"https://hub.invalid/{repo_id}"


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    hub = Uploads()
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **kwargs: hub.create_repo(*args, **kwargs))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **kwargs: hub.upload_folder(**kwargs))
    return hub


def test_a_push_sends_a_release_without_pickles(
    make_trainer: Callable[..., JepaTrainer], uploads: Uploads, tmp_path: Path
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
    assert {entry["task"]: entry["value"] for entry in results["evaluations"]} == {"knn": 1.0, "linear": 1.0}
    assert results["data"]["num_examples"] == 24
    assert results["licence"] == "mit"
    # The trainer cannot know the licence of weights that it was given.
    assert trainer.measured_results()["licence"] == "unknown"


def test_a_failed_push_loses_nothing_and_names_the_command(
    make_trainer: Callable[..., JepaTrainer], uploads: Uploads, tmp_path: Path
) -> None:
    trainer = make_trainer(hub_model_id="someone/tiny")
    trainer.train()
    uploads.error = PermissionError("401 Unauthorized")
    release = tmp_path / "run" / "release"
    with pytest.raises(PushError, match=rf"hf upload someone/tiny {release}"):
        trainer.push_to_hub()
    assert (release / "model.safetensors").is_file()
    assert (tmp_path / "run" / "trainer_state.json").is_file()


def test_pushing_while_training_survives_a_failed_upload(
    make_trainer: Callable[..., JepaTrainer], uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = []
    monkeypatch.setattr("hf_jepa.training.jepa.trainer.logger.error", logged.append)
    settings = {"push_to_hub": True, "hub_model_id": "someone/tiny", "save_strategy": "steps", "save_steps": 4}
    trainer = make_trainer(**settings)
    trainer.train()
    assert [message for _, message, _ in uploads] == ["Training in progress, step 4"]
    assert not logged

    uploads.error = PermissionError("401 Unauthorized")
    trainer = make_trainer(**settings)
    trainer.train()
    assert trainer.state.global_step == 4
    assert "hf upload someone/tiny" in logged[0]


def test_a_push_that_nobody_would_see_fail_is_refused(make_trainer: Callable[..., JepaTrainer]) -> None:
    with pytest.raises(ValueError, match="blocking=False"):
        make_trainer().push_to_hub(blocking=False)
