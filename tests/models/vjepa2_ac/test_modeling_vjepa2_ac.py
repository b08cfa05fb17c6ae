"""V-JEPA 2-AC: causality, rollouts, what trains and what is refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, ViTConfig, ViTModel, VJEPA2Config

from hf_jepa import VJepa2ACConfig, VJepa2ACModel, VJepaConfig, VJepaModel
from hf_jepa.programs.counting import enable_checkpointing

from .conftest import tiny_config

CONDITIONS = {"actions": 7, "states": 7, "extrinsics": 6}


def new_model(**changes) -> VJepa2ACModel:
    """Weights large enough that actions matter; the official ones are chosen to magnify rounding."""
    return VJepa2ACModel(tiny_config(**({"initializer_range": 0.15} | changes))).eval()


def window(time: int = 5, batch: int = 2, use_extrinsics: bool = False, tokens: int = 16) -> dict[str, torch.Tensor]:
    given = {
        "latents": torch.nn.functional.layer_norm(torch.randn(batch, time, tokens, 32), (32,)),
        "actions": 0.3 * torch.randn(batch, time - 1, 7),
        "states": 0.3 * torch.randn(batch, time, 7),
        "extrinsics": 0.3 * torch.randn(batch, time, 6),
    }
    return given if use_extrinsics else {name: given[name] for name in given if name != "extrinsics"}


@pytest.mark.parametrize("use_extrinsics", [False, True])
@torch.no_grad()
def test_predictions_do_not_depend_on_what_comes_later(load, use_extrinsics):
    # The official weights are chosen to magnify rounding, so they are looked at in float64.
    fresh = VJepa2ACModel(tiny_config(use_extrinsics=use_extrinsics)).eval()
    official = load(use_extrinsics=use_extrinsics).double()
    for model, tolerance in ((fresh, 1e-6), (official, 1e-12)):
        given = {name: tensor.to(model.dtype) for name, tensor in window(6, use_extrinsics=use_extrinsics).items()}
        given = {name: tensor[:, :5] for name, tensor in given.items()}
        whole, _ = model.predictor(**given)
        for time in range(1, 5):
            part, _ = model.predictor(**{name: tensor[:, :time] for name, tensor in given.items()})
            assert (part - whole[:, :time]).abs().max() < tolerance
        for name in given:
            changed = dict(given) | {name: given[name].clone()}
            changed[name][:, 3:] += torch.randn_like(given[name][:, 3:])
            other, _ = model.predictor(**changed)
            assert (other[:, :3] - whole[:, :3]).abs().max() < tolerance
            assert (other[:, 3:] - whole[:, 3:]).abs().amax((0, 2, 3)).min() > 1e-5


@pytest.mark.parametrize("horizon", [2, 4, 8])
@pytest.mark.parametrize(("context", "use_extrinsics"), [(1, False), (3, True)])
@torch.no_grad()
def test_cached_rollouts_equal_full_ones(horizon, context, use_extrinsics):
    model, given = new_model(use_extrinsics=use_extrinsics), window(context, use_extrinsics=use_extrinsics)
    past_actions = given.pop("actions")
    given["past_actions"] = past_actions if context > 1 else None
    actions = 0.1 * torch.randn(2 * 3, horizon, 7)
    cached = model.rollout(actions=actions, **given)
    assert cached.shape == (6, horizon, 16, 32)
    torch.testing.assert_close(cached, model.rollout(actions=actions, **given, use_cache=False), rtol=0, atol=1e-5)


@torch.no_grad()
def test_candidates_of_an_example_are_what_each_is_alone():
    model, given = new_model(), window(2)
    given["past_actions"] = given.pop("actions")
    actions = 0.1 * torch.randn(2, 3, 4, 7)
    together = model.rollout(actions=actions.flatten(0, 1), **given).unflatten(0, (2, 3))
    for candidate in range(3):
        alone = model.rollout(actions=actions[:, candidate], **given)
        torch.testing.assert_close(together[:, candidate], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_rollout_starts_like_teacher_forcing_and_integrates_poses():
    model, given = new_model(), window(4)
    forced = model(**given, rollout_steps=3)
    rolled = model.rollout(given["latents"][:, :1], given["actions"], given["states"])
    torch.testing.assert_close(rolled, forced.predictions[1], rtol=0, atol=1e-5)
    # With the first state alone, the others follow from the actions.
    states = [given["states"][:, 0]]
    for action in given["actions"].unbind(1):
        states.append(model.integrate(states[-1], action))
    imagined = model.rollout(given["latents"][:, :1], given["actions"], given["states"][:, :1])
    told = model.rollout(given["latents"][:, :1], given["actions"], torch.stack(states, dim=1))
    torch.testing.assert_close(imagined, told, rtol=0, atol=1e-6)
    assert (imagined - rolled).abs().max() > 1e-3


def test_a_rollout_of_any_length_trains():
    model, given = new_model().train(), window(6)
    output = model(**given, rollout_steps=5)
    assert output.predictions[1].shape == (2, 5, 16, 32)
    terms = {name: value.item() for name, value in output.loss_components.items()}
    assert output.loss.item() == pytest.approx(terms["teacher_forcing"] + terms["rollout"])
    assert terms["rollout"] == pytest.approx(sum(terms[f"rollout_error_{step}"] for step in range(1, 6)) / 5)
    (gradient,) = torch.autograd.grad(
        output.loss_components["rollout"] + output.predictions[1][:, -1].sum(),
        [model.predictor.action_encoder["droid"].weight],
    )
    assert gradient.abs().max() > 0


def test_plans_can_descend_through_a_rollout():
    model, given = new_model(), window(2)
    actions = torch.zeros(2, 3, 7, requires_grad=True)
    path = model.rollout(given["latents"][:, :1], actions, given["states"][:, :1])
    model.cost(path, given["latents"][:, 1]).sum().backward()
    assert (actions.grad.abs().amax((0, 2)) > 0).all()


def test_gradient_checkpointing_changes_nothing():
    model, given, losses, gradients = new_model().train(), window(4), [], []
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model)
        model.zero_grad()
        loss = model(**given, rollout_steps=3).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.predictor.layer[0].attention.key.weight.grad)
    assert losses[0] == losses[1]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-7)


def test_only_the_predictor_trains_and_no_parameter_is_left_without_a_gradient():
    for use_extrinsics in (False, True):
        model, given = new_model(use_extrinsics=use_extrinsics).train(), window(use_extrinsics=use_extrinsics)
        assert not any(module.training for module in model.encoder.modules())
        assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
        model(**given).loss.backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert ("predictor.extrinsics_encoder.droid.weight" in trained) == use_extrinsics


def test_no_mask_is_stored():
    assert not list(new_model().predictor.buffers())


@torch.no_grad()
def test_frames_do_not_see_each_other():
    model, clip = new_model(), torch.randn(2, 3, 3, 16, 16)
    latents = model.encode(clip)
    for time in range(3):
        torch.testing.assert_close(model.encode(clip[:, time : time + 1])[:, 0], latents[:, time], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.get_features(clip), latents.flatten(1, 2))
    torch.testing.assert_close(latents.mean(-1), torch.zeros(2, 3, 16), rtol=0, atol=1e-5)


@torch.no_grad()
def test_latents_can_stay_as_the_encoder_and_the_predictor_give_them():
    torch.manual_seed(0)
    model = new_model()
    clip, given = torch.randn(1, 2, 3, 16, 16), window(3, 1)
    normed = model.encode(clip)
    model.config.normalize_latents = False
    latents = model.encode(clip)
    assert not torch.equal(latents, normed)
    torch.testing.assert_close(torch.nn.functional.layer_norm(latents, (32,)), normed)
    ahead = model.rollout(given["latents"][:, :1], given["actions"], states=given["states"][:, :1])
    assert ahead[:, -1].mean(-1).abs().max() > 1e-2


@torch.no_grad()
def test_raw_frames_are_squeezed_and_normalised():
    model = new_model()
    pixels = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.config.image_mean, model.config.image_std))
    torch.testing.assert_close(model.encode(pixels), model.encode((pixels / 255 - mean) / std))
    stripes = pixels[..., :1]
    narrow, wide = (model.encode(stripes.expand(-1, -1, -1, -1, width)) for width in (16, 40))
    torch.testing.assert_close(wide, narrow, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="float frames must be normalised"):
        model.encode(pixels.float())
    with pytest.raises(ValueError, match="Frames must have shape"):
        model.encode(torch.randn(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"not torch.int64: convert them, `.to\(torch.uint8\)`"):
        model.encode(pixels.long())
    with pytest.raises(ValueError, match=r"Frames of 16 channels.*got \(2, 3, 16, 16, 3\)"):
        model.encode(pixels.movedim(2, -1))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 12])
def test_frames_of_any_number_of_channels(channels):
    encoder = VJepaConfig(**ENCODERS["vjepa 2.1"].to_diff_dict() | {"in_chans": channels})
    pixels = torch.randint(0, 256, (2, 2, channels, 16, 16), dtype=torch.uint8)
    model = VJepa2ACModel(tiny_config(encoder_config=encoder)).eval()
    assert model.encode(torch.randn(2, 2, channels, 16, 16)).shape == (2, 2, 16, 32)
    with pytest.raises(ValueError, match="need `image_mean`"):
        model.encode(pixels)
    model = VJepa2ACModel(tiny_config(encoder_config=encoder, image_mean=[0.5] * 3, image_std=[0.2] * 3)).eval()
    with pytest.raises(ValueError, match="`image_mean` of 3"):
        model.encode(pixels)
    model.config.image_mean, model.config.image_std = [0.5] * channels, [0.2] * channels
    assert model.encode(pixels).shape == (2, 2, 16, 32)


@torch.no_grad()
def test_numbers_of_double_precision_are_taken():
    model, given = new_model(), window(2)
    actions, states = given["actions"].double(), given["states"][:, :1].double()
    path = model.rollout(given["latents"][:, :1], torch.cat([actions] * 3, dim=1), states)
    expected = model.rollout(given["latents"][:, :1], torch.cat([given["actions"]] * 3, dim=1), states.float())
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float64, torch.float16])
@torch.no_grad()
def test_actions_and_states_of_any_dtype_are_numbers(dtype):
    model, given = new_model(action_low=[-0.5] * 7, action_high=[1.5] * 7), window(3)
    latents = given["latents"]
    actions, states = torch.ones(2, 2, 7), torch.randint(0, 3, (2, 3, 7)).float()
    for name, one in (("actions", actions), ("states", states)):
        plain = {"actions": actions, "states": states}
        cast = plain | {name: one.to(dtype)}
        assert torch.equal(model(latents, **cast).loss, model(latents, **plain).loss), name
        ahead, expected = (model.rollout(latents[:, :1], **few) for few in (cast, plain))
        assert torch.equal(ahead, expected), name
    # Bounds are no whole numbers, whatever actions are.
    with pytest.raises(ValueError, match=r"bounds \[-0.5.* to \[1.5"):
        model.rollout(latents[:, :1], (2 * actions).to(dtype), states)


@pytest.mark.parametrize("name", ["latents", "actions", "states"])
def test_lists_are_named(name):
    given = window()
    with pytest.raises(TypeError, match=f"`{name}` must be a tensor, got list: `torch.as_tensor"):
        new_model()(**given | {name: given[name].tolist()})


@torch.no_grad()
def test_errors_of_frames_show_the_shape_that_was_given():
    model, given = new_model(), window(3)
    conditions = {name: given[name] for name in ("actions", "states")}
    clip = torch.randn(2, 3, 3, 16, 16)
    torch.testing.assert_close(model.encode(clip.double()), model.encode(clip), rtol=0, atol=1e-6)
    other = "Frames of {} channels, for an encoder of 3.*got {}; {}"
    to_three = "convert them to 3 channels"
    faults = {
        other.format(1, r"\(2, 3, 1, 16, 16\)", to_three): clip[:, :, :1],
        other.format(16, r"\(2, 3, 16, 16, 3\)", "move the channels: `.movedim"): clip.movedim(2, -1),
        other.format(4, r"\(2, 3, 4, 16, 16\)", to_three): torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8),
        r"at least one of each, got \(2, 0, 3, 16, 16\)": clip[:, :0],
        r"must have shape .*, got \(2, 3\)": torch.zeros(2, 3, dtype=torch.uint8),
        "not torch.bool": clip > 0,
    }
    for message, frames in faults.items():
        for read in (model.encode, model.get_features, lambda clip: model(pixel_values_videos=clip, **conditions)):
            with pytest.raises(ValueError, match=message):
                read(frames)


ENCODERS = {
    "vjepa 2.1": VJepaConfig(
        **{"crop_size": 16, "patch_size": 4, "frames_per_clip": 2, "hidden_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "pred_hidden_size": 12, "pred_num_attention_heads": 2},
        **{"pred_num_hidden_layers": 1, "use_image_tokenizer": True, "rope_layout": "interleaved"},
    ),
    "in-tree vjepa2": VJEPA2Config(
        **{"crop_size": 16, "patch_size": 4, "frames_per_clip": 2, "hidden_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "pred_hidden_size": 12, "pred_num_attention_heads": 2},
        **{"pred_num_hidden_layers": 1, "pred_num_mask_tokens": 1},
    ),
    "vit": ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_any_encoder_of_patch_tokens(name, tmp_path):
    model = VJepa2ACModel(tiny_config(encoder_config=ENCODERS[name])).eval()
    assert model.encode(torch.randn(2, 3, 3, 16, 16)).shape == (2, 3, 16, 32)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again.encoder) is type(model.encoder)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


@torch.no_grad()
def test_frames_that_are_not_square():
    model = VJepa2ACModel(tiny_config(frame_grid=[2, 6])).eval()
    latents = model.encode(torch.randn(1, 2, 3, 8, 24))
    assert latents.shape == (1, 2, 12, 32)
    actions, states = torch.randn(1, 2, 7), torch.randn(1, 1, 7)
    path = model.rollout(latents[:, :1], actions, states)
    model.config.frame_grid = [6, 2]
    assert (path - model.rollout(latents[:, :1], actions, states)).abs().max() > 1e-4
    model.config.frame_grid = None
    with pytest.raises(ValueError, match="frame_grid"):
        model.rollout(latents[:, :1], actions, states)


def test_saved_models_come_back_whole_and_frozen(tmp_path):
    model, given = new_model(use_extrinsics=True, embodiments=["droid"]), window(use_extrinsics=True)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, VJepa2ACModel)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), VJepa2ACConfig)
    assert not any(parameter.requires_grad for parameter in again.encoder.parameters())
    with torch.no_grad():
        assert torch.equal(model(**given).loss, again(**given).loss)


@pytest.mark.parametrize("kind", ["vjepa", "vit"])
def test_starting_from_an_encoder(kind, tmp_path):
    encoder = VJepaModel(tiny_config().encoder_config) if kind == "vjepa" else ViTModel(ENCODERS["vit"])
    encoder.save_pretrained(tmp_path)
    fields = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
    for source in (encoder, str(tmp_path)):
        model = VJepa2ACModel.from_encoder(source, **fields)
        weights = encoder.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.encoder.state_dict().items())
    assert kind == "vit" or encoder.predictor is not None


def test_robots_have_encoders_of_their_own(tmp_path):
    model, given = VJepa2ACModel(tiny_config(embodiments=["droid", "arm"])).eval(), window()
    with torch.no_grad():
        losses = {name: model(**given, embodiment=name).loss.item() for name in ("droid", "arm")}
        assert model(**given).loss.item() == losses["droid"] != losses["arm"]
    with pytest.raises(ValueError, match="Unknown embodiment 'hand'; this model has droid, arm"):
        model(**given, embodiment="hand")


@torch.no_grad()
def test_energy_is_the_loss_of_each_step():
    model, given = new_model(), window()
    energy = model.energy(None, **given)
    assert energy.shape == (2, 4)
    assert energy.mean().item() == pytest.approx(model(**given).loss_components["teacher_forcing"].item(), abs=1e-6)
    clip = torch.randn(1, 3, 3, 16, 16)
    given = {"actions": torch.randn(1, 2, 7), "states": torch.randn(1, 3, 7)}
    torch.testing.assert_close(model.energy(clip, **given), model.energy(None, **given, latents=model.encode(clip)))


@torch.no_grad()
def test_half_precision():
    model, given = new_model(), window()
    reference = model(**given).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**given).loss.item() == pytest.approx(reference, rel=0.02)
    model.to(torch.bfloat16)
    assert model(**given).loss.item() == pytest.approx(reference, rel=0.02)
    path = model.rollout(given["latents"][:, :1], given["actions"], given["states"][:, :1])
    assert path.dtype == torch.float32


def test_weights_start_as_released():
    model = VJepa2ACModel(tiny_config(hidden_size=96, num_hidden_layers=4, num_attention_heads=6))
    for index, layer in enumerate(model.predictor.layer):
        scale = 0.02 / (2 * (index + 1)) ** 0.5
        assert layer.attention.proj.weight.std().item() == pytest.approx(scale, rel=0.05)
        assert layer.mlp.fc2.weight.std().item() == pytest.approx(scale, rel=0.05)
        assert layer.attention.query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.predictor.action_encoder["droid"].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(
        p.any() for name, p in model.predictor.named_parameters() if name.endswith("bias") and "norm" not in name
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": None}, "`states` are missing"),
        ({"states": torch.zeros(2, 5, 6)}, "`states` must be"),
        ({"states": torch.full((2, 5, 7), float("nan"))}, "`states` hold NaN"),
        ({"states": torch.zeros(2, 2, 7)}, "at least 4 frames"),
        ({"states": torch.zeros(2, 6, 7)}, "tells of 6 frames, but the window has 5"),
        ({"actions": torch.zeros(2, 5, 7)}, "need `actions` of shape"),
        ({"actions": torch.zeros(2, 4, 6)}, "need `actions` of shape"),
        ({"actions": torch.full((2, 4, 7), float("inf"))}, "`actions` hold NaN or infinite"),
        ({"extrinsics": torch.zeros(2, 5, 6)}, "use_extrinsics=False"),
        ({"latents": torch.zeros(2, 5, 16, 31)}, "tokens, 32"),
        ({"latents": torch.zeros(2, 1, 16, 32), "rollout_steps": 0}, "at least two frames"),
        ({"latents": None}, "either `latents` or the clips"),
        ({"rollout_steps": 5}, "needs 6 frames"),
    ],
)
def test_windows_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        new_model()(**(window() | change))


def test_rollouts_that_do_not_fit_are_refused():
    model = new_model(max_steps=4, action_low=[-1.0] * 7, action_high=[1.0] * 7)
    latents, states = window(1)["latents"], torch.zeros(2, 1, 7)
    model.rollout(latents, torch.ones(2, 4, 7), states)
    with pytest.raises(ValueError, match="positions for 4"):
        model.rollout(latents, torch.ones(2, 5, 7), states)
    with pytest.raises(ValueError, match="beyond the bounds"):
        model.rollout(latents, torch.full((2, 2, 7), 1.1), states)
    with pytest.raises(ValueError, match="tokens, 32"):
        model.rollout(latents[..., :31], torch.ones(2, 2, 7), states)
    with pytest.raises(ValueError, match="`states` are missing"):
        model.rollout(latents, torch.ones(2, 2, 7))
    with pytest.raises(ValueError, match="goal"):
        model.cost(model.rollout(latents, torch.ones(2, 2, 7), states), torch.zeros(2, 9, 32))


def test_robots_without_poses_tell_their_states():
    model = VJepa2ACModel(tiny_config(action_dim=3, state_dim=4)).eval()
    latents, actions = window(1)["latents"], torch.randn(2, 3, 3)
    assert model.rollout(latents, actions, torch.randn(2, 3, 4)).shape == (2, 3, 16, 32)
    with pytest.raises(ValueError, match="give `states` of every frame"):
        model.rollout(latents, actions, torch.randn(2, 1, 4))


def test_the_released_size_is_the_default():
    with torch.device("meta"):
        model = VJepa2ACModel(VJepa2ACConfig())
    count = sum(parameter.numel() for parameter in model.predictor.parameters())
    assert count == pytest.approx(305.2e6, rel=2e-4)
    assert (model.config.latent_size, model.encoder.config.num_hidden_layers) == (1408, 40)
    assert model.encoder.predictor is None
