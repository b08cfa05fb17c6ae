"""Two gloo processes: a model with batch norm has the loss and gradient of one process on the joint batch."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoConfig

from hf_jepa import (
    LeJepaForPreTraining,
    LeJepaPreTrainingConfig,
    SimSiamForPreTraining,
    SimSiamPreTrainingConfig,
    VICRegForPreTraining,
    VICRegPreTrainingConfig,
)
from hf_jepa.training.jepa.batch_norm import JointBatchNorm, synchronize_batch_norm
from tests.processes import run_in_two_processes


def models() -> list[nn.Module]:
    torch.manual_seed(5)
    encoder = AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    shared = {"image_size": 16}
    averaged = LeJepaForPreTraining(
        LeJepaPreTrainingConfig(
            encoder_config=copy.deepcopy(encoder),
            projector_hidden_size=16,
            projection_size=4,
            centre="global_views",
            target="ema",
            **shared,
        )
    )
    averaged.update_target(0.5)
    return [
        averaged,
        LeJepaForPreTraining(
            LeJepaPreTrainingConfig(
                encoder_config=copy.deepcopy(encoder),
                embedding_size=None,
                projector_hidden_size=16,
                projection_size=4,
                **shared,
            )
        ),
        VICRegForPreTraining(
            VICRegPreTrainingConfig(
                encoder_config=copy.deepcopy(encoder), projector_hidden_size=16, projection_size=8, **shared
            )
        ),
        SimSiamForPreTraining(
            SimSiamPreTrainingConfig(
                encoder_config=copy.deepcopy(encoder), projection_size=8, predictor_hidden_size=4, **shared
            )
        ),
    ]


def joint_views() -> torch.Tensor:
    torch.manual_seed(6)
    # Ranks whose images differ in brightness: local statistics would give another result.
    return torch.randn(8, 2, 3, 16, 16) + torch.arange(8).view(-1, 1, 1, 1, 1) / 4


def worker(folder: Path) -> None:
    rank = dist.get_rank()
    results = []
    for model in models():
        synchronize_batch_norm(model)
        parallel = nn.parallel.DistributedDataParallel(model.train())
        output = parallel(joint_views()[4 * rank : 4 * rank + 4])
        output.loss.backward()
        loss = output.loss.detach().clone()
        dist.all_reduce(loss)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss / 2, gradients, dict(model.named_buffers())))
    torch.save(results, folder / f"rank{rank}.pt")


def test_two_processes_equal_one(tmp_path):
    run_in_two_processes(worker, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for model, (loss, gradients, buffers) in zip(models(), found, strict=True):
            output = model.train()(joint_views())
            output.loss.backward()
            torch.testing.assert_close(loss, output.loss.detach(), rtol=1e-5, atol=1e-6)
            largest = max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    # Float32 rounding of two orders of summation, through batch norms of eight images.
                    torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5 * float(largest))
            for name, buffer in model.named_buffers():
                torch.testing.assert_close(buffers[name], buffer, rtol=1e-5, atol=1e-6)


def test_conversion_keeps_names_and_behaviour_in_one_process():
    model = models()[3].train()
    converted = copy.deepcopy(model)
    count = sum(type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) for module in model.modules())
    assert synchronize_batch_norm(converted) == count > 0
    assert synchronize_batch_norm(converted) == 0
    assert converted.state_dict().keys() == model.state_dict().keys()
    assert sum(isinstance(module, JointBatchNorm) for module in converted.modules()) == count
    views = joint_views()
    torch.testing.assert_close(converted(views).loss, model(views).loss)
    for name, buffer in model.named_buffers():
        assert torch.equal(converted.get_buffer(name), buffer)
    torch.testing.assert_close(converted.eval()(views).loss, model.eval()(views).loss)
    # A released encoder goes on a machine without processes.
    assert torch.isfinite(converted.export_encoder()(views[:, 0]).pooler_output).all()


def test_other_batch_norms_are_named(caplog):
    import timm
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        synchronize_batch_norm(timm.create_model("mobilenetv3_small_050", num_classes=0))
    finally:
        logging.disable_propagation()
    assert "BatchNormAct2d" in caplog.text
