"""Recorded searches of the published planners: same noise and costs in, same candidates, elites and plans out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.planning import CEMPlanner, MPPIPlanner

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    return load_file(GOLDEN / f"{name}.safetensors"), json.loads((GOLDEN / f"{name}.json").read_text())["config"]


def replay(costs):
    """A goal that returns the costs of one recorded iteration after the other."""
    recorded = iter(costs)
    return lambda latents: next(recorded).flatten()


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["plain", "history", "warm"])
def test_lewm_cem(point, case):
    tensors, config = golden("lewm_cem")
    tensors = {name.removeprefix(f"{case}/"): value for name, value in tensors.items()}
    skip = config["frameskip"]
    model = point(
        action_dim=skip * config["a_dim"],
        frameskip=skip,
        action_mean=tensors["input/action_mean"][0].tolist(),
        action_std=tensors["input/action_std"][0].tolist(),
        action_low=None,
        action_high=None,
    )
    planner = CEMPlanner.lewm(
        horizon=config["horizon"],
        num_samples=config["samples"],
        num_iterations=config["iters"],
        num_elites=config["topk"],
        initial_std=config["initial_std"][case],
    )
    noise, costs = tensors["noise"].transpose(0, 1), tensors["costs"].transpose(0, 1)
    start = model.denormalize_actions(tensors["input/init_action"]) if case == "warm" else None
    latents = torch.zeros(2, 1, 1, model.width)
    plan, trace = planner.plan(model, latents, replay(costs), noise=noise, return_trace=True, start=start)
    close(torch.stack(trace.candidates, 1), tensors["candidates"])
    assert torch.equal(torch.stack(trace.elites, 1).sort(-1)[0], tensors["topk_inds"].sort(-1)[0])
    close(torch.stack(trace.means, 1), tensors["mean"])
    close(torch.stack(trace.stds, 1), tensors["std"])
    close(model.normalize_actions(plan), tensors["plan"])
    if case == "plain":
        receding = config["receding"]
        close(plan[:, :receding].reshape(2, receding * skip, -1), tensors["policy/env_actions"])
        close(model.normalize_actions(plan[:, receding:]), tensors["policy/next_init"])


@pytest.mark.parametrize("case", ["default", "close_gripper"])
def test_vjepa2_ac_cem(point, case):
    tensors, config = golden("vjepa2_ac_cem")
    tensors = {name.removeprefix(f"{case}/"): value for name, value in tensors.items()}
    mpc = config["mpc"]
    width = 7
    model = point(
        action_dim=width, action_mean=[0.0] * width, action_std=[1.0] * width, action_low=None, action_high=None
    )
    positions = (mpc["maxnorm"],) * 3 + (0.0,) * 3

    def momentum(name):
        return (mpc[f"momentum_{name}"],) * 6 + (mpc[f"momentum_{name}_gripper"],)

    planner = CEMPlanner.vjepa2_ac(
        horizon=mpc["rollout"],
        num_samples=mpc["samples"],
        num_iterations=mpc["cem_steps"],
        num_elites=mpc["topk"],
        limit=(*positions, 0.75),
        initial_std=(*positions, 1.0),
        mean_momentum=momentum("mean"),
        std_momentum=momentum("std"),
        close_gripper=1 if case == "close_gripper" else None,
    )
    recorded = tensors["noise"].transpose(1, 2)
    noise = torch.zeros(*recorded.shape[:3], width)
    noise[..., :3], noise[..., 6] = recorded[..., :3], recorded[..., 3]
    latents = torch.zeros(1, 1, 1, model.width)
    plan, trace = planner.plan(model, latents, replay(tensors["distance"]), noise=noise[:, None], return_trace=True)
    close(torch.cat(trace.candidates), tensors["actions"])
    assert torch.equal(torch.cat(trace.elites).sort(-1)[0], tensors["topk_indices"].sort(-1)[0])
    close(plan[0], tensors["action"])
    after = tensors["action_after_iteration"]
    close(torch.cat(trace.means)[..., :6], after[..., :6])
    # The recording rounds the gripper after every iteration, the planner once, at the end.
    gripper = torch.cat(trace.means)[..., 6]
    close(torch.where(gripper.abs() < 0.25, 0.0, gripper), after[..., 6])


def eb_jepa(point, planner_class, name, **fields):
    """Settings and tensors of one of EB-JEPA's recorded searches, and the plan and trace of ours."""
    tensors, config = golden("eb_jepa_wm")
    settings = config["planner"]
    tensors = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(name)}
    planner = planner_class(
        horizon=settings["plan_length"],
        num_samples=settings["num_samples"],
        num_iterations=settings["n_iters"],
        num_elites=settings["num_elites"],
        **{field: read(settings) for field, read in fields.items()},
    )
    model = point(action_low=None, action_high=None)
    goal, noise = replay(tensors["costs"]), tensors["noise"].transpose(1, 2)[:, None]
    plan, trace = planner.plan(model, torch.zeros(1, 1, 1, model.width), goal, noise=noise, return_trace=True)
    close(torch.cat(trace.candidates), tensors["candidates"].transpose(2, 3))
    return settings, tensors, plan, trace


def test_eb_jepa_mppi(point):
    settings, tensors, plan, trace = eb_jepa(
        point,
        MPPIPlanner,
        "mppi",
        initial_std=lambda settings: settings["max_std"],
        # There it multiplies the cost.
        temperature=lambda settings: 1 / settings["temperature"],
    )
    close(trace.weights[-1][0], tensors["score"])
    close(plan[0], tensors["mean"])
    chosen = trace.candidates[-1][0][trace.elites[-1][0, tensors["choice"]]]
    close(chosen[: settings["num_act_stepped"]], tensors["action"])


def test_eb_jepa_cem(point):
    settings, tensors, plan, trace = eb_jepa(
        point,
        CEMPlanner,
        "cem",
        initial_std=lambda settings: settings["var_scale"],
        max_norm=lambda settings: settings["max_norms"][0],
    )
    cheapest = torch.cat(trace.costs).gather(1, torch.cat(trace.elites))
    close(cheapest[:, 0], tensors["min_cost"])
    close(cheapest.mean(1), tensors["elite_mean"])
    close(cheapest.std(1), tensors["elite_std"])
    close(plan[0, : settings["num_act_stepped"]], tensors["action"])
