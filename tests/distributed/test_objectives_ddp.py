"""Two gloo processes: each objective's value and averaged gradient equal one process on the joint batch."""

import itertools
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from hf_jepa.objectives import (
    InfoNCE,
    RDMReg,
    VICReg,
    VISReg,
    WeakSIGReg,
    alignment,
    info_nce,
    nt_xent,
    rdmreg,
    uniformity,
    variance_hinge,
)
from hf_jepa.objectives.distributed import batch_sizes, gather_batch
from tests.processes import run_in_two_processes

N, VIEWS, WIDTH = 8, 2, 6
# Rows of the first process, equal and unequal; the second has the rest.
SPLITS = (4, 7)


def constants() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(VIEWS, N, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(VIEWS, N, WIDTH, generator=generator, dtype=torch.float64).relu()
    directions = torch.randn(5, WIDTH, generator=generator, dtype=torch.float64)
    return inputs, targets, F.normalize(directions, dim=1)


def rdmreg_of(z: torch.Tensor, rows: slice) -> torch.Tensor:
    _, targets, directions = constants()
    own = rdmreg(z.relu(), targets[:, rows], directions)
    # Fewer directions than processes: one has none to sort.
    return own + 2 * rdmreg(z[0].relu(), targets[0], directions[:1])


def vicreg_of(z: torch.Tensor, rows: slice) -> torch.Tensor:
    wide = torch.cat([z, z.sin()], dim=-1)
    assert wide.shape[-1] > N > z.shape[-1]
    return VICReg()(z).loss + VICReg(convention="survey")(wide).loss


def pairs_of(z: torch.Tensor, rows: slice) -> torch.Tensor:
    terms = [info_nce(*z, 0.2, name) for name in ("both", "predicted_to_target", "target_to_predicted")]
    # Equal targets on one process, and on different ones.
    ids = torch.tensor([0, 1, 0, 2, 3, 1, 4, 0])[rows]
    masked = info_nce(*z, 0.2, target_ids=ids)
    return sum(k * term for k, term in enumerate(terms, start=1)) + 5 * nt_xent(*z) + 7 * masked


def spread_of(z: torch.Tensor, rows: slice) -> torch.Tensor:
    return variance_hinge(z[0], gamma=3.0) + 2 * uniformity(z[0]) + 3 * alignment(*z, 1.5)


CASES = {"rdmreg": rdmreg_of, "vicreg": vicreg_of, "pairs": pairs_of, "spread": spread_of}


class Model(nn.Module):
    def __init__(self, case: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.case = nn.Linear(5, WIDTH).double(), case
        if case == "rdmreg_module":
            self.objective = RDMReg(num_projections=9, projection="svd_bottom_half_random")
        elif case == "visreg":
            self.objective = VISReg(num_slices=9)
        elif case == "weak_sigreg":
            self.objective = WeakSIGReg(sketch_size=3)
        elif case == "learned_temperature":
            self.objective = InfoNCE(0.3).double()

    def forward(self, inputs: torch.Tensor, rows: slice) -> torch.Tensor:
        z = self.encoder(inputs[:, rows])
        if self.case in CASES:
            return CASES[self.case](z, rows)
        return self.objective(*z) if self.case == "learned_temperature" else self.objective(z.relu())


ALL = [*CASES, "rdmreg_module", "visreg", "weak_sigreg", "learned_temperature"]


def worker(folder: Path) -> None:
    rank = dist.get_rank()
    found, inputs = {}, constants()[0]
    for split in SPLITS:
        rows = slice(0, split) if rank == 0 else slice(split, None)
        for case in ALL:
            model = nn.parallel.DistributedDataParallel(Model(case))
            loss = model(inputs, rows)
            loss.backward()
            gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
            found[f"{case}/{split}"] = {"loss": loss.detach(), **gradients}
        # Other backends exchange sizes in a gloo group of their own.
        with mock.patch.object(dist, "get_backend", return_value="nccl"):
            found[f"sizes/{split}"] = torch.tensor(batch_sizes(len(inputs[0, rows])))
            found[f"gathered/{split}"] = gather_batch(inputs[:, rows], dim=1)
    torch.save(found, folder / f"{rank}.pt")


def test_two_processes_equal_one(tmp_path):
    # One test, so that the processes start once however tests are spread.
    run_in_two_processes(worker, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    inputs = constants()[0]
    for case in ALL:
        model = Model(case)
        loss = model(inputs, slice(None))
        loss.backward()
        expected = {"loss": loss.detach(), **{name: parameter.grad for name, parameter in model.named_parameters()}}
        assert all(tensor.abs().max() > 1e-4 for tensor in expected.values()), case
        for split, rank in itertools.product(SPLITS, range(2)):
            ours = found[rank][f"{case}/{split}"]
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12, msg=lambda m, c=case: f"{c}: {m}")
    for split, rank in itertools.product(SPLITS, range(2)):
        assert found[rank][f"sizes/{split}"].tolist() == [split, N - split]
        assert torch.equal(found[rank][f"gathered/{split}"], inputs)
