"""Two gloo processes: a world model has the losses, gradients and weights of one process on the joint batch."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from hf_jepa import (
    ConvEncoderConfig,
    LatentWorldModel,
    LatentWorldModelConfig,
    VJepa2ACConfig,
    VJepa2ACModel,
    VJepaConfig,
)
from hf_jepa.training.jepa.batch_norm import synchronize_batch_norm
from tests.processes import run_in_two_processes

TRANSFORMER = {
    "predictor_type": "transformer",
    "predictor_num_hidden_layers": 1,
    "predictor_num_attention_heads": 2,
    "predictor_head_dim": 4,
    "predictor_intermediate_size": 16,
    "context_frames": 3,
}
VARIANTS = {
    "lewm": {**TRANSFORMER, "projector_hidden_size": 16, "sigreg_weight": 0.1, "inverse_dynamics_weight": 1.0},
    "eb_jepa": {
        "predictor_type": "gru",
        "latent_space": "layer_norm",
        "rollout_steps": 3,
        "variance_weight": 16.0,
        "covariance_weight": 8.0,
        "temporal_similarity_weight": 12.0,
        "temporal_variance_weight": 1.0,
    },
    "discrete": {"latent_variable": "discrete", "num_codes": 3, "code_annealing_steps": 2, "sigreg_weight": 0.1},
    "sparse": {"latent_variable": "sparse", "latent_variable_size": 2, "sigreg_weight": 0.1},
    "noisy": {"latent_variable": "noisy", "latent_variable_size": 2, "sigreg_weight": 0.1},
}


ROBOT = "vjepa2_ac"


def build(name: str) -> LatentWorldModel | VJepa2ACModel:
    torch.manual_seed(5)
    if name == ROBOT:
        encoder = VJepaConfig.from_size(
            "tiny", crop_size=8, patch_size=4, in_chans=1, hidden_size=12, num_hidden_layers=1, num_attention_heads=2
        )
        sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
        return VJepa2ACModel(VJepa2ACConfig(encoder_config=encoder, initializer_range=0.2, **sizes)).train()
    encoder = ConvEncoderConfig(image_size=8, num_channels=1, hidden_sizes=[4, 8], hidden_size=6)
    shared = {"encoder_config": encoder, "action_dim": 2, "num_slices": 8, "predictor_hidden_size": 16}
    return LatentWorldModel(LatentWorldModelConfig(**shared, **VARIANTS[name])).train()


def joint_batch(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(6)
    # Ranks whose frames differ in brightness and padding: local statistics would give another result.
    frames = torch.randn(8, 4, 1, 8, 8) + torch.arange(8).view(-1, 1, 1, 1, 1) / 4
    if name == ROBOT:
        return {"pixel_values_videos": frames, "actions": torch.randn(8, 3, 7), "states": torch.randn(8, 4, 7)}
    mask = torch.ones(8, 3, dtype=torch.bool)
    mask[0, 1:] = False
    return {"pixel_values": frames, "actions": torch.randn(8, 3, 2), "action_mask": mask}


def two_updates(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss before each; the second is that of the weights that the first has made, with draws of its own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(output.loss.detach())
    return torch.stack(losses)


def worker(folder: Path) -> None:
    rank = dist.get_rank()
    results = {}
    for name in (*VARIANTS, ROBOT):
        model = build(name)
        synchronize_batch_norm(model)
        parallel = nn.parallel.DistributedDataParallel(model)
        share = {key: value[4 * rank : 4 * rank + 4] for key, value in joint_batch(name).items()}
        losses = two_updates(parallel, share)
        dist.all_reduce(losses)
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        results[name] = losses / 2, gradients, model.state_dict()
    torch.save(results, folder / f"rank{rank}.pt")


def test_two_processes_equal_one(tmp_path):
    run_in_two_processes(worker, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, (losses, gradients, state) in found.items():
            model = build(name)
            before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            expected = two_updates(model, joint_batch(name))
            assert not torch.isclose(*expected, rtol=1e-3, atol=0)
            torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6, msg=name)
            for key, parameter in model.named_parameters():
                if parameter.grad is None:
                    assert gradients[key] is None, f"{name}: {key}"
                    assert torch.equal(state[key], before[key]), f"{name}: {key}"
                else:
                    torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-4, atol=1e-5, msg=key)
            for key, tensor in model.state_dict().items():
                torch.testing.assert_close(state[key], tensor, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")
