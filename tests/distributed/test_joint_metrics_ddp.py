"""What two gloo processes log of features and embeddings is what one process finds on the joint batch."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from hf_jepa.training.jepa.metrics import StepMetrics
from hf_jepa.training.llm.metrics import PairMetrics
from hf_jepa.training.vl.metrics import RetrievalMetrics
from tests.processes import run_in_two_processes

# Images of each process and their tokens: a pair would look alike to itself; one alone has nothing to compare with;
# clips of another length are left out.
SHARES = {
    "even": ((2, 5), (2, 5)),
    "one each": ((1, 5), (1, 5)),
    "uneven": ((3, 5), (1, 5)),
    "mixed": ((3, 5), (2, 7)),
}


def features(count: int, length: int, first: int) -> torch.Tensor:
    """Around a large mean, as after a collapse; images of one process are nearly equal."""
    generator = torch.Generator().manual_seed(first)
    return 100 + first + torch.randn(count, length, 8, generator=generator) * 1e-3


def outputs(**fields: object) -> SimpleNamespace:
    fields = {"predictions": None, "targets": None, **fields}
    return SimpleNamespace(loss=torch.ones(()), loss_components={}, counts={}, logit_scale=None, **fields)


def log_projections(rank: int | None, accelerator: Accelerator) -> dict[str, float]:
    """Of two micro-batches of two views each, of two images on either process, then of one and three."""
    metrics = StepMetrics()
    for step, shares in enumerate(((2, 2), (2, 2), (1, 3))):
        parts = [features(size, 2, 10 * step + first) for first, size in enumerate(shares)]
        own = torch.cat(parts) if rank is None else parts[rank]
        if step == 1:
            # A log before them has taken the first.
            metrics.drain(accelerator, None)
        metrics.update(outputs(projections=own.transpose(0, 1)), torch.zeros(len(own), 2, 3, 4, 4), step)
    return metrics.drain(accelerator, None)


def pairs(step: int, rows: slice = slice(None)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(8, 6, generator=generator)[rows] for name in ("text", "predicted", "code")}


def log_all(rank: int | None) -> dict[str, dict[str, float]]:
    """As one of two processes, or alone with what both have."""
    accelerator, logs = Accelerator(cpu=True), {}
    for name, shares in SHARES.items():
        parts = [features(*share, first) for first, share in enumerate(shares)]
        own = parts[rank] if rank is not None else torch.cat([part for part in parts if part.shape[1] == 5])
        metrics = StepMetrics()
        metrics.add({}, torch.ones(()), 0)
        logs[name] = metrics.drain(accelerator, own)
    logs["projections"] = log_projections(rank, accelerator)
    own = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    hashes = torch.tensor([0, 1, 2, 3, 0, 1, 4, 5])[own]
    for name, target_hash in (("hashes", hashes), ("no hashes", None)):
        metrics = RetrievalMetrics()
        # More than are looked at.
        for step in range(40):
            found = pairs(step, own)
            metrics.update(
                outputs(pred_embeds=found["predicted"], target_embeds=found["code"], target_hash=target_hash), step
            )
        logs[name] = metrics.drain(accelerator)
    metrics = PairMetrics()
    found = pairs(0) if rank in (None, 0) else dict.fromkeys(pairs(0))
    metrics.update(outputs(**{f"{name}_embeddings": part for name, part in found.items()}), torch.zeros(1, 1), 0)
    logs["pairs on one"] = metrics.drain(accelerator, True)
    return {name: {key: v for key, v in log.items() if "per_second" not in key} for name, log in logs.items()}


def worker(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    torch.save(log_all(rank), folder / f"{rank}.pt")


def test_two_processes_log_what_one_finds_on_the_joint_batch(tmp_path: Path) -> None:
    run_in_two_processes(worker, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    # A guard that stops has to stop both.
    assert first == second
    for name, log in log_all(None).items():
        assert log.keys() == first[name].keys(), name
        assert first[name] == pytest.approx(log, rel=1e-4), name
    assert first["even"]["target_std"] == pytest.approx(0.5, rel=0.01)
    assert first["one each"]["target_rankme"] > 1
    assert first["mixed"]["target_std"] < 0.01
    # Those of one process are nearly equal: half the distance between two of two each, and of one and three.
    assert first["projections"]["projector_std"] == pytest.approx((0.5 + 0.75**0.5 / 2) / 2, rel=0.01)
    assert {"pred_std", "retrieval_at_1"} <= first["no hashes"].keys()
    assert "margin" in first["pairs on one"]
