"""Two gloo processes train VL-JEPA as one process does on the joint batch, with and without gradient caching."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_in_two_processes
from tests.vl_jepa_world import CASES, run, run_both_ways, score


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    # One test, so that the processes start once however tests are spread.
    run_in_two_processes(run_both_ways, tmp_path / "two")
    compared = ("loss", "prediction_loss", "temperature", "duplicates", "effective_negatives", "eval_loss")
    compared += ("retrieval_at_1", "pred_std", "target_std", "pred_rankme", "target_rankme")
    compared += ("eval_retrieval_at_1", "eval_reverse_retrieval_at_5", "eval_retrieval_median_rank")
    score(tmp_path / "one")
    files = (
        tmp_path / "one" / "scores-0.json",
        tmp_path / "two" / "scores-0.json",
        tmp_path / "two" / "scores-1.json",
    )
    scores = [json.loads(file.read_text()) for file in files]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    assert scores[1] == scores[2]
    for case in CASES:
        run(tmp_path / "one" / case, case, 8, None)
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
