"""Two gloo processes: SIGReg's value and averaged gradient equal one process on the joint batch, of any split."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist

from hf_jepa.objectives import SIGReg
from tests.processes import run_in_two_processes

SPLITS = ((6, 6), (9, 3), (11, 1))
FORMS = (
    {},
    {"form": "paper", "t_max": 3, "num_points": 10, "scale_by_batch": False},
    {"form": "survey", "flatten_views": True},
)


def joint() -> tuple[torch.Tensor, torch.nn.Linear]:
    torch.manual_seed(3)
    return 2 * torch.randn(3, 12, 5), torch.nn.Linear(5, 6)


def worker(folder: Path, modules: list[SIGReg]) -> None:
    # Tensors that processes are given are shared between them; a step counter is not to be.
    rank, modules = dist.get_rank(), copy.deepcopy(modules)
    inputs, layer = joint()
    model = torch.nn.parallel.DistributedDataParallel(layer)
    results = []
    for split in SPLITS:
        part = inputs.split(split, dim=1)[rank]
        for module in modules:
            model.zero_grad()
            value = module(model(part))
            value.backward()
            results.append((value.detach(), [parameter.grad.clone() for parameter in layer.parameters()]))
    torch.save(results, folder / f"rank{rank}.pt")


def test_two_processes_equal_one(tmp_path):
    modules = [SIGReg(16, **form) for form in FORMS]  # before the process group, as trainers often do
    run_in_two_processes(worker, tmp_path, modules)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    inputs, layer = joint()
    expected = []
    for _ in SPLITS:
        for module in modules:
            value = module(layer(inputs))
            expected.append((value.detach(), torch.autograd.grad(value, list(layer.parameters()))))
    assert len(expected) == len(ranks[0]) == len(SPLITS) * len(FORMS)
    for results in ranks:
        for (value, gradients), (reference, exact) in zip(results, expected, strict=True):
            torch.testing.assert_close(value, reference, rtol=2e-6, atol=0)
            for gradient, truth in zip(gradients, exact, strict=True):
                torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-6)
