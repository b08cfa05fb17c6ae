"""What a world model must do whatever its parts: causality, caches, checkpoints, refusals."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    Dinov2Config,
    TimmWrapperConfig,
    ViTConfig,
    ViTModel,
    VJEPA2Model,
)

from hf_jepa import ConvEncoderConfig, LatentWorldModel, LatentWorldModelConfig, VJepaModel
from hf_jepa.hub import save_release
from hf_jepa.models.latent_world_model.configuration_latent_world_model import logger
from hf_jepa.models.latent_world_model.objective_latent_world_model import regularizers
from hf_jepa.objectives import random_directions

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
TRANSFORMER = {
    "predictor_type": "transformer",
    "predictor_num_hidden_layers": 2,
    "predictor_num_attention_heads": 2,
    "predictor_head_dim": 8,
    "predictor_intermediate_size": 32,
    "predictor_dropout": 0.0,
}


def build(**changes):
    encoder = ConvEncoderConfig(image_size=16, hidden_sizes=[4, 8], hidden_size=12)
    fields = {
        "encoder_config": encoder,
        "action_dim": 2,
        "sigreg_weight": 0.1,
        "num_slices": 8,
        "predictor_hidden_size": 16,
        "inverse_hidden_size": 8,
        **changes,
    }
    return LatentWorldModel(LatentWorldModelConfig(**fields))


def dino_wm(**changes):
    encoder = Dinov2Config(**{**VIT, "image_size": 24})
    fields = {"encoder_config": encoder, "action_embedding_size": 3, "action_dim": 4, "frameskip": 2, "proprio_dim": 3}
    fields |= {"proprio_embedding_size": 5}
    return LatentWorldModel(LatentWorldModelConfig.from_preset("dino_wm", **{**fields, **TRANSFORMER, **changes}))


def shake(model):
    """Random values everywhere: fresh AdaLN layers are zero and hide the actions."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


MODELS = {
    "residual_mlp": lambda: build(),
    "mlp": lambda: build(predictor_type="mlp", latent_space="tanh"),
    "gru": lambda: build(predictor_type="gru", latent_space="layer_norm"),
    "transformer": lambda: build(context_frames=10, projector_hidden_size=16, **TRANSFORMER),
    "dino_wm": lambda: dino_wm(context_frames=10),
}


def batch_for(model, batch=3, time=4):
    size = model._image_size()
    frames = torch.randn(batch, time, model._num_channels(), *size)
    actions = torch.randn(batch, time - 1, model.config.action_dim).clamp(-2, 2)
    proprio = torch.randn(batch, time, model.config.proprio_dim) if model.config.proprio_dim else None
    return frames, actions, proprio


@pytest.mark.parametrize("name", MODELS)
def test_rollout_is_causal_and_agrees_with_teacher_forcing(name):
    model = shake(MODELS[name]())
    frames, actions, proprio = batch_for(model)
    with torch.no_grad():
        latents = model.encode(frames, proprio)
        imagined = model.rollout(latents[:, :1], actions)
        assert imagined.shape == (3, 3, *latents.shape[2:])
        first = model._predict(latents[:, :-1], actions)[:, 0]
        torch.testing.assert_close(imagined[:, 0], first, rtol=0, atol=1e-5)
        changed = actions.clone()
        changed[:, 2] += 1
        later = model.rollout(latents[:, :1], changed)
        assert (later[:, :2] - imagined[:, :2]).abs().max() < 1e-6
        assert (later[:, 2] - imagined[:, 2]).abs().max() > 1e-3
        forced = model._predict(latents[:, :-1], actions)
        moved = latents.clone()
        moved[:, 2] += 1
        assert (model._predict(moved[:, :-1], actions)[:, :2] - forced[:, :2]).abs().max() < 1e-6


@pytest.mark.parametrize("horizon", [2, 4, 8])
@pytest.mark.parametrize(("context", "window"), [(1, 10), (3, 10), (1, 3), (3, 4), (5, 3)])
@pytest.mark.parametrize("kind", ["adaln", "patches"])
@torch.no_grad()
def test_cache_changes_nothing(kind, context, window, horizon):
    model = build(context_frames=window, **TRANSFORMER) if kind == "adaln" else dino_wm(context_frames=window)
    shake(model)
    frames, past, proprio = batch_for(model, batch=2, time=context)
    candidates = torch.randn(6, horizon, model.config.action_dim)
    latents = model.encode(frames, proprio)
    calls = []
    model.predictor.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[1]))
    cached = model.rollout(latents, candidates, past_actions=past)
    with_cache, calls[:] = list(calls), []
    plain = model.rollout(latents, candidates, past_actions=past, use_cache=False)
    assert (cached - plain).abs().max() <= 1e-5 * plain.abs().max()
    if context + horizon - 1 <= window:
        assert with_cache[-horizon:] == [1] * horizon, with_cache
        assert calls == list(range(context, context + horizon))
    assert max(calls) <= window


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_of_a_long_past_the_last_frames_are_seen(use_cache):
    model = shake(build(context_frames=3, **TRANSFORMER))
    frames, past, _ = batch_for(model, batch=2, time=5)
    latents, candidates = model.encode(frames), torch.randn(2, 2, 2)
    whole = model.rollout(latents, candidates, past_actions=past, use_cache=use_cache)
    recent = model.rollout(latents[:, 2:], candidates, past_actions=past[:, 2:], use_cache=use_cache)
    torch.testing.assert_close(whole, recent)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_candidates_are_independent_of_their_batch(name):
    model = shake(MODELS[name]())
    frames, past, proprio = batch_for(model, batch=2, time=2)
    candidates = torch.randn(2, 3, 4, model.config.action_dim)
    latents = model.encode(frames, proprio)
    together = model.rollout(latents, candidates.flatten(0, 1), past_actions=past).unflatten(0, (2, 3))
    alone = model.rollout(latents[1:], candidates[1, 2:], past_actions=past[1:])
    torch.testing.assert_close(together[1, 2:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_holds_everything(name, tmp_path):
    model = shake(MODELS[name]())
    raw = model.config.raw_action_dim
    statistics = {"action_mean": [0.1] * raw, "action_std": [1 / 3] * raw}
    statistics |= {"action_low": [-1.0] * raw, "action_high": [1.0] * raw}
    for key, value in statistics.items():
        setattr(model.config, key, value)
    model.save_pretrained(tmp_path)
    frames, actions, proprio = batch_for(model)
    for auto_class in (AutoModel, AutoModelForPreTraining):
        loaded = auto_class.from_pretrained(tmp_path).eval()
        assert isinstance(loaded, LatentWorldModel)
        assert {key: getattr(loaded.config, key) for key in statistics} == statistics
        assert loaded.config.frameskip == model.config.frameskip
        assert torch.equal(loaded.energy(frames, actions, proprio), model.energy(frames, actions, proprio))
    assert loaded.encoder.training is False


def test_gradient_reaches_the_encoder_through_the_target_too():
    model = build(sigreg_weight=0.0, inverse_dynamics_weight=1.0)
    frames, actions, _ = batch_for(model, time=2)
    model.predictor.requires_grad_(False)
    kept = {}
    encode = model.encode

    def keep(*args):
        kept["latents"] = encode(*args)
        return kept["latents"]

    model.encode = keep
    model.inverse_model = None
    grad = torch.autograd.grad(model(frames, actions).loss, kept["latents"])[0]
    assert (grad[:, 1].abs() > 0).all()


def test_frozen_encoder_stays():
    model = dino_wm().train()
    assert not model.encoder.training
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    output = model(*batch_for(model))
    output.loss.backward()
    assert output.loss_components.keys() == {"prediction"}
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert output.targets[0].requires_grad is False


@pytest.mark.parametrize("name", ["residual_mlp", "mlp", "gru", "transformer"])
def test_every_parameter_is_trained(name):
    model = MODELS[name]()
    model(*batch_for(model)).loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not idle


def test_sigreg_compares_the_batch_at_every_time():
    """A batch of one and the same clip has collapsed, however much it moves."""
    directions = random_directions(16, 12, torch.Generator().manual_seed(0))
    config = build().config
    clip = torch.randn(1, 64, 1, 12).expand(32, -1, -1, -1)
    normal = torch.randn(32, 64, 1, 12)
    collapsed = regularizers(clip, config, None, directions)["sigreg"]
    healthy = regularizers(normal, config, None, directions)["sigreg"]
    assert collapsed > 4 * healthy


def test_padding_is_the_mean_action_and_need_not_be_told():
    model = build(sigreg_weight=0.0, inverse_dynamics_weight=1.0).eval()
    frames, actions, _ = batch_for(model)
    padded, zeroed = actions.clone(), actions.clone()
    padded[0, 2], zeroed[0, 2] = float("nan"), 0.0
    terms = model(frames, padded).loss_components
    assert terms == model(frames, zeroed).loss_components
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 2] = False
    masked = model(frames, padded, action_mask=mask).loss_components["inverse_dynamics"]
    latents = model.encode(frames)
    errors = (model.inverse_model(latents[:, :-1], latents[:, 1:]) - actions).square().mean(dim=-1)
    torch.testing.assert_close(masked, errors[mask].mean())


def test_last_action_of_a_window_is_not_used():
    model = build(inverse_dynamics_weight=1.0).eval()
    frames, actions, _ = batch_for(model)
    beyond = torch.cat([actions, torch.full((3, 1, 2), 7.0)], dim=1)
    assert model(frames, beyond).loss == model(frames, actions).loss


def test_energy_is_the_prediction_error():
    model = shake(build())
    frames, actions, _ = batch_for(model)
    energy = model.energy(frames, actions)
    assert energy.shape == (3, 3)
    torch.testing.assert_close(energy.mean(), model(frames, actions).loss_components["prediction"])


def test_temporal_terms():
    model = build(sigreg_weight=0.0, temporal_variance_weight=2.0, temporal_similarity_weight=3.0).eval()
    frames, actions, _ = batch_for(model)
    output = model(frames, actions)
    latents = model.encode(frames)
    terms = output.loss_components
    torch.testing.assert_close(terms["temporal_similarity"], latents.diff(dim=1).square().mean().detach())
    hinge = (1 - (latents.var(dim=1) + 1e-4).sqrt()).clamp(min=0).mean()
    torch.testing.assert_close(terms["temporal_variance"], hinge.detach())
    total = terms["prediction"] + 2 * terms["temporal_variance"] + 3 * terms["temporal_similarity"]
    torch.testing.assert_close(output.loss.detach(), total)


@pytest.mark.parametrize("kind", [VJepaModel, VJEPA2Model])
def test_video_encoders_take_frames_one_by_one(kind, tmp_path):
    sizes = {"crop_size": 16, "patch_size": 4, "frames_per_clip": 2, "hidden_size": 32, "num_attention_heads": 2}
    sizes |= {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "num_hidden_layers": 1}
    encoder = kind(kind.config_class(**sizes, pred_num_hidden_layers=1)).eval()
    model = LatentWorldModel.from_encoder(encoder, preset="dino_wm", action_dim=10, **TRANSFORMER).eval()
    frames = torch.randn(2, 3, 3, 16, 16)
    latents = model.encode(frames)
    for time in range(3):
        clip = frames[:, time : time + 1].expand(-1, 2, -1, -1, -1)
        torch.testing.assert_close(latents[:, time], encoder.get_vision_features(clip), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="positions"):
        model.encode(torch.randn(1, 1, 3, 24, 24))
    save_release(model, tmp_path, results={"model": {"name": "x"}, "licence": "mit"})
    again = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again.encode(frames), latents)


@pytest.mark.parametrize("name", ["lewm", "smwm", "pldm", "eb_jepa", "dino_wm"])
def test_presets_have_their_published_sizes(name):
    config = LatentWorldModelConfig.from_preset(name)
    with torch.device("meta"):
        model = LatentWorldModel(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    width = {"lewm": 192, "smwm": 192, "pldm": 512, "eb_jepa": 512, "dino_wm": 384}
    assert model._latent_width() == width[name]
    if name == "lewm":
        assert count == 18_034_478
    if name == "dino_wm":
        assert config.num_tokens == 196
    assert config.is_kept_from_collapse


def test_starts_from_a_released_encoder(tmp_path):
    encoder = ViTModel(ViTConfig(**VIT))
    encoder.save_pretrained(tmp_path)
    fields = {**TRANSFORMER, "action_dim": 2, "frameskip": 1}
    model = LatentWorldModel.from_encoder(str(tmp_path), preset="dino_wm", **fields).eval()
    frames = torch.randn(1, 2, 3, 16, 16)
    expected = encoder.eval()(frames[0]).last_hidden_state[:, 1:]
    torch.testing.assert_close(model.encode(frames)[0], expected)
    exported = model.export_encoder()
    assert torch.equal(exported.embeddings.cls_token, encoder.embeddings.cls_token)


@pytest.mark.parametrize("channels", [1, 12])
def test_timm_encoders_and_channels(channels):
    encoder = TimmWrapperConfig(
        architecture="resnet18", model_args={"in_chans": channels, "img_size": None}, do_pooling=True
    )
    encoder.model_args.pop("img_size")
    model = build(encoder_config=encoder)
    output = model(torch.randn(2, 2, channels, 32, 48), torch.randn(2, 1, 2))
    output.loss.backward()
    assert output.predictions[0].shape == (2, 1, 1, 512)


def test_frames_that_are_not_square():
    encoder = ConvEncoderConfig(image_size=[12, 20], hidden_sizes=[4], hidden_size=6, num_channels=2)
    model = build(encoder_config=encoder, image_mean=[0.5, 0.5], image_std=[0.5, 0.5])
    frames = torch.randint(0, 256, (2, 3, 2, 12, 20), dtype=torch.uint8)
    normalised = (frames / 255 - 0.5) / 0.5
    torch.testing.assert_close(model.encode(frames), model.encode(normalised))


def test_refuses_what_does_not_fit():
    model = build(action_low=[-1.0, -1.0], action_high=[1.0, 1.0], action_mean=[0.0, 0.0], action_std=[1.0, 1.0])
    frames, actions, _ = batch_for(model)
    latents = model.encode(frames)
    with pytest.raises(ValueError, match="channels"):
        model(frames[:, :, :1], actions)
    with pytest.raises(ValueError, match="reads images of shape"):
        model(torch.randn(2, 2, 3, 20, 20), actions[:2, :1])
    with pytest.raises(ValueError, match="between 4 frames"):
        model(frames, actions[..., :1])
    with pytest.raises(ValueError, match="between 4 frames"):
        model(frames, actions[:, :1])
    with pytest.raises(ValueError, match="between 4 frames"):
        model(frames, actions[:1])
    with pytest.raises(ValueError, match="float frames must be normalised"):
        model.encode(frames * 255)
    with pytest.raises(ValueError, match="float frames must be normalised"):
        model.encode(torch.full_like(frames, float("nan")))
    with pytest.raises(ValueError, match="image_mean"):
        model.encode((frames * 10).to(torch.uint8))
    with pytest.raises(ValueError, match="0 numbers of proprioception"):
        model.encode(frames, torch.zeros(3, 4, 2))
    with pytest.raises(ValueError, match="beyond the bounds"):
        model.rollout(latents[:, :1], actions.clamp(-1, 1) * 2)
    with pytest.raises(ValueError, match="past_actions"):
        model.rollout(latents, actions.clamp(-1, 1))
    with pytest.raises(ValueError, match="NaN"):
        model.rollout(latents[:, :1], actions * float("nan"))
    with pytest.raises(ValueError, match=r"\(batch, context, 1, 12\)"):
        model.rollout(latents[:, :1, :, :5], actions.clamp(-1, 1))
    with pytest.raises(ValueError, match="no latent variable"):
        model.rollout(latents[:, :1], actions.clamp(-1, 1), z=torch.zeros(3, 3, 8))
    with pytest.raises(ValueError, match="states"):
        model.rollout(latents[:, :1], actions.clamp(-1, 1), torch.zeros(3, 1, 2))
    with pytest.raises(ValueError, match="at least 5 frames, got 4"):
        build(rollout_steps=4)(frames, actions)
    with pytest.raises(ValueError, match="3 frames to predict from is longer than the predictor sees, 2"):
        build(context_frames=2, **TRANSFORMER)(frames, actions)
    patches = dino_wm()
    with pytest.raises(ValueError, match="has 3 numbers|3 numbers of proprioception"):
        patches.encode(torch.randn(1, 1, 3, 24, 24))
    with pytest.raises(ValueError, match="positions for 9"):
        patches.encode(torch.randn(1, 1, 3, 32, 32), torch.zeros(1, 1, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigreg_weight": -1.0}, "not negative"),
        ({"variance_weight": float("nan")}, "not negative"),
        ({"context_frames": 2}, "the transformer's"),
        ({"pooling": "patches"}, "needs `predictor_type"),
        ({"image_mean": [0.5]}, "go together"),
        ({"proprio_dim": 2, "proprio_mean": [0.0], "proprio_std": [1.0]}, "must hold 2"),
        ({"proprio_dim": 2, "proprio_names": ["x"]}, "must name 2"),
        ({"latent_variable": "noisy", "rollout_steps": 2}, "must be 1"),
        (
            {"latent_variable": "discrete", "context_frames": 2, "predictor_type": "transformer"},
            "set `context_frames` to 1",
        ),
        ({"num_codes": 0}, "at least 1"),
        ({"predictor_dropout": 1.0}, "must lie in"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        LatentWorldModelConfig(**changes)


def test_unknown_preset_and_size():
    with pytest.raises(ValueError, match="dino_wm"):
        LatentWorldModelConfig.from_preset("dreamer")
    with pytest.raises(ValueError, match="without `projector_hidden_size`"):
        build(latent_size=5)
    with pytest.raises(StrictDataclassClassValidationError, match="strided"):
        ConvEncoderConfig(block_type="residual", strides=[1, 1, 1])


def test_prediction_alone_is_warned_of(monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning_once", said.append)
    LatentWorldModelConfig(inverse_dynamics_weight=1.0)
    assert not said
    LatentWorldModelConfig()
    assert "collapses" in said[0]


def test_one_training_step_under_bfloat16_autocast():
    model = build(inverse_dynamics_weight=1.0, variance_weight=1.0, context_frames=3, **TRANSFORMER)
    frames, actions, _ = batch_for(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(frames, actions)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["adaln", "patches"])
def test_double_precision_from_numpy_is_taken(kind):
    model = build(encoder_config=ViTConfig(**VIT)) if kind == "adaln" else dino_wm()
    model.eval()
    frames, actions = torch.randn(2, 1, 3, 16, 16), torch.randn(2, 2, model.config.action_dim)
    if kind == "patches":
        frames = torch.randn(2, 1, 3, 24, 24)
    proprio = {"proprio": torch.zeros(2, 1, 3)} if kind == "patches" else {}
    latents = model.encode(frames, **proprio)
    assert torch.equal(model.encode(frames.double(), **{name: x.double() for name, x in proprio.items()}), latents)
    assert torch.equal(model.rollout(latents.double(), actions.double()), model.rollout(latents, actions))


@pytest.mark.parametrize("name", ["pixel_values", "actions"])
def test_arrays_are_no_tensors(name):
    model = build()
    batch = {"pixel_values": torch.randn(2, 2, 3, 16, 16), "actions": torch.randn(2, 1, 2)}
    with pytest.raises(TypeError, match=f"`{name}` must be a tensor, got ndarray"):
        model(**(batch | {name: batch[name].numpy()}))
    if name == "pixel_values":
        with pytest.raises(TypeError, match="`pixel_values` must be a tensor, got ndarray"):
            model.encode(batch[name].numpy())
