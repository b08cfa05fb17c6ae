"""SMWM's toy, EB-JEPA's two rooms and LeWM's batches, recorded from the released code."""

import pytest
import torch

from hf_jepa import ConvEncoderConfig, LatentWorldModel, LatentWorldModelConfig
from hf_jepa.models.latent_world_model.objective_latent_world_model import regularizers, variance_and_covariance
from hf_jepa.planning import CEMPlanner, MPPIPlanner
from hf_jepa.training.jepa.schedules import warmup_cosine_learning_rate

from .conftest import assert_close, gradients

_TOY_KEYS = {
    "encoder/conv.0": "encoder.stages.0.0",
    "encoder/conv.2": "encoder.stages.1.0",
    "encoder/conv.4": "encoder.stages.2.0",
    "encoder/fc": "encoder.head",
    **{f"forward/net.{index}": f"predictor.layers.{index}" for index in (0, 2, 4)},
    **{f"inverse/net.{index}": f"inverse_model.layers.{index}" for index in (0, 2, 4)},
}
TOY_KEYS = {f"{key}.{kind}": f"{ours}.{kind}" for key, ours in _TOY_KEYS.items() for kind in ("weight", "bias")}


@pytest.fixture
def toy(golden):
    case = golden("smwm_toy")
    facts = case.config
    encoder = ConvEncoderConfig(
        image_size=facts["img"], hidden_sizes=[32, 64, 128], pool_size=2, hidden_size=facts["latent"]
    )
    config = LatentWorldModelConfig(
        encoder_config=encoder,
        latent_space="tanh",
        predictor_type="mlp",
        predictor_hidden_size=facts["hidden"],
        inverse_hidden_size=facts["hidden"],
        inverse_dynamics_weight=facts["lam"],
        action_dim=2,
        action_mean=[0.0, 0.0],
        action_std=[facts["action_scale"]] * 2,
    )
    model = LatentWorldModel(config)
    weights = {TOY_KEYS[key]: value for key, value in case.group("init/").items()}
    model.load_state_dict(weights)
    return case, model.train()


def _toy_batch(case, model, index):
    rows = slice(8 * index, 8 * index + 8)
    frames = torch.stack([case["input/obs_t"][rows], case["input/obs_tp1"][rows]], dim=1)
    return frames, model.normalize_actions(case["input/action"][rows, None])


def test_toy_losses_and_gradients(toy):
    case, model = toy
    kept, encode = {}, model.encode

    def keep(*args):
        kept["latents"] = encode(*args)
        return kept["latents"]

    model.encode = keep
    output = model(*_toy_batch(case, model, 0))
    latents = kept["latents"]
    assert abs(output.loss_components["prediction"] - case["loss/forward"]) <= 2e-6
    assert abs(output.loss_components["inverse_dynamics"] - case["loss/inverse"]) <= 2e-6
    assert abs(output.loss - case["loss/total"]) <= 1e-5
    assert_close(latents[:, 0, 0], case["out/z_t"])
    assert_close(latents[:, 1, 0], case["out/z_tp1"])
    assert_close(output.predictions[0][:, 0, 0], case["out/pred"])
    assert_close(model.inverse_model(latents[:, :-1], latents[:, 1:])[:, 0], case["out/pred_action"])
    forward_loss = (output.predictions[0] - latents[:, 1:]).square().mean()
    grad = torch.autograd.grad(forward_loss, latents, retain_graph=True)[0]
    assert_close(grad[:, 0, 0], case["grad_z_t/forward"], 5e-5)
    assert_close(grad[:, 1, 0], case["grad_z_tp1/forward"], 5e-5)
    output.loss.backward()
    found = gradients(model)
    for key, expected in case.group("grad/").items():
        assert_close(found[TOY_KEYS[key]], expected, 5e-5)
    for key, norm in case.facts["grad_norms"].items():
        assert abs(found[TOY_KEYS[key]].norm() - norm) <= 5e-5 * norm, key


def test_toy_training_trajectory(toy):
    case, model = toy
    optimizer = torch.optim.Adam(model.parameters(), lr=case.config["lr"])
    for step in range(case.config["steps"]):
        output = model(*_toy_batch(case, model, step % 2))
        assert abs(output.loss - case["train/total"][step]) <= 1e-5
        assert abs(output.loss_components["prediction"] - case["train/forward"][step]) <= 1e-5
        assert abs(output.loss_components["inverse_dynamics"] - case["train/inverse"][step]) <= 1e-5
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    state_dict = model.state_dict()
    for key, expected in case.group("final/").items():
        update = expected - case[f"init/{key}"]
        assert (state_dict[TOY_KEYS[key]] - expected).norm() <= 1e-3 * update.norm(), key


def _eb_keys(num_stages: int) -> dict[str, str]:
    keys = {"encoder.mlp": "encoder.head", "encoder.final_ln": "latent_norm"}
    for stage in range(num_stages):
        source, ours = f"encoder.stack_blocks.{stage}", f"encoder.stages.{stage}"
        keys[f"{source}.initial_conv"] = f"{ours}.0"
        for block in (0, 1):
            for conv in ("conv1", "conv2"):
                keys[f"{source}.blocks.{block}.{conv}"] = f"{ours}.{block + 2}.{conv}"
    keys |= {f"regularizer.idm_loss_fn.idm.model.{index}": f"inverse_model.layers.{index}" for index in (0, 2, 4)}
    both = {f"{key}.{kind}": f"{ours}.{kind}" for key, ours in keys.items() for kind in ("weight", "bias")}
    return both | {
        f"predictor.rnn.{name}_l0": f"predictor.cell.{name}"
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }


@pytest.fixture
def rooms(golden):
    case = golden("eb_jepa_wm")
    facts = case.config
    encoder = ConvEncoderConfig(
        block_type="residual",
        image_size=16,
        num_channels=2,
        hidden_sizes=facts["stack_sizes"],
        hidden_size=facts["D"],
    )
    config = LatentWorldModelConfig.from_preset(
        "eb_jepa", encoder_config=encoder, rollout_steps=facts["K"], inverse_hidden_size=facts["idm_hidden"]
    )
    for name, coefficient in (("variance", "std"), ("covariance", "cov"), ("inverse_dynamics", "idm")):
        assert getattr(config, f"{name}_weight") == facts[f"{coefficient}_coeff"]
    assert config.temporal_similarity_weight == facts["sim_coeff_t"]
    model = LatentWorldModel(config)
    keys = _eb_keys(len(facts["stack_sizes"]))
    weights = case.group("weights/")
    assert torch.equal(weights.pop("predictor.final_ln.weight"), weights["encoder.final_ln.weight"])
    assert torch.equal(weights.pop("predictor.final_ln.bias"), weights["encoder.final_ln.bias"])
    model.load_state_dict({keys[key]: value for key, value in weights.items()})
    return case, model.train(), keys


def _state(tensor: torch.Tensor) -> torch.Tensor:
    """`(B, D, T, 1, 1)` as `(B, T, 1, D)`."""
    return tensor[..., 0, 0].transpose(1, 2).unsqueeze(2)


def test_two_rooms_losses_and_gradients(rooms):
    case, model, keys = rooms
    frames = case["input/observations"].transpose(1, 2)
    actions = case["input/actions"].transpose(1, 2)
    kept, encode = {}, model.encode

    def keep(*args):
        kept["latents"] = encode(*args)
        return kept["latents"]

    model.encode = keep
    output = model(frames, actions)
    latents = kept["latents"]
    assert_close(latents, _state(case["out/state"]))
    assert_close(output.predictions[0], _state(case["out/predicted_states"])[:, 1:])
    names = {
        "prediction": "pred",
        "variance": "std",
        "covariance": "cov",
        "temporal_similarity": "sim",
        "inverse_dynamics": "idm",
    }
    terms = output.loss_components
    for name, original in names.items():
        expected = case[f"loss/{original}"]
        assert abs(terms[name] - expected) <= 5e-6 * expected, name
    for step, expected in enumerate(case["loss/pred_per_step"]):
        assert abs(terms[f"rollout_error_{step + 1}"] - expected) <= 5e-6 * expected
    assert abs(output.loss - case["loss/total"]) <= 5e-6 * case["loss/total"]
    with_gradient = regularizers(latents, model.config, None)
    with_gradient["prediction"] = (output.predictions[0] - latents[:, 1:5]).square().mean()
    predicted = model.inverse_model(latents[:, :-1], latents[:, 1:])
    assert_close(predicted, case["out/idm_pred"])
    with_gradient["inverse_dynamics"] = (predicted - actions[:, :-1]).square().mean()
    for name, original in names.items():
        grad = torch.autograd.grad(with_gradient[name], latents, retain_graph=True)[0]
        assert_close(grad, _state(case[f"grad_state/{original}"]), 5e-5)
    first = variance_and_covariance(latents, "first")
    for value, original in zip(first, ("std", "cov"), strict=True):
        expected = case[f"variant/first_t_only_{original}"]
        assert abs(value - expected) <= 5e-6 * expected
    output.loss.backward()
    found = gradients(model)
    for key, expected in case.group("grad/").items():
        assert_close(found[keys[key]], expected, 5e-5)
    for key, norm in case.facts["grad_norms"]["tensors"].items():
        if key in keys:
            assert abs(found[keys[key]].norm() - norm) <= 5e-5 * norm, key


@torch.no_grad()
def test_two_rooms_rollout(rooms):
    case, model, _ = rooms
    state = _state(case["out/state"])
    actions = case["input/actions"].transpose(1, 2)
    assert_close(model.rollout(state[:, :1], actions[:, :1]), _state(case["gru/next"]))
    assert_close(model.rollout(state[:, :1], actions[:, :4]), _state(case["out/predicted_states"])[:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("planner", ["cem", "mppi"])
def test_two_rooms_planners(rooms, planner):
    """From pictures to actions: the cost is summed over the path, the present included."""
    case, model, _ = rooms
    model.eval()
    model.config.update({"action_mean": [0.0, 0.0], "action_std": [1.0, 1.0]})
    settings = case.config["planner"]
    budget = {
        "horizon": settings["plan_length"],
        "num_samples": settings["num_samples"],
        "num_iterations": settings["n_iters"],
        "num_elites": settings["num_elites"],
    }
    search = (
        CEMPlanner(**budget, initial_std=settings["var_scale"], max_norm=settings["max_norms"][0])
        if planner == "cem"
        else MPPIPlanner(**budget, initial_std=settings["max_std"], temperature=1 / settings["temperature"])
    )
    raw = case["plan/goal_raw"]
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    scaled = (raw - low) / (high - low + 1e-6)
    mean, std = torch.tensor([[0.0026, 0.0989], [0.0369, 0.2986]])[..., None, None]
    goal = model.encode_goal(((scaled - mean) / (std + 1e-6))[None])
    assert_close(goal, _state(case["plan/goal_state"])[:, 0])
    now = model.encode(case["plan/observation"].transpose(1, 2))

    def summed(path):
        path = torch.cat([now.expand(len(path), -1, -1, -1), path], dim=1)
        return (path - goal).square().mean(dim=(2, 3)).sum(dim=1)

    plan, trace = search.plan(
        model, now, summed, noise=case[f"{planner}/noise"].transpose(1, 2)[:, None], return_trace=True
    )
    assert_close(torch.cat(trace.costs), case[f"{planner}/costs"])
    candidates = case[f"{planner}/candidates"].transpose(2, 3)
    torch.testing.assert_close(torch.cat(trace.candidates), candidates, atol=1e-5, rtol=0)
    if planner == "cem":
        torch.testing.assert_close(plan[0, : len(case["cem/action"])], case["cem/action"], atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(plan[0], case["mppi/mean"], atol=1e-5, rtol=0)


def test_what_the_model_reads_of_a_batch(golden):
    """Statistics belong to raw action columns, blocks are step-major, and padding becomes the mean action."""
    case = golden("lewm_data")
    facts = case.config
    encoder = ConvEncoderConfig(image_size=facts["img"], hidden_sizes=[4], hidden_size=4)
    mean, std = case["expected/mean"][0].tolist(), case["expected/std"][0].tolist()
    config = LatentWorldModelConfig.from_preset(
        "smwm",
        encoder_config=encoder,
        pooling="auto",
        projector_hidden_size=None,
        frameskip=facts["frameskip"],
        action_dim=facts["frameskip"] * facts["a_dim"],
        action_mean=mean,
        action_std=std,
        predictor_type="residual_mlp",
    )
    model = LatentWorldModel(config)
    blocks = model.normalize_actions(case["expected/raw_blocks"])
    expected = case["expected/blocks"]
    assert torch.equal(blocks.isnan(), expected.isnan())
    assert expected.isnan().any()
    assert_close(blocks.nan_to_num(), expected.nan_to_num(), 1e-6)
    pixels = case["expected/pixels_u8"]
    assert_close(model._preprocess(pixels.flatten(0, 1)), case["expected/pixels"].flatten(0, 1), 1e-6)
    seen = {}
    model.predictor.register_forward_hook(lambda module, inputs, output: seen.update(actions=inputs[1]))
    loss = model(pixels, blocks).loss
    assert loss.isfinite()
    assert_close(seen["actions"], case["expected/blocks_model"][:, :-1], 1e-6)


def test_two_rooms_learning_rate(golden):
    """Its first update is at the start of the warmup, ours one increment further."""
    recorded = golden("eb_jepa_wm")["schedule/lr"].tolist()
    for step, expected in enumerate(recorded):
        found = warmup_cosine_learning_rate(step - 1, 40, warmup_steps=4, start=1e-11, peak=1e-3, end=1e-5)
        assert found == pytest.approx(expected, rel=1e-9), step
