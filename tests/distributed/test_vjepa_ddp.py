"""Two gloo processes train on video as one process does on the joint batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.vjepa_runs import run_all
from tests.processes import run_in_two_processes


def logs_of(folder: Path, name: str) -> list[dict[str, float]]:
    return [entry for entry in json.loads((folder / f"{name}.json").read_text()) if "loss" in entry]


def test_two_processes_train_log_and_resume_as_one(tmp_path: Path) -> None:
    # One test, so that the runs are made once however tests are spread over processes.
    one, two = tmp_path / "one", tmp_path / "two"
    run_all(one)
    run_in_two_processes(run_all, two)
    for case in ("clips", "mixed"):
        check_gradients_and_weights(one / case, two / case)
        check_logs(one / case, two / case, case)
    for case in ("clips", "mixed", "split"):
        check_agreement_and_resume(two / case)
    check_modalities_on_processes_of_their_own(two / "split")


def check_gradients_and_weights(one: Path, two: Path) -> None:
    gradients = load_file(two / "whole-0-gradients.safetensors")
    for name, expected in load_file(one / "whole-0-gradients.safetensors").items():
        tolerance = 5e-5 * expected.abs().max().item() + 1e-9
        torch.testing.assert_close(gradients[name], expected, rtol=0, atol=tolerance, msg=name)
    weights = load_file(two / "whole-0.safetensors")
    for name, expected in load_file(one / "whole-0.safetensors").items():
        # The gradient of key biases is zero in truth where nothing is rotated; Adam makes whole steps of its rounding.
        if "attention.key.bias" not in name:
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=5e-5, msg=name)


def check_logs(one: Path, two: Path, case: str) -> None:
    names = ["loss", "prediction_loss", "grad_norm", "learning_rate", "ema_momentum", "weight_decay"]
    if case == "mixed":
        names += ["context_loss", "context_loss_weight"]
    for name in names:
        values = [[entry[name] for entry in logs_of(folder, "whole-0")] for folder in (one, two)]
        assert len(values[0]) == 5
        assert values[0] == pytest.approx(values[1], rel=2e-4), name


def check_agreement_and_resume(folder: Path) -> None:
    whole, other, resumed = (load_file(folder / f"{name}.safetensors") for name in ("whole-0", "whole-1", "resumed-0"))
    for name, weight in whole.items():
        assert torch.equal(weight, other[name]), name
        assert torch.equal(weight, resumed[name]), name
    losses = [[entry["loss"] for entry in logs_of(folder, name)] for name in ("whole-0", "resumed-0")]
    assert losses[0] == losses[1]


def check_modalities_on_processes_of_their_own(folder: Path) -> None:
    gradients = load_file(folder / "whole-0-gradients.safetensors")
    for name in ("patch_embeddings.proj.weight", "image_patch_embeddings.proj.weight"):
        assert gradients[f"encoder.embeddings.{name}"].abs().max() > 0
    features = [entry["target_std"] for entry in logs_of(folder, "whole-0")]
    assert len(features) == 5
    assert min(features) > 0
