"""Two gloo processes train VL-JEPA as one process does on the joint batch, with and without gradient caching."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).parent / "vl_jepa_program.py"
WORLD = runpy.run_path(str(PROGRAM))


def launch(output: Path, processes: int = 2) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        environment |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(PROGRAM), str(output)]
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
    # One test, so that the processes start once however tests are spread.
    launch(tmp_path / "two")
    compared = ("loss", "prediction_loss", "temperature", "duplicates", "effective_negatives", "eval_loss")
    compared += ("eval_retrieval_at_1", "eval_reverse_retrieval_at_5", "eval_retrieval_median_rank")
    for case in WORLD["CASES"]:
        WORLD["run"](tmp_path / "one" / case, case, 8, None)
        expected = load_file(tmp_path / "one" / case / "weights.safetensors")
        log = json.loads((tmp_path / "one" / case / "log.json").read_text())
        # Duplicates across processes, and not only within one, were seen; so was an evaluation.
        assert log[0]["duplicates"] > 0
        assert log[0]["effective_negatives"] < 7
        assert "eval_loss" in log[-1]
        for way in ("plain", "cached"):
            folder = tmp_path / "two" / case / way
            for name, found in load_file(folder / "weights.safetensors").items():
                torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6, msg=f"{case} {way}: {name}")
            for entry, other in zip(log, json.loads((folder / "log.json").read_text()), strict=True):
                for name in compared:
                    if name in entry:
                        assert other[name] == pytest.approx(entry[name], rel=1e-4, abs=1e-6), (case, way, name)
