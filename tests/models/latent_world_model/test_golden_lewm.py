"""LeWM's and SMWM's numbers, recorded from the released code."""

import pytest
import torch
from transformers.optimization import get_scheduler

from hf_jepa.objectives import sigreg

from .conftest import assert_close, by_original_key, gradients, lewm_config, lewm_model


@pytest.fixture
def case(golden):
    return golden("lewm_forward")


@pytest.fixture
def model(case):
    return lewm_model(case.group("weights/"), lewm_config(case.config))


def _hidden_states(model, frames, actions):
    """What the encoder's and the predictor's layers make of them, by the recorded names."""
    recorded = {}

    def record(name):
        def hook(module, inputs, output):
            recorded[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def run(modules, call):
        hooks = [module.register_forward_hook(record(name)) for name, module in modules.items()]
        result = call()
        for hook in hooks:
            hook.remove()
        return result

    modules = {"vit_embeddings": model.encoder.embeddings, "vit_last": model.encoder.layernorm}
    modules |= {f"vit_layer_{index}": layer for index, layer in enumerate(model.encoder.layers)}
    run(modules, lambda: model.encoder(frames.flatten(0, 1)))
    recorded["cls"] = model._pool(frames.flatten(0, 1), "cls")[:, 0].unflatten(0, frames.shape[:2])
    latents = model.encode(frames)
    modules = {f"predictor_layer_{index}": layer for index, layer in enumerate(model.predictor.layers)}
    modules |= {"predictor_out": model.predictor, "act_emb": model.predictor.action_encoder}
    predicted = run(modules, lambda: model._predict(latents[:, :-1], actions[:, : frames.shape[1] - 1]))
    return recorded | {"emb": latents.squeeze(2), "pred": predicted.squeeze(2)}


@pytest.mark.parametrize("mode", ["eval", "train"])
@torch.no_grad()
def test_frames_latents_and_predictions(case, model, mode):
    model.train(mode == "train")
    found = _hidden_states(model, case["input/pixels"], case["input/action"])
    for name in ("cls", "emb", "pred"):
        assert_close(found[name], case[f"{mode}/{name}"])
    assert_close(found["act_emb"].squeeze(), case[f"{mode}/act_emb"][:, :3].squeeze())
    assert_close(found["predictor_out"].squeeze(2), case[f"{mode}/predictor_out"])
    if mode == "eval":
        for name in ("vit_embeddings", "vit_layer_0", "vit_layer_1", "vit_last"):
            assert_close(found[name][:2], case[f"debug/{name}"])
        for index in (0, 1):
            assert_close(found[f"predictor_layer_{index}"].squeeze(2), case[f"debug/predictor_layer_{index}"])
    else:
        buffers = by_original_key(model, dict(model.named_buffers()))
        for key, expected in case.group("buffers_after_train/").items():
            if key.endswith("num_batches_tracked"):
                assert buffers[key] == expected
            else:
                assert_close(buffers[key], expected)


@torch.no_grad()
def test_raw_frames_are_normalised_and_other_sizes_read(case, model):
    assert_close(model.encode(case["input/pixels_uint8"]), case["eval/emb"].unsqueeze(2))
    assert_close(model.encode(case["other_size/pixels"]), case["other_size/emb"].unsqueeze(2))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("context", [1, 3])
@torch.no_grad()
def test_rollout_and_cost(case, model, context, use_cache):
    name = "rollout1" if context == 1 else "rolloutH"
    latents = model.encode(case["plan/pixels_uint8"][:, -context:])
    past = case["plan/action_history"] if context > 1 else None
    candidates = case["plan/candidates"].flatten(0, 1)
    imagined = model.rollout(latents, candidates, past_actions=past, use_cache=use_cache)
    assert_close(imagined.squeeze(2).unflatten(0, (2, 4)), case[f"{name}/predicted_emb"][:, :, context:])
    goal = model.encode_goal(case["plan/goal_uint8"])
    assert_close(goal, case["rollout1/goal_emb"])
    assert_close(model.cost(imagined, goal, norm="l2").unflatten(0, (2, 4)), case[f"{name}/cost"])


@torch.no_grad()
def test_rollout_with_a_window_of_one_frame(case):
    weights = case.group("weights/")
    weights["predictor.pos_embedding"] = weights["predictor.pos_embedding"][:, :1]
    model = lewm_model(weights, lewm_config(case.config, context_frames=1))
    latents = model.encode(case["plan/pixels_uint8"][:, -1:])
    imagined = model.rollout(latents, case["plan/candidates"].flatten(0, 1))
    assert_close(imagined.squeeze(2).unflatten(0, (2, 4)), case["rollout1/predicted_emb_window1"][:, :, 1:])


def _grad_of_latents(model, loss_name, latents):
    return torch.autograd.grad(loss_name, latents, retain_graph=True)[0].squeeze(2)


def test_loss_and_gradients(golden):
    case = golden("lewm_loss")
    model = lewm_model(case.group("init/"), lewm_config(case.config)).train()
    frames, actions = case["input/pixels"][0], case["input/action"][0]
    directions = case["input/directions"][0]
    kept = {}

    def keep(latents):
        kept["latents"] = latents
        return latents

    encode = model.encode
    model.encode = lambda *args: keep(encode(*args))
    output = model(frames, actions, directions=directions)
    latents = kept["latents"]
    terms = output.loss_components
    assert terms.keys() == {"prediction", "sigreg"}
    assert abs(terms["prediction"] - case["loss/pred_loss"]) <= 2e-6
    assert abs(terms["sigreg"] - case["loss/sigreg_loss"]) <= 2e-6
    assert abs(output.loss - case["loss/total"]) <= 2e-6
    assert_close(latents.squeeze(2), case["out/emb"])
    assert_close(output.predictions[0].squeeze(2), case["out/pred"])
    per_step = torch.stack([sigreg(latents[:, step, 0], directions) for step in range(4)])
    assert_close(per_step, case["out/sigreg_per_step"])
    prediction = (output.predictions[0] - latents[:, 1:]).square().mean()
    assert_close(_grad_of_latents(model, prediction, latents), case["grad_emb/pred"], 5e-5)
    assert_close(_grad_of_latents(model, output.loss, latents), case["grad_emb/total"], 5e-5)
    assert_close(_grad_of_latents(model, per_step.mean(), latents), case["grad_emb/sigreg"], 5e-5)
    output.loss.backward()
    found = by_original_key(model, gradients(model))
    for key, expected in case.group("grad/").items():
        assert_close(found[key], expected, 5e-5)
    for key, norm in case.facts["grad_norms"]["tensors"].items():
        assert abs(found[key].norm() - norm) <= 5e-5 * norm + 1e-5, key


def test_training_trajectory(golden):
    case = golden("lewm_loss")
    model = lewm_model(case.group("init/"), lewm_config(case.config)).train()
    facts = case.config
    optimizer = torch.optim.AdamW(model.parameters(), lr=facts["lr"], weight_decay=facts["wd"])
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=facts["steps"])
    for step in range(facts["steps"]):
        batch = step % 2
        directions = case["input/directions"][step]
        assert abs(scheduler.get_last_lr()[0] - case["train/lr"][step]) <= 1e-9
        output = model(case["input/pixels"][batch], case["input/action"][batch], directions=directions)
        assert abs(output.loss - case["train/loss"][step]) <= 1e-5
        assert abs(output.loss_components["prediction"] - case["train/pred_loss"][step]) <= 1e-5
        assert abs(output.loss_components["sigreg"] - case["train/sigreg_loss"][step]) <= 1e-5
        optimizer.zero_grad()
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), facts["clip"])
        assert abs(norm - case["train/grad_norm"][step]) <= 5e-5 * norm
        optimizer.step()
        scheduler.step()
    final = by_original_key(model, model.state_dict())
    rounding = case.facts["update_fp32_vs_fp64_relative_l2"]
    compared = 0
    for key, expected in case.group("final/").items():
        if key in case.facts["zero_gradient"] or not expected.is_floating_point():
            continue
        if key.endswith("running_mean"):
            assert_close(final[key], expected, 1e-2)
            continue
        update = expected - case[f"init/{key}"]
        allowed = max(1e-3, 10 * rounding.get(key, 0.0))
        assert (final[key] - expected).norm() <= allowed * update.norm(), key
        compared += 1
    assert compared > 40


@pytest.mark.parametrize("history", ["h1", "hH"])
@pytest.mark.parametrize("objective", ["pred", "pred_inv", "pred_inv_sigreg"])
def test_sensorimotor_loss_and_gradients(golden, history, objective):
    case = golden("smwm_loss")
    facts = case.config
    config = lewm_config(
        facts,
        inverse_hidden_size=facts["idm_hidden"],
        inverse_dynamics_weight=facts["lambda_inverse"],
        sigreg_weight=facts["lambda_sigreg"] if objective == "pred_inv_sigreg" else 0.0,
    )
    model = lewm_model(case.group("weights/"), config).train()
    if objective == "pred":
        model.inverse_model = None
    frames = 2 if history == "h1" else facts["num_frames"] + 1
    kept = {}
    encode = model.encode

    def keep(*args):
        kept["latents"] = encode(*args)
        return kept["latents"]

    model.encode = keep
    pixels, actions = case["input/pixels_uint8"][:, :frames], case["input/action"][:, :frames]
    output = model(pixels, actions, directions=case["input/directions"])
    names = {"prediction": "pred_loss", "inverse_dynamics": "inv_loss", "sigreg": "sigreg_loss"}
    for name, value in output.loss_components.items():
        assert abs(value - case[f"{history}/{objective}/{names[name]}"]) <= 2e-6, name
    assert abs(output.loss - case[f"{history}/{objective}/loss"]) <= 1e-5
    latents = kept["latents"]
    assert_close(latents.squeeze(2), case[f"{history}/emb"])
    assert_close(output.predictions[0].squeeze(2), case[f"{history}/pred"])
    total = _grad_of_latents(model, output.loss, latents)
    assert_close(total, case[f"{history}/{objective}/grad_emb"], 5e-5)
    if objective != "pred_inv":
        return
    predicted = model.inverse_model(latents[:, :-1], latents[:, 1:])
    assert_close(predicted, case[f"{history}/pred_action"])
    output.loss.backward()
    found = by_original_key(model, gradients(model))
    for key, expected in case.group(f"{history}/grad/").items():
        assert_close(found[key], expected, 5e-5)


@torch.no_grad()
def test_sensorimotor_frames_are_resized_before_they_are_normalised(golden):
    case = golden("smwm_loss")
    facts = case.config
    config = lewm_config(facts, inverse_hidden_size=facts["idm_hidden"], inverse_dynamics_weight=1.0)
    model = lewm_model(case.group("weights/"), config)
    frames = case["resize/pixels_uint8"]
    assert_close(model._preprocess(frames.flatten(0, 1)), case["resize/pixels"])
    assert_close(model.encode(frames).squeeze(2), case["resize/emb"])
