"""Two gloo processes train LLM-JEPA as one process does on the joint batch, with pairs spread unevenly over them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.llm_jepa_runs import CASES, run_all
from tests.processes import run_in_two_processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    run_all(folders[0])
    run_in_two_processes(run_all, folders[1])
    return folders


@pytest.mark.parametrize("case", CASES)
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
        "cos_paired",
        "margin",
        "rankme_text",
        "eval_lm_loss",
        "eval_jepa_loss",
        "eval_loss",
        "eval_exact_match",
        "eval_cos_paired",
        "eval_margin",
        "eval_rankme_text",
    )
    for entry, other in zip(*logs, strict=True):
        assert {name for name in compared if name in entry} == {name for name in compared if name in other}
        for name in compared:
            if name in entry:
                assert other[name] == pytest.approx(entry[name], rel=1e-4, abs=1e-6), name
    term = case if case in ("sigreg", "vicreg") else "jepa_loss"
    assert any(entry.get(term, 0) > 0 for entry in logs[0])
