"""The protocol of world models: costs, units of actions, and what is refused."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn

from hf_jepa.world_model import WorldModelConfig, WorldModelMixin


class Walk(WorldModelMixin, nn.Module):
    """Latents are positions; an action is a step."""

    max_steps = 4

    def __init__(self, **config):
        super().__init__()
        self.config = WorldModelConfig(**({"action_dim": 2} | config))

    def encode(self, pixel_values, proprio=None):
        return pixel_values.mean((3, 4))[:, :, None]

    def rollout(self, latents, actions, states=None, extrinsics=None, use_cache=True, past_actions=None):
        self.check_rollout(latents, actions, past_actions, states=(states, 3))
        start = latents[:, -1].repeat_interleave(len(actions) // len(latents), dim=0)
        return start[:, None] + actions.cumsum(1)[:, :, None]


def test_cost_pairs_candidates_with_their_own_goal():
    model = Walk()
    latents = torch.tensor([[0.0, 0.0], [10.0, 10.0]])[:, None, None]
    actions = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]).repeat(2, 1)[:, None]
    path = model.rollout(latents, actions)
    goal = latents[:, 0]
    assert model.cost(path, goal).tolist() == [0.5, 1.0, 3.5] * 2
    assert model.cost(path, goal, norm="l2").tolist() == [1.0, 4.0, 25.0] * 2
    assert model.cost(path, lambda p: p.amax((1, 2, 3))).tolist() == [1.0, 2.0, 4.0, 11.0, 12.0, 14.0]


def test_cost_over_the_path_is_the_average_of_its_frames():
    path = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1).expand(-1, -1, 2, 4)
    goal = torch.zeros(1, 2, 4)
    assert Walk().cost(path, goal).item() == 6
    assert Walk().cost(path, goal, over="path").item() == 3


def test_a_goal_is_an_image_or_the_last_frame_of_a_clip():
    clip = torch.randn(2, 3, 2, 4, 4)
    assert torch.equal(Walk().encode_goal(clip), Walk().encode_goal(clip[:, -1]))
    with pytest.raises(ValueError, match="image or a clip"):
        Walk().encode_goal(clip[0, 0])


def test_units_round_trip_for_every_action_of_a_block():
    model = Walk(
        action_dim=4, frameskip=2, action_mean=[1, 2], action_std=[2, 4], action_low=[-1, 0], action_high=[3, 6]
    )
    block = torch.tensor([3.0, 6.0, -1.0, 2.0])
    assert model.normalize_actions(block).tolist() == [1.0, 1.0, -1.0, 0.0]
    assert torch.equal(model.denormalize_actions(model.normalize_actions(block)), block)
    low, high = model.action_bounds(block)
    assert low.tolist() == [-1.0, -0.5] * 2
    assert high.tolist() == [1.0, 1.0] * 2


def test_a_model_without_statistics_says_so():
    with pytest.raises(ValueError, match="action_mean and action_std"):
        Walk().normalize_actions(torch.zeros(2))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"action_mean": [0.0]}, "2 finite numbers"),
        ({"action_std": [1.0, 0.0]}, "must be positive"),
        ({"action_low": [0.0, 0.0]}, "go together"),
        ({"action_low": [0.0, 0.0], "action_high": [1.0, 0.0]}, "must lie below"),
        ({"action_mean": [float("nan"), 0.0]}, "2 finite numbers"),
        ({"frameskip": 3}, "multiple of `frameskip`"),
    ],
)
def test_statistics_that_make_no_sense_are_refused(field, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        WorldModelConfig(action_dim=2, **field)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": torch.zeros(2, 3, 5)}, "at least one step, 2"),
        ({"actions": torch.zeros(2, 0, 2)}, "at least one step"),
        ({"actions": torch.zeros(3, 3, 2)}, "equally many candidates"),
        ({"actions": torch.full((2, 3, 2), 1.5)}, "beyond the bounds"),
        ({"actions": torch.full((2, 3, 2), float("nan"))}, "NaN"),
        ({"actions": torch.zeros(2, 5, 2)}, "positions for 4"),
        ({"latents": torch.zeros(2, 2, 1, 2)}, "past_actions"),
        ({"latents": torch.full((2, 1, 1, 2), float("inf"))}, "infinite"),
        ({"latents": torch.zeros(2, 1, 2)}, "context, tokens, width"),
        ({"states": torch.full((2, 1, 3), float("nan"))}, "`states` hold NaN"),
        ({"states": torch.zeros(2, 1, 4)}, "`states` must be"),
    ],
)
def test_rollouts_refuse_what_does_not_fit(change, message):
    model = Walk(action_low=[-1, -1], action_high=[1, 1])
    arguments = {"latents": torch.zeros(2, 1, 1, 2), "actions": torch.ones(2, 3, 2)}
    model.rollout(**arguments)
    with pytest.raises(ValueError, match=message):
        model.rollout(**(arguments | change))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_actions_of_any_dtype_are_units_and_steps(dtype):
    model = Walk(action_mean=[1.0, 1.0], action_std=[2.0, 2.0])
    assert model.normalize_actions(torch.tensor([2, 3], dtype=dtype)).tolist() == [0.5, 1.0]
    assert model.denormalize_actions(torch.tensor([0, 1], dtype=dtype)).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("given", [[[[0.0, 0.0]]], np.zeros((1, 1, 2))])
def test_lists_and_arrays_are_no_actions(given):
    model, latents = Walk(action_mean=[0.0, 0.0], action_std=[1.0, 1.0]), torch.zeros(1, 1, 1, 2)
    for use in (
        lambda: model.rollout(latents, given),
        lambda: model.check_window(latents.expand(1, 2, 1, 2), given),
        lambda: model.normalize_actions(given),
        lambda: model.denormalize_actions(given),
    ):
        with pytest.raises(TypeError, match="`actions` must be a tensor, got (list|ndarray): `torch.as_tensor"):
            use()


@pytest.mark.parametrize("goal", [torch.zeros(2, 1, 3), torch.zeros(2, 2, 2), torch.zeros(4, 1, 2), torch.zeros(2, 2)])
def test_a_goal_of_another_size_is_refused(goal):
    with pytest.raises(ValueError, match="goal"):
        Walk().cost(torch.zeros(6, 3, 1, 2), goal)
