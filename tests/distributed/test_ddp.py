"""Two gloo processes train as one process does on the joint batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.training_runs import train, train_and_resume
from tests.processes import run_in_two_processes


def test_two_processes_train_log_probe_and_resume_as_one(tmp_path: Path) -> None:
    # One test, so that the runs are made once however tests are spread over processes.
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    train_and_resume(one, 8, 1)
    two.mkdir()
    run_in_two_processes(train_and_resume, two, 2, 2, one / "checkpoint-4")
    train(one, 8, 1, "from-two", two / "checkpoint-4")
    check_gradients_and_weights(one, two)
    check_logs_and_probes(one, two)
    check_resume(two)
    for whole, other in ((one, two), (two, one)):
        check_other_number_of_processes(whole, other)


def check_gradients_and_weights(one: Path, two: Path) -> None:
    for name, expected in load_file(one / "whole-0-gradients.safetensors").items():
        found = load_file(two / "whole-0-gradients.safetensors")[name]
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5 * expected.abs().max().item() + 1e-9, msg=name)
    weights = load_file(two / "whole-0.safetensors")
    for name, expected in load_file(one / "whole-0.safetensors").items():
        # The gradient of key biases is zero in truth; Adam turns its rounding into whole steps.
        if "k_proj.bias" not in name:
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=5e-5, msg=name)
    other_rank = load_file(two / "whole-1.safetensors")
    assert all(torch.equal(other_rank[name], value) for name, value in weights.items())


def check_logs_and_probes(one_folder: Path, two_folder: Path) -> None:
    files = (one_folder / "whole-0.json", two_folder / "whole-0.json", two_folder / "whole-1.json")
    one, two, other_rank = (json.loads(path.read_text()) for path in files)
    for name in ("loss", "prediction_loss", "grad_norm", "learning_rate", "ema_momentum", "weight_decay"):
        values = [[entry[name] for entry in history if name in entry] for history in (one, two)]
        assert len(values[0]) == 5
        assert values[0] == pytest.approx(values[1], rel=2e-4), name
    for name in ("eval_knn_accuracy", "eval_ridge_accuracy"):
        values = [[entry[name] for entry in history if name in entry] for history in (one, two, other_rank)]
        assert len(values[0]) == 1
        assert values[0] == values[1] == values[2], name


def check_resume(two: Path) -> None:
    whole, resumed = (load_file(two / f"{name}-0.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())
    histories = [json.loads((two / f"{name}-0.json").read_text()) for name in ("whole", "resumed")]
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in histories]
    assert losses[0] == losses[1]


def check_other_number_of_processes(whole: Path, other: Path) -> None:
    """
    Two processes go on with what one has begun, and one with what two have: the same samples and masks, and so the
    same last update, up to the rounding of another order of sums.
    """
    found = f"from-{whole.name}-0"
    weights = load_file(other / f"{found}.safetensors")
    for name, expected in load_file(whole / "whole-0.safetensors").items():
        if "k_proj.bias" not in name:
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=5e-5, msg=name)
    histories = [json.loads(path.read_text()) for path in (whole / "whole-0.json", other / f"{found}.json")]
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in histories]
    assert len(losses[1]) == 5
    assert losses[0][:4] == losses[1][:4]
    assert losses[0] == pytest.approx(losses[1], rel=2e-6)
