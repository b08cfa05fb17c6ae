"""data2vec vision against the official numbers, and what a user relies on."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining, Data2VecVisionConfig, Data2VecVisionModel, ViTConfig

from hf_jepa import Data2VecVisionForPreTraining, Data2VecVisionPreTrainingConfig
from hf_jepa.conversion.data2vec_vision import _INDEX, _key_maps
from hf_jepa.evaluation import pooled_features
from hf_jepa.models.data2vec_vision.modeling_data2vec_vision import average_layers, run_blocks, unique_consecutive_mask
from hf_jepa.training.jepa.schedules import linear_ema_momentum
from hf_jepa.training.jepa.trainer import parameter_groups

GOLDEN = Path(__file__).parents[2] / "golden"


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * float(reference.abs().max()))


def parameter_of(model: Data2VecVisionForPreTraining, key: str) -> torch.nn.Parameter:
    if key.startswith("lm_head."):
        return model.head.get_parameter(key.removeprefix("lm_head."))
    return model.encoder.get_parameter(key)


# ---- Official numbers ----


def test_official_step(official_model, official, official_mask):
    output = official_model.train()(official["pixel_values"], [official_mask])
    counted = unique_consecutive_mask(official_mask)
    assert counted.sum(1).tolist() == [8, 9]
    close(output.predictions[0][counted], official["student_predictions"])
    close(output.targets[0][counted], official["targets"])
    assert float(output.loss.detach()) == pytest.approx(float(official["loss"]), abs=2e-6)

    output.loss.backward()
    gradients = [key for key in official if key.startswith("grad/")]
    assert len(gradients) == 7
    for key in gradients:
        close(parameter_of(official_model, key.removeprefix("grad/")).grad, official[key], 5e-5)
    # DDP waits for every trainable parameter; the teacher gets no gradient.
    for name, parameter in official_model.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name


def test_official_teacher_and_its_average(official_model, official):
    outputs = [output[:, 1:] for output in run_blocks(official_model.target_encoder, official["pixel_values"])]
    close(torch.stack(outputs), official["teacher_block_outputs"])
    official_model.update_target(0.999)
    moved = [key for key in official if key.startswith("ema/")]
    assert moved
    for key in moved:
        close(official_model.target_encoder.get_parameter(key.removeprefix("ema/")), official[key], 1e-6)


def test_fixture_built_from_key_names_alone():
    # The fact sheet's fixture: weights are a sine of their position, so a wrong key, order or split shows.
    config = Data2VecVisionPreTrainingConfig(
        encoder_config=Data2VecVisionConfig(
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=384,
            layer_norm_eps=1e-6,
            image_size=64,
            patch_size=16,
            use_mask_token=True,
            use_mean_pooling=False,
            use_shared_relative_position_bias=True,
            layer_scale_init_value=0.1,
            drop_path_rate=0.0,
        ),
        target_layers=[2, 3],
    )
    model = Data2VecVisionForPreTraining(config)
    key_map = _key_maps(config)["model"]
    weights = {}
    for number, key in enumerate(sorted([*key_map, _INDEX])):
        if key == _INDEX:
            continue
        names = key_map[key]
        shape = list(model.state_dict()[names[0]].shape)
        shape[0] *= len(names)
        count = torch.Size(shape).numel()
        values = 0.02 * torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + 1.3 * number)
        values += float("norm" in key and key.endswith(".weight")) + 0.1 * ("gamma" in key)
        weights |= dict(zip(names, values.view(shape).float().chunk(len(names)), strict=True))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith("target_") for key in missing)
    model.sync_target()
    pixels = torch.sin(0.01 * torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)).view(2, 3, 64, 64).float()
    mask = torch.tensor([[5, 6, 7, 9, 10, 11], [0, 1, 2, 4, 5, 6]])
    output = model.eval()(pixels, [mask])
    expected = torch.tensor([0.4228858, -1.6677500, 1.1009873])
    torch.testing.assert_close(output.targets[0][0, 0, :3], expected, rtol=0, atol=5e-6)
    expected = torch.tensor([0.1151419, -1.1644648, 0.6270089])
    torch.testing.assert_close(output.predictions[0][0, 0, :3], expected, rtol=0, atol=5e-6)
    assert float(output.loss.detach()) == pytest.approx(0.4460339, abs=2e-6)
    # The fixture's first token is the class token.
    features = model.encoder(pixels).last_hidden_state
    expected = torch.tensor([-0.1930211, 0.3462976, 0.2235158])
    torch.testing.assert_close(features[0, 0, :3], expected, rtol=0, atol=5e-6)


VARIANTS = {
    # name: (norm, post layer norm, loss, beta, factor on the mean over features)
    "vision_official": ("layer", True, "smooth_l1", 2.0, 1.0),
    "vision_official_beta": ("layer", True, "smooth_l1", 2.0, 1.0),
    "vision_official_no_post": ("layer", False, "smooth_l1", 2.0, 1.0),
    "vision_official_instance": ("instance", False, "smooth_l1", 2.0, 1.0),
    "vision_official_l2": ("layer", True, "l2", 2.0, 1.0),
    "vision_fairseq": ("none", True, "smooth_l1", 2.0, 16**0.5),
    "text_fairseq": ("layer", False, "smooth_l1", 4.0, 16.0),
    "audio_fairseq": ("instance", False, "l2", 0.0, 16**0.5),
    "stable_pretraining": ("none", True, "smooth_l1", 2.0, 1.0),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_and_losses_of_every_code_base(variant, tiny_config):
    official = load_file(GOLDEN / "data2vec_targets_loss.safetensors")
    norm, post_layer_norm, loss_type, beta, factor = VARIANTS[variant]
    mask = official["mask"]
    targets = average_layers(official["layer_outputs"][-3:], norm, post_layer_norm)[mask]
    close(targets, official[f"{variant}/targets"])
    config = tiny_config(loss_type=loss_type, smooth_l1_beta=beta)
    predictions = official["predictions"].requires_grad_()
    model = Data2VecVisionForPreTraining(config)
    per_token = factor * model._distance(predictions[mask], targets).mean(-1)
    is_summed = "fairseq" in variant
    loss = per_token.sum() if is_summed else per_token.mean()
    assert float(loss.detach()) == pytest.approx(float(official[f"{variant}/loss"]), rel=2e-6)
    loss.backward()
    close(predictions.grad, official[f"{variant}/grad_predictions"])


@pytest.mark.parametrize("beta", [0.5, 2.0, 4.0])
def test_smooth_l1(beta, tiny_config):
    official = load_file(GOLDEN / "data2vec_targets_loss.safetensors")
    difference = official["smooth_l1_diff"].float()
    model = Data2VecVisionForPreTraining(tiny_config(smooth_l1_beta=beta))
    ours = model._distance(difference, torch.zeros_like(difference))
    close(ours, official[f"smooth_l1_beta{beta}"].float(), 1e-6)


def test_ema_ramp_of_fairseq_is_the_trainers_line():
    official = load_file(GOLDEN / "data2vec_targets_loss.safetensors")
    steps, expected = official["ema_steps"].tolist(), official["ema_decay_fairseq_0.999_0.9999_30000"].tolist()
    ours = [linear_ema_momentum(int(step), 30000, start=0.999, end=0.9999) for step in steps]
    assert ours == pytest.approx(expected, rel=1e-12)


# ---- Targets and masks ----


def test_teacher_sees_the_whole_image_and_the_student_only_what_is_left(model, inputs):
    pixels, (mask,) = inputs["pixel_values"], inputs["target_mask"]
    changed = pixels.clone()
    changed[0, :, :16, :16] += 1.0  # the four masked patches of the first image
    before, after = model.eval()(pixels, [mask]), model(changed, [mask])
    torch.testing.assert_close(after.predictions[0][0], before.predictions[0][0])
    assert (after.targets[0][0] - before.targets[0][0]).abs().max() > 1e-3


def test_in_tree_forward_agrees(model, inputs):
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, inputs["target_mask"][0], True)
    reference = model.eval().encoder(inputs["pixel_values"], bool_masked_pos=hidden).last_hidden_state[:, 1:]
    torch.testing.assert_close(model(**inputs).context_features, reference, rtol=0, atol=0)
    states = model.target_encoder(inputs["pixel_values"], output_hidden_states=True).hidden_states
    expected = average_layers([states[layer + 1][:, 1:] for layer in model.config.target_layers])
    torch.testing.assert_close(model.target_features(inputs["pixel_values"]), expected, rtol=0, atol=0)


def test_repeated_indices_count_once(model, inputs):
    model.eval()
    pixels = inputs["pixel_values"]
    ragged = torch.tensor([[0, 1, 4, 5], [8, 9, 9, 9], [2, 2, 2, 2]])
    alone = [
        model(pixels[index : index + 1], [torch.tensor([row])]).loss.detach()
        for index, row in enumerate([[0, 1, 4, 5], [8, 9], [2]])
    ]
    expected = (4 * alone[0] + 2 * alone[1] + alone[2]) / 7
    torch.testing.assert_close(model(pixels, [ragged]).loss.detach(), expected)
    torch.testing.assert_close(model.energy(pixels, [ragged]), torch.stack(alone))


def test_several_masks_are_several_student_passes(model, inputs):
    model.eval()
    pixels, (first,) = inputs["pixel_values"], inputs["target_mask"]
    second = (first + 1) % 16
    second = second.sort(1).values
    both = model(pixels, [first, second])
    one, two = model(pixels, [first]), model(pixels, [second])
    for index, single in enumerate((one, two)):
        torch.testing.assert_close(both.predictions[index], single.predictions[0])
        torch.testing.assert_close(both.targets[index], single.targets[0])
    torch.testing.assert_close(both.loss, (one.loss + two.loss) / 2)
    energies = (model.energy(pixels, [first]) + model.energy(pixels, [second])) / 2
    torch.testing.assert_close(model.energy(pixels, [first, second]), energies)


def test_energy_of_a_batch_averages_to_the_loss(model, inputs):
    energy = model.eval().energy(**inputs)
    assert energy.shape == (3,)
    torch.testing.assert_close(energy.mean(), model(**inputs).loss.detach())


def test_other_image_sizes(model):
    output = model(torch.randn(2, 3, 48, 24), [torch.tensor([[0, 17], [3, 9]])])
    assert output.context_features.shape == (2, 18, 32)
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([], "non-empty list"),
        (torch.tensor([[0, 1]] * 3), "non-empty list"),
        ([torch.tensor([[0, 1]] * 2)], "shape"),
        ([torch.tensor([[0, 16]] * 3)], "holds index 16"),
        ([torch.tensor([[-1, 0]] * 3)], "holds index -1"),
        ([torch.tensor([[0, 1]] * 3).int()], "int64"),
    ],
)
def test_bad_masks(model, inputs, mask, message):
    with pytest.raises(ValueError, match=message):
        model(inputs["pixel_values"], mask)


def test_bad_image_sizes(model, inputs):
    for call in (lambda x: model(x, inputs["target_mask"]), model.get_features):
        with pytest.raises(ValueError, match="cannot be cut into patches of 8x8"):
            call(torch.randn(3, 3, 32, 30))


@pytest.mark.parametrize(
    ("outputs", "norm", "message"), [([], "layer", "at least one"), ([torch.zeros(1, 2, 4)], "batch", "`norm`")]
)
def test_bad_targets(outputs, norm, message):
    with pytest.raises(ValueError, match=message):
        average_layers(outputs, norm)


# ---- The model's life ----


def test_student_and_teacher_start_equal_and_the_average_covers_everything(model, inputs):
    pairs = [
        (model.get_parameter(f"target_{name}"), parameter)
        for name, parameter in model.named_parameters()
        if name.startswith(("encoder.", "head."))
    ]
    assert len(pairs) == sum(1 for _ in model.parameters()) / 2
    assert all(torch.equal(target, source) for target, source in pairs)
    before = [target.clone() for target, _ in pairs]
    for _, source in pairs:
        source.data.add_(1.0)
    model.update_target(0.75)
    for (target, _), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(target, old + 0.25)
    with pytest.raises(ValueError, match="momentum"):
        model.update_target(1.5)


def test_teacher_stays_in_eval_mode_without_gradients(tiny_config, inputs):
    config = tiny_config(encoder={"drop_path_rate": 0.5, "attention_probs_dropout_prob": 0.5})
    model = Data2VecVisionForPreTraining(config).train()
    assert not model.target_encoder.training
    first, second = model(**inputs), model(**inputs)
    assert torch.equal(first.targets[0], second.targets[0])
    assert not torch.equal(first.predictions[0], second.predictions[0])
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.startswith("target_"))


def test_teacher_runs_in_float32_under_autocast(model, inputs):
    reference = model.eval()(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    assert torch.equal(output.targets[0], reference.targets[0])
    assert output.predictions[0].dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert float(output.loss.detach()) == pytest.approx(float(reference.loss.detach()), rel=0.02)


def test_initialisation_is_the_released_one(tiny_config):
    model = Data2VecVisionForPreTraining(tiny_config(encoder={"hidden_size": 64, "layer_scale_init_value": 1e-4}))
    # A normal truncated at one standard deviation has a standard deviation of 0.5396.
    for index, layer in enumerate(model.encoder.encoder.layer):
        for weight, scale in (
            (layer.attention.attention.query.weight, 1.0),
            (layer.intermediate.dense.weight, 1.0),
            (layer.attention.output.dense.weight, (2 * (index + 1)) ** -0.5),
            (layer.output.dense.weight, (2 * (index + 1)) ** -0.5),
        ):
            assert float(weight.detach().std()) == pytest.approx(0.02 * 0.5396 * scale, rel=0.06)
            assert weight.abs().max() <= 0.02 * scale
        assert torch.equal(layer.lambda_1, torch.full((64,), 1e-4))
    embeddings = model.encoder.embeddings
    for weight in (embeddings.cls_token, embeddings.mask_token, model.head.weight):
        assert 0.005 < float(weight.detach().std()) < 0.016
    assert not model.encoder.encoder.relative_position_bias.relative_position_bias_table.any()
    assert not model.head.bias.any()


def test_decay_follows_the_released_rule(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05)
    kept = {names[id(p)]: group["decays"] for group in groups for p in group["params"]}
    assert kept["encoder.embeddings.mask_token"]
    assert kept["encoder.encoder.relative_position_bias.relative_position_bias_table"]
    assert kept["head.weight"]
    assert not kept["encoder.embeddings.cls_token"]
    assert not kept["encoder.encoder.layer.0.lambda_1"]
    assert not kept["encoder.encoder.layer.0.attention.attention.query.bias"]
    assert not kept["encoder.layernorm.weight"]
    assert not any(name.startswith("target_") for name in kept)


def test_gradient_checkpointing_changes_nothing(model, inputs):
    model.train()(**inputs).loss.backward()
    reference = model.encoder.embeddings.mask_token.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**inputs).loss.backward()
    torch.testing.assert_close(model.encoder.embeddings.mask_token.grad, reference)


# ---- Files ----


@pytest.mark.parametrize("which", ["target", "context"])
def test_plain_transformers_loads_the_export(model, inputs, which, tmp_path):
    for parameter in model.encoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    encoder = model.export_encoder(which)
    assert type(encoder) is Data2VecVisionModel
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    encoder.save_pretrained(tmp_path)
    plain, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert plain.config.layer_norm_eps == 1e-6
    assert plain.config.use_mask_token
    with torch.no_grad():
        tokens = plain(inputs["pixel_values"]).last_hidden_state
    torch.testing.assert_close(tokens[:, 1:], model.get_features(inputs["pixel_values"], which), rtol=0, atol=0)
    torch.testing.assert_close(plain.embeddings.mask_token, model._encoder(which).embeddings.mask_token)


def test_composite_round_trip(model, inputs, tmp_path):
    model.head.weight.data.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(loaded) is Data2VecVisionForPreTraining
    assert loaded.config.target_layers == [1, 2]
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if n.startswith("target_"))
    torch.testing.assert_close(loaded(**inputs).loss, model.eval()(**inputs).loss, rtol=0, atol=0)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_pooled_features_leave_the_class_token_out(model, inputs):
    tokens = model.get_features(inputs["pixel_values"])
    assert tokens.shape == (3, 16, 32)
    torch.testing.assert_close(pooled_features(model, inputs["pixel_values"]), tokens.mean(1))
    exported = pooled_features(model.export_encoder(), inputs["pixel_values"])
    torch.testing.assert_close(exported, tokens.mean(1))


@pytest.mark.parametrize("from_path", [True, False])
def test_from_encoder_keeps_what_there_is_and_says_what_is_new(from_path, tmp_path, caplog, monkeypatch):
    # As the facebook/data2vec-vision-* repositories: no mask token, epsilon of 1e-12, no final norm.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    released = Data2VecVisionModel(
        Data2VecVisionConfig(**sizes, image_size=32, patch_size=8, use_shared_relative_position_bias=True)
    )
    released.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("hf_jepa"), "propagate", True)
    with caplog.at_level("WARNING"):
        model = Data2VecVisionForPreTraining.from_encoder(str(tmp_path) if from_path else released, target_layers=1)
    assert "embeddings.mask_token, layernorm.bias, layernorm.weight: drawn anew" in caplog.text
    encoder = model.config.encoder_config
    assert (encoder.layer_norm_eps, encoder.use_mask_token, encoder.use_mean_pooling) == (1e-6, True, False)
    assert model.config.target_layers == [1]
    for name, value in released.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name
        assert torch.equal(model.target_encoder.state_dict()[name], value), name
    assert model.encoder.embeddings.mask_token.abs().sum() > 0
    assert released.config.layer_norm_eps == 1e-12
    # What this package exports has everything.
    model.export_encoder().save_pretrained(tmp_path / "again")
    again = Data2VecVisionForPreTraining.from_encoder(str(tmp_path / "again"))
    assert torch.equal(again.encoder.embeddings.mask_token, model.encoder.embeddings.mask_token)


def test_from_encoder_refuses_other_models(tmp_path):
    other = AutoModel.from_config(
        ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    )
    with pytest.raises(ValueError, match="'data2vec-vision' encoder"):
        Data2VecVisionForPreTraining.from_encoder(other)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'data2vec-vision' encoder"):
        Data2VecVisionForPreTraining.from_encoder(str(tmp_path))


# ---- Config ----


def test_default_config_is_the_published_base():
    config = Data2VecVisionPreTrainingConfig()
    encoder = config.encoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.layer_norm_eps) == (768, 12, 1e-6)
    assert encoder.use_mask_token
    assert not encoder.use_mean_pooling
    assert encoder.use_shared_relative_position_bias
    assert config.target_layers == [6, 7, 8, 9, 10, 11]
    assert (config.smooth_l1_beta, config.target_norm, config.target_post_layer_norm) == (2.0, "layer", True)
    assert config.to_dict() == Data2VecVisionPreTrainingConfig.from_size("base").to_dict()
    large = Data2VecVisionPreTrainingConfig.from_size("large")
    assert large.target_layers == [18, 19, 20, 21, 22, 23]
    assert large.encoder_config.layer_scale_init_value == 1e-5
    assert large.grid_size == (14, 14)


@pytest.mark.parametrize(
    ("encoder", "kwargs", "message"),
    [
        ({"use_mask_token": False}, {}, "use_mask_token"),
        ({"use_mean_pooling": True}, {}, "use_mean_pooling"),
        ({"image_size": (32, 64)}, {}, "square"),
        ({"image_size": 30}, {}, "square images and patches"),
        ({"patch_size": (8, 8)}, {}, "square images and patches"),
        ({"num_attention_heads": 5}, {}, "divisible by the 5"),
        ({}, {"target_layers": 4}, "has 3 blocks"),
        ({}, {"target_layers": 0}, "has 3 blocks"),
        ({}, {"target_layers": [1, 3]}, r"0\.\.2"),
        ({}, {"target_layers": [2, 1]}, "ascending"),
        ({}, {"target_layers": []}, "ascending"),
        ({}, {"smooth_l1_beta": -1.0}, "smooth_l1_beta"),
        ({}, {"target_norm": "batch"}, "target_norm"),
    ],
)
def test_bad_configs(tiny_config, encoder, kwargs, message):
    with pytest.raises(Exception, match=message):
        tiny_config(encoder=encoder, **kwargs)


def test_other_encoder_types_and_sizes_are_refused():
    with pytest.raises(Exception, match="model type 'data2vec-vision'"):
        Data2VecVisionPreTrainingConfig(encoder_config=ViTConfig())
    with pytest.raises(ValueError, match="Unknown data2vec vision size 'huge'"):
        Data2VecVisionPreTrainingConfig.from_size("huge")


def test_smooth_l1_of_beta_zero_is_l1(tiny_config):
    model = Data2VecVisionForPreTraining(tiny_config(smooth_l1_beta=0))
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(model._distance(x, y), F.l1_loss(x, y, reduction="none"))
