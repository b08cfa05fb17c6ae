"""Two gloo processes: VICReg's value and averaged gradient equal one process on the joint batch."""

from pathlib import Path

import torch
import torch.distributed as dist

from hf_jepa.objectives import multi_view_vicreg
from tests.processes import run_in_two_processes


def joint() -> tuple[torch.Tensor, torch.nn.Linear]:
    torch.manual_seed(3)
    return torch.randn(3, 8, 5), torch.nn.Linear(5, 6)


def worker(folder: Path) -> None:
    rank = dist.get_rank()
    inputs, layer = joint()
    model = torch.nn.parallel.DistributedDataParallel(layer)
    terms = multi_view_vicreg(model(inputs[:, 4 * rank : 4 * rank + 4]))
    terms.loss.backward()
    sim = terms.sim.detach().clone()
    dist.all_reduce(sim)
    if rank == 0:
        gradients = [parameter.grad for parameter in layer.parameters()]
        torch.save((sim / 2, terms.std.detach(), terms.cov.detach(), gradients), folder / "terms.pt")


def test_two_processes_equal_one(tmp_path):
    run_in_two_processes(worker, tmp_path)
    sim, std, cov, gradients = torch.load(tmp_path / "terms.pt", weights_only=True)
    inputs, layer = joint()
    terms = multi_view_vicreg(layer(inputs))
    terms.loss.backward()
    for ours, expected in ((sim, terms.sim), (std, terms.std), (cov, terms.cov)):
        torch.testing.assert_close(ours, expected.detach())
    for gradient, parameter in zip(gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)
