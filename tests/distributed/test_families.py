"""
One model of each family: 2 and 4 gloo processes, under DDP and cut up by FSDP2, train and evaluate as one process on
the joint batch, and release the same weights.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).parent / "families_program.py"
FAMILIES = ("ijepa", "cjepa", "data2vec", "lejepa", "lejepa_timm", "lejepa_averaged", "vjepa2", "llm_jepa", "vl_jepa")
COMPARED = ("loss", "prediction_loss", "lm_loss", "jepa_loss", "vicreg", "sigreg", "grad_norm")
COMPARED += ("eval_knn_accuracy", "eval_ridge_accuracy", "eval_loss", "eval_margin", "eval_retrieval_at_1")


@pytest.fixture(scope="module")
def one(run_program, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run_program(PROGRAM, folder, "ddp", processes=1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "mode"), [(2, "ddp"), (4, "ddp"), (2, "fsdp2")])
def test_many_processes_train_as_one(run_program, one, tmp_path, processes, mode):
    run_program(PROGRAM, tmp_path, mode, processes=processes)
    for family in FAMILIES[: -1 if mode == "fsdp2" else None]:
        expected, found = (load_file(folder / family / "weights.safetensors") for folder in (one, tmp_path))
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            # Running variances of batch norms sum in another order.
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=5e-6, msg=f"{family}: {name}")
        logs = [json.loads((folder / family / "log.json").read_text()) for folder in (one, tmp_path)]
        seen = set()
        for entry, other in zip(*logs, strict=True):
            for name in COMPARED:
                if name in entry:
                    seen.add(name)
                    assert other[name] == pytest.approx(entry[name], rel=2e-4, abs=1e-6), f"{family}: {name}"
        assert {"loss", "grad_norm"} < seen
        assert any(name.startswith("eval_") for name in seen)
