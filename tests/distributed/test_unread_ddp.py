"""Two gloo processes train encoders of others, whose parameters are not all read by the loss: DDP must not wait."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.distributed.unread_runs import ENCODERS, run_all
from tests.processes import run_in_two_processes


def test_encoders_with_unread_parameters_train_in_two_processes(tmp_path: Path) -> None:
    run_in_two_processes(run_all, tmp_path)
    for name in ENCODERS:
        ranks = [load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2)]
        assert all(torch.equal(ranks[0][key], value) for key, value in ranks[1].items()), name
