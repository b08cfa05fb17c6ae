"""LeWM's planner on LeWM: the recorded searches, from pictures to actions."""

import pytest
import torch

from hf_jepa.planning import CEMPlanner

from .conftest import assert_close, lewm_config, lewm_model


@pytest.mark.parametrize("case", ["plain", "history", "warm"])
def test_recorded_searches(golden, case):
    recorded = golden("lewm_cem")
    facts, found = recorded.config, recorded.group(f"{case}/")
    config = lewm_config(
        facts,
        action_mean=recorded["input/action_mean"][0].tolist(),
        action_std=recorded["input/action_std"][0].tolist(),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    model = lewm_model(recorded.group("weights/"), config)
    planner = CEMPlanner.lewm(
        horizon=facts["horizon"],
        num_samples=facts["samples"],
        num_iterations=facts["iters"],
        num_elites=facts["topk"],
        initial_std=facts["initial_std"][case],
    )
    frames = recorded["input/frames_uint8"]
    frames = frames if case == "history" else frames[:, -1:]
    history = model.denormalize_actions(recorded["input/action_history"]) if case == "history" else None
    start = model.denormalize_actions(recorded["input/init_action"]) if case == "warm" else None
    with torch.no_grad():
        latents = model.encode(frames)
    noise = found["noise"].transpose(0, 1)
    goal = recorded["input/goal_uint8"]
    plan, trace = planner.plan(model, latents, goal, noise=noise, return_trace=True, past_actions=history, start=start)
    assert_close(torch.stack(trace.costs, 1), found["costs"])
    assert torch.equal(torch.stack(trace.elites, 1).sort(-1)[0], found["topk_inds"].sort(-1)[0])
    for ours, name in ((trace.candidates, "candidates"), (trace.means, "mean"), (trace.stds, "std")):
        torch.testing.assert_close(torch.stack(ours, 1), found[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.normalize_actions(plan), found["plan"], atol=1e-5, rtol=0)
