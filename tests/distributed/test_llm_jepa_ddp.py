"""Two gloo processes train LLM-JEPA as one process does on the joint batch, with pairs spread unevenly over them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).parent / "llm_jepa_program.py"


def launch(output: Path, processes: int, batch_size: int, accumulation: int) -> None:
    output.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment["ACCELERATE_USE_CPU"] = "true"
        command = [sys.executable, str(PROGRAM), str(output), str(batch_size), str(accumulation)]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        reports = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, "\n".join(reports)


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, processes=1, batch_size=8, accumulation=1)
    launch(two, processes=2, batch_size=2, accumulation=2)
    expected = load_file(one / "weights.safetensors")
    for name, found in load_file(two / "weights.safetensors").items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    logs = [json.loads((folder / "log.json").read_text()) for folder in (one, two)]
    compared = ("loss", "lm_loss", "jepa_loss", "eval_lm_loss", "eval_jepa_loss", "eval_loss", "eval_exact_match")
    for entry, other in zip(*logs, strict=True):
        assert {name for name in compared if name in entry} == {name for name in compared if name in other}
        for name in compared:
            if name in entry:
                assert other[name] == pytest.approx(entry[name], rel=1e-4, abs=1e-6), name
    assert any(entry.get("jepa_loss", 0) > 0 for entry in logs[0])
