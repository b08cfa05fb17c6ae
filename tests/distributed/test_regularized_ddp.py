"""Two gloo processes: a regularized I-JEPA's loss and averaged gradient equal one process on the joint batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hf_jepa import IJepaForPreTraining
from hf_jepa.modeling_jepa import JepaOutput
from tests.processes import run_in_two_processes
from tests.tiny_models import tiny_ijepa

VARIANTS = [("sigreg", "stop_gradient"), ("sigreg", "shared"), ("rdmreg", "shared"), ("vicreg", "ema")]


def joint(regularizer: str, target: str) -> tuple[IJepaForPreTraining, torch.Tensor]:
    torch.manual_seed(3)
    encoder = {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 4}
    fields = {"predictor_hidden_size": 8, "initialization": "fan_in", "num_slices": 32}
    model = tiny_ijepa(encoder, regularizer=regularizer, target=target, **fields)
    return model.train(), torch.randn(8, 3, 16, 16)


def step(model: torch.nn.Module, pixel_values: torch.Tensor) -> JepaOutput:
    rows = len(pixel_values)
    context, target = torch.arange(8).expand(rows, -1), torch.arange(9, 14).expand(rows, -1)
    output = model(pixel_values, [context], [target])
    output.loss.backward()
    return output


def worker(folder: Path) -> None:
    rank = dist.get_rank()
    for regularizer, target in VARIANTS:
        model, pixels = joint(regularizer, target)
        output = step(torch.nn.parallel.DistributedDataParallel(model), pixels[4 * rank : 4 * rank + 4])
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found = (output.loss.detach(), output.loss_components[regularizer], gradients)
        torch.save(found, folder / f"{regularizer}-{target}-{rank}.pt")


def test_two_processes_equal_one(tmp_path):
    run_in_two_processes(worker, tmp_path)
    for regularizer, target in VARIANTS:
        name = f"{regularizer}-{target}"
        ranks = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        model, pixels = joint(regularizer, target)
        expected = step(model, pixels)
        # The regularizer is the joint batch's on each rank; the loss as a whole is their mean.
        for _, term, _ in ranks:
            torch.testing.assert_close(term, expected.loss_components[regularizer], rtol=1e-5, atol=0, msg=name)
        assert float(ranks[0][0] + ranks[1][0]) / 2 == pytest.approx(float(expected.loss.detach()), rel=1e-5)
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        for _, _, found in ranks:
            assert found.keys() == gradients.keys()
            for key, gradient in found.items():
                scale = gradients[key].abs().max().item()
                torch.testing.assert_close(gradient, gradients[key], rtol=0, atol=1e-4 * scale + 1e-7, msg=key)
