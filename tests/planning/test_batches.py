"""An episode's plan is the same, bit for bit, in every batch, of every planner with every kind of predictor."""

import pytest
import torch

from hf_jepa import (
    ConvEncoderConfig,
    LatentWorldModel,
    LatentWorldModelConfig,
    VJepa2ACConfig,
    VJepa2ACModel,
    VJepaConfig,
)
from hf_jepa.planning import CEMPlanner, GradientPlanner, MPCPolicy, MPPIPlanner

SEARCH = {"horizon": 2, "num_iterations": 2, "num_samples": 13, "limit": 0.5}
PLANNERS = {
    "cem": lambda **changes: CEMPlanner(**SEARCH, num_elites=3, **changes),
    "icem": lambda **changes: CEMPlanner(
        **SEARCH, num_elites=3, correlation=0.5, keep_elites=2, result="best", **changes
    ),
    "mppi": lambda **changes: MPPIPlanner(**SEARCH, num_elites=3, **changes),
    "gradient": lambda **changes: GradientPlanner(**SEARCH, **changes),
}
# Odd widths: where kernels work on blocks, batches then differ in what is left over.
TRANSFORMER = {
    "predictor_num_hidden_layers": 2,
    "predictor_num_attention_heads": 3,
    "predictor_head_dim": 7,
    "predictor_intermediate_size": 50,
    "context_frames": 3,
}
EPISODES = 5


def latent_world_model(predictor):
    encoder = ConvEncoderConfig(image_size=16, num_channels=1, hidden_sizes=[6, 10], hidden_size=33)
    return LatentWorldModel(
        LatentWorldModelConfig(
            encoder_config=encoder,
            predictor_type=predictor,
            predictor_hidden_size=65,
            sigreg_weight=0.1,
            action_dim=3,
            action_mean=[0.0] * 3,
            action_std=[1.0] * 3,
            image_mean=[0.5],
            image_std=[0.25],
            **(TRANSFORMER if predictor == "transformer" else {}),
        )
    )


def vjepa2_ac():
    encoder = VJepaConfig.from_size(
        "tiny", crop_size=32, hidden_size=60, num_hidden_layers=1, num_attention_heads=3, in_chans=1
    )
    return VJepa2ACModel(
        VJepa2ACConfig(
            encoder_config=encoder,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            initializer_range=0.2,
            action_mean=[0.0] * 7,
            action_std=[1.0] * 7,
        )
    )


@pytest.fixture(scope="module", params=["residual_mlp", "gru", "transformer", "vjepa2_ac"])
def scene(request):
    torch.manual_seed(0)
    model = (vjepa2_ac() if request.param == "vjepa2_ac" else latent_world_model(request.param)).eval()
    size = 32 if request.param == "vjepa2_ac" else 16
    frames, goals = torch.rand(2, EPISODES, 1, size, size)
    with torch.no_grad():
        latents = model.encode(frames[:, None])
    states = {"states": 0.1 * torch.randn(EPISODES, 1, 7)} if request.param == "vjepa2_ac" else {}
    return model, frames, goals, latents, states


def search(planner, scene, rows):
    model, _, goals, latents, states = scene
    generators = [torch.Generator().manual_seed(row) for row in rows]
    given = {name: value[rows] for name, value in states.items()}
    return planner.plan(model, latents[rows], goals[rows], generators, return_trace=True, **given)


@pytest.mark.parametrize("name", PLANNERS)
def test_plans_and_costs_do_not_depend_on_the_batch(scene, name):
    planner = PLANNERS[name]()
    plans, trace = search(planner, scene, list(range(EPISODES)))
    for rows in ([0], [3], [1, 2], [4, 1], [0, 1, 2]):
        found, own = search(planner, scene, rows)
        assert torch.equal(found, plans[rows])
        for here, there in zip(own.costs, trace.costs, strict=True):
            assert torch.equal(here, there[rows])


def test_shared_calls_plan_alike(scene):
    _, alone = search(PLANNERS["mppi"](), scene, list(range(EPISODES)))
    for most in (4, 26, 1000):
        _, shared = search(PLANNERS["mppi"](max_rollouts=most), scene, list(range(EPISODES)))
        torch.testing.assert_close(shared.costs[0], alone.costs[0], rtol=1e-5, atol=1e-6)


def test_policies_look_at_every_episode_by_itself(scene):
    model, frames, goals, _, states = scene
    given = {name: value[:, 0].numpy() for name, value in states.items()}

    def act(rows):
        policy = MPCPolicy(model, PLANNERS["mppi"](), torch.as_tensor)
        policy.reset(goals[rows].numpy(), rows)
        return policy(frames[rows].numpy(), **{name: value[rows] for name, value in given.items()})

    together = act(list(range(EPISODES)))
    for rows in ([0], [4, 1], [1, 2, 3]):
        assert (act(rows) == together[rows]).all()
