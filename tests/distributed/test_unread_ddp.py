"""Two gloo processes train encoders of others, whose parameters are not all read by the loss: DDP must not wait."""

import runpy
from pathlib import Path

import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).parent / "unread_program.py"


def test_encoders_with_unread_parameters_train_in_two_processes(run_program, tmp_path: Path) -> None:
    run_program(PROGRAM, tmp_path)
    for name in runpy.run_path(str(PROGRAM))["ENCODERS"]:
        ranks = [load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2)]
        assert all(torch.equal(ranks[0][key], value) for key, value in ranks[1].items()), name
