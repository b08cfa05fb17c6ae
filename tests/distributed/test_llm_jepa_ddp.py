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


def launch(output: Path, processes: int) -> None:
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("one", "two")]
    for processes, folder in enumerate(folders, start=1):
        launch(folder, processes)
    return folders


@pytest.mark.parametrize("case", ["jepa", "stp", "infonce", "sigreg", "vicreg"])
def test_two_processes_train_and_evaluate_as_one(runs, case):
    expected, found = (load_file(folder / f"{case}.safetensors") for folder in runs)
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    logs = [json.loads((folder / f"{case}.json").read_text()) for folder in runs]
    compared = (
        "loss",
        "lm_loss",
        "jepa_loss",
        "sigreg",
        "vicreg",
        "eval_lm_loss",
        "eval_jepa_loss",
        "eval_loss",
        "eval_exact_match",
    )
    for entry, other in zip(*logs, strict=True):
        assert {name for name in compared if name in entry} == {name for name in compared if name in other}
        for name in compared:
            if name in entry:
                assert other[name] == pytest.approx(entry[name], rel=1e-4, abs=1e-6), name
    term = case if case in ("sigreg", "vicreg") else "jepa_loss"
    assert any(entry.get(term, 0) > 0 for entry in logs[0])
