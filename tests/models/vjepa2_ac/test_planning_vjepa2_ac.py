"""Plans with V-JEPA 2-AC: the official planner's run on the official weights, and batches of episodes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.models.vjepa2_ac import VJepa2ACModel
from hf_jepa.planning import CEMPlanner, GradientPlanner

from .conftest import GOLDEN, module_weights, tiny_config


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vjepa2_ac_cem.safetensors")


@pytest.fixture(scope="module")
def model(recorded) -> VJepa2ACModel:
    model = VJepa2ACModel(tiny_config()).eval()
    model.predictor.load_state_dict(module_weights(recorded, "predictor/", "predictor"))
    return model


def official_planner(close_gripper: int | None = None, **changes) -> CEMPlanner:
    mpc = json.loads((GOLDEN / "vjepa2_ac_cem.json").read_text())["config"]["mpc"]
    positions = (mpc["maxnorm"],) * 3 + (0.0,) * 3
    settings = {
        "horizon": mpc["rollout"],
        "num_samples": mpc["samples"],
        "num_iterations": mpc["cem_steps"],
        "num_elites": mpc["topk"],
        "limit": (*positions, 0.75),
        "initial_std": (*positions, 1.0),
        "mean_momentum": (mpc["momentum_mean"],) * 6 + (mpc["momentum_mean_gripper"],),
        "std_momentum": (mpc["momentum_std"],) * 6 + (mpc["momentum_std_gripper"],),
        "close_gripper": close_gripper,
    }
    return CEMPlanner.vjepa2_ac(**(settings | changes))


@pytest.mark.parametrize("case", ["default", "close_gripper"])
def test_official_search(model, recorded, case):
    given = {name.removeprefix(f"{case}/"): value for name, value in recorded.items() if name.startswith(case)}
    # Recorded as (iterations, horizon, samples, [x, y, z, gripper]).
    noise = torch.zeros(*given["noise"].transpose(1, 2).shape[:3], 7)
    noise[..., [0, 1, 2, 6]] = given["noise"].transpose(1, 2)
    plan, trace = official_planner(1 if case == "close_gripper" else None).plan(
        model,
        recorded["input/context"][:, None],
        recorded["input/goal"],
        noise=noise[:, None],
        states=recorded["input/pose"],
        return_trace=True,
    )
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(torch.stack(trace.candidates)[:, 0], given["actions"], **close)
    torch.testing.assert_close(torch.stack(trace.costs)[:, 0], given["distance"], **close)
    assert torch.equal(torch.stack(trace.elites)[:, 0].sort(-1)[0], given["topk_indices"].sort(-1)[0])
    torch.testing.assert_close(plan[0], given["action"], **close)


def test_a_plan_does_not_depend_on_the_batch_it_is_computed_in(model):
    """Bit for bit where each episode has calls of its own, to rounding where they share them."""
    latents = torch.nn.functional.layer_norm(torch.randn(3, 1, 16, 32), (32,))
    goals = torch.nn.functional.layer_norm(torch.randn(3, 16, 32), (32,))
    states = 0.3 * torch.randn(3, 1, 7)

    def plan(rows: list[int], planner: CEMPlanner) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return planner.plan(model, latents[rows], goals[rows], generators, states=states[rows])

    planner = official_planner(num_iterations=2)
    alone = torch.cat([plan([row], planner) for row in range(3)])
    assert torch.equal(plan([0, 1, 2], planner), alone)
    assert torch.equal(plan([2, 0], planner), alone[[2, 0]])
    shared = plan([0, 1, 2], official_planner(num_iterations=1, max_rollouts=72))
    torch.testing.assert_close(shared, plan([0, 1, 2], official_planner(num_iterations=1)), rtol=0, atol=1e-5)


def test_gradient_descends_through_poses(model, recorded):
    planner = GradientPlanner(horizon=2, num_samples=2, num_iterations=4, norm="l1", limit=0.2, learning_rate=0.01)
    plan, trace = planner.plan(
        model,
        recorded["input/context"][:, None],
        recorded["input/goal"],
        torch.Generator().manual_seed(0),
        return_trace=True,
        states=recorded["input/pose"],
    )
    assert trace.costs[-1].min() < trace.costs[0].min()
    assert (plan[..., 3:6] != 0).any()
    assert plan.abs().max() <= 0.2
