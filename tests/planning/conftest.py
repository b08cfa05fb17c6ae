import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_jepa.world_model import WorldModelConfig, WorldModelMixin


class PointConfig(WorldModelConfig):
    model_type = "test_point"


class PointModel(WorldModelMixin, PreTrainedModel):
    """A point that actions push about, seen through a random rotation into `width` numbers; nothing is learned."""

    config_class = PointConfig
    width = 16

    def __init__(self, config: PointConfig) -> None:
        super().__init__(config)
        seeded = torch.Generator().manual_seed(0)
        self.lift = nn.Parameter(torch.randn(config.action_dim, self.width, generator=seeded) / 2)
        self.mixing = nn.Parameter(
            torch.eye(self.width) + 0.05 * torch.randn(self.width, self.width, generator=seeded)
        )

    def encode(self, pixel_values, proprio=None):
        return pixel_values.flatten(2)[..., None, : self.width].float()

    def rollout(self, latents, actions, states=None, extrinsics=None, use_cache=True, past_actions=None):
        self.check_rollout(latents, actions, past_actions)
        now = latents[:, -1].repeat_interleave(len(actions) // len(latents), dim=0)
        path = []
        for step in range(actions.shape[1]):
            push = (actions[:, step] @ self.lift)[:, None] @ self.mixing
            now = now + push + 0.1 * torch.tanh(push)
            path.append(now)
        return torch.stack(path, dim=1)


def make(**settings):
    defaults = {
        "action_dim": 2,
        "action_mean": [0.0, 0.0],
        "action_std": [1.0, 1.0],
        "action_low": [-1.0, -1.0],
        "action_high": [1.0, 1.0],
    }
    return PointModel(PointConfig(**{**defaults, **settings})).eval()


@pytest.fixture
def point():
    """Makes a [`PointModel`] with the settings given."""
    return make
