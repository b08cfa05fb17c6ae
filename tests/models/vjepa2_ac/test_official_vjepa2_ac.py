"""V-JEPA 2-AC against the official numbers: forward, losses, gradients, a training run."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.models.vjepa2_ac import VJepa2ACModel
from hf_jepa.objectives.distances import normalize_targets
from hf_jepa.training.jepa.optimization import parameter_groups
from hf_jepa.training.jepa.schedules import cosine_weight_decay, warmup_stable_decay_learning_rate

from .conftest import GOLDEN, close, module_weights, our_names, tiny_config

VARIANTS = {"no_extrinsics": False, "extrinsics": True}


def arguments(official, use_extrinsics: bool) -> dict[str, torch.Tensor]:
    given = {"actions": official["input/actions"], "states": official["input/states"]}
    return given | ({"extrinsics": official["input/extrinsics"]} if use_extrinsics else {})


def frames_first(clips: torch.Tensor) -> torch.Tensor:
    """Official clips are (batch, channels, frames, height, width)."""
    return clips.transpose(1, 2)


def official_latents(official) -> torch.Tensor:
    return official["expected/target_normalized"].unflatten(1, (4, 16))


def test_frames_are_encoded_one_by_one_and_layer_normed(load, official):
    latents = load().encode(frames_first(official["input/clips"]))
    close(latents.flatten(1, 2), official["expected/target_normalized"])


@pytest.mark.parametrize("attention", ["sdpa", "eager", "cpu_bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_step(load, official, variant, attention):
    model = load(use_extrinsics=VARIANTS[variant]).train()
    model.set_attn_implementation(attention)
    output = model(official_latents(official), **arguments(official, VARIANTS[variant]))
    expected = {key.removeprefix(f"expected/{variant}/"): value for key, value in official.items() if variant in key}
    close(output.predictions[0].flatten(1, 2), expected["z_teacher_forced"])
    close(output.predictions[1].flatten(1, 2), expected["z_rollout"])
    assert float(output.loss.detach()) == pytest.approx(float(expected["loss"]), abs=2e-6)
    for name in ("teacher_forcing", "rollout"):
        recorded = expected["loss_teacher_forced" if name == "teacher_forcing" else "loss_rollout"]
        assert float(output.loss_components[name]) == pytest.approx(float(recorded), abs=2e-6)

    output.loss.backward()
    prefix = f"grad/{variant}/predictor/"
    gradients = {key.removeprefix(prefix): value for key, value in official.items() if key.startswith(prefix)}
    assert len(gradients) == 7 + VARIANTS[variant]
    for key, gradient in gradients.items():
        names = our_names(key, "predictor")
        close(torch.cat([model.predictor.get_parameter(name).grad for name in names]), gradient, 5e-5)
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_from_pixels(load, official, variant):
    model = load(use_extrinsics=VARIANTS[variant]).train()
    clips = frames_first(official["input/clips"])
    output = model(pixel_values_videos=clips, **arguments(official, VARIANTS[variant]))
    assert float(output.loss.detach()) == pytest.approx(float(official[f"expected/{variant}/loss"]), abs=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_raw_predictor_calls(load, official, variant):
    model = load(use_extrinsics=VARIANTS[variant])
    latents = official_latents(official)
    given = arguments(official, VARIANTS[variant]) | {"latents": latents}
    forced, _ = model.predictor(**{name: tensor[:, :3] for name, tensor in given.items()})
    close(forced.flatten(1, 2), official[f"expected/{variant}/predictor_raw_teacher_forced"])
    one, _ = model.predictor(**{name: tensor[:, :1] for name, tensor in given.items()})
    close(one.flatten(1, 2), official[f"direct/{variant}/one_frame"])
    rolled = torch.cat([latents[:, :1], normalize_targets(forced[:, :1])], dim=1)
    two, _ = model.predictor(rolled, **{name: given[name][:, :2] for name in given if name != "latents"})
    close(two.flatten(1, 2), official[f"expected/{variant}/predictor_raw_rollout_call1"])


def test_who_sees_whom_is_the_official_mask(official):
    model = VJepa2ACModel(tiny_config(num_hidden_layers=1)).eval()
    calls, seen = [], []
    # One layer, so that a gradient tells who attends to whom.
    model.predictor.layer[0].attention.register_forward_hook(lambda *call: calls.append(call))
    model.predictor(torch.randn(1, 3, 4, 32), torch.randn(1, 3, 7), torch.randn(1, 3, 7))
    ((_, (tokens, *_), (output, _)),) = calls
    for position in range(output.shape[1]):
        (gradient,) = torch.autograd.grad(output[0, position, 0], tokens, retain_graph=True)
        seen.append(gradient[0].abs().amax(-1) > 0)
    assert torch.equal(torch.stack(seen).to(torch.uint8), official["direct/causal_mask_T3_H2_W2_add2"])


def test_training_run():
    tensors = load_file(GOLDEN / "vjepa2_ac_train.safetensors")
    record = json.loads((GOLDEN / "vjepa2_ac_train.json").read_text())
    settings, steps = record["config"]["optimization"], record["config"]["steps"]
    model = VJepa2ACModel(tiny_config()).train()
    model.predictor.load_state_dict(module_weights(tensors, "init/predictor/", "predictor"))
    start = {name: parameter.detach().clone() for name, parameter in model.predictor.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), betas=(0.9, 0.999), eps=1e-8)
    per_epoch = settings["ipe"]
    for step in range(steps):
        rate = warmup_stable_decay_learning_rate(
            step,
            total_steps=steps,
            warmup_steps=settings["warmup"] * per_epoch,
            decay_steps=settings["anneal"] * per_epoch,
            start=settings["start_lr"],
            peak=settings["lr"],
            end=settings["final_lr"],
        )
        decay = cosine_weight_decay(step, steps, start=settings["weight_decay"], end=settings["final_weight_decay"])
        assert rate == pytest.approx(float(tensors["expected/lr"][step]), abs=1e-9)
        assert decay == pytest.approx(float(tensors["expected/weight_decay"][step]), abs=1e-9)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate, decay if group["decays"] else 0.0
        output = model(
            tensors["input/target_normalized"][step].unflatten(1, (4, 16)),
            tensors["input/actions"][step],
            tensors["input/states"][step],
        )
        assert float(output.loss.detach()) == pytest.approx(float(tensors["expected/loss"][step]), abs=1e-5)
        for name, key in (("teacher_forcing", "loss_teacher_forced"), ("rollout", "loss_rollout")):
            recorded = float(tensors[f"expected/{key}"][step])
            assert float(output.loss_components[name]) == pytest.approx(recorded, abs=1e-5)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    for name, final in module_weights(tensors, "final/predictor/", "predictor").items():
        moved, expected = model.predictor.get_parameter(name).detach() - start[name], final - start[name]
        if "key.bias" in name:  # its gradient is zero but for rounding
            continue
        assert (moved - expected).norm() <= 1e-3 * expected.norm(), name
