"""What a user of I-JEPA relies on."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, IJepaConfig, IJepaModel
from transformers.models.ijepa.modeling_ijepa import IJepaLayer

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig


def tiny_config(**kwargs) -> IJepaPreTrainingConfig:
    encoder = IJepaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        layer_norm_eps=1e-6,
        **{"image_size": 32, "patch_size": 8, **kwargs.pop("encoder", {})},
    )
    return IJepaPreTrainingConfig(
        encoder_config=encoder, **{"predictor_hidden_size": 16, "predictor_num_hidden_layers": 2, **kwargs}
    )


@pytest.fixture
def model() -> IJepaForPreTraining:
    return IJepaForPreTraining(tiny_config())


@pytest.fixture
def inputs() -> dict:
    return {
        "pixel_values": torch.randn(3, 3, 32, 32),
        "context_mask": [torch.tensor([[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7]])],
        "target_mask": [torch.tensor([[10, 11]] * 3), torch.tensor([[14, 15]] * 3)],
    }


def test_attention_is_that_of_transformers_until_cpu_bf16_is_asked_for(model, inputs, tmp_path):
    parts = (model.encoder, model.target_encoder, model.predictor)
    assert {part.config._attn_implementation for part in parts} == {"sdpa"}
    model.set_attn_implementation("cpu_bf16")
    assert {part.config._attn_implementation for part in parts} == {"cpu_bf16"}
    built = type(model)._from_config(model.config, attn_implementation="cpu_bf16")
    assert built.predictor.config._attn_implementation == "cpu_bf16"
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in built.modules())

    # Asked for, it stays out of files, so that plain transformers loads them.
    model.save_pretrained(tmp_path)
    model.export_encoder().save_pretrained(tmp_path / "encoder")
    for config in (tmp_path / "config.json", tmp_path / "encoder" / "config.json"):
        assert "attn" not in config.read_text()
    exported, pixels = model.export_encoder(), inputs["pixel_values"]
    mask = torch.ones(3, 16, dtype=torch.int64)
    mask[:, 8:] = 0
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path / "encoder")(pixels, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(exported(pixels, attention_mask=mask).last_hidden_state, expected)


def test_cpu_bf16_attention_agrees(model, inputs):
    exact, losses = model(**inputs).loss, {}
    for attention in ("sdpa", "cpu_bf16"):
        model.set_attn_implementation(attention)
        with torch.autocast("cpu", torch.bfloat16):
            losses[attention] = model(**inputs).loss
    assert losses["cpu_bf16"] != losses["sdpa"]
    torch.testing.assert_close(losses["cpu_bf16"], exact, atol=0.02, rtol=0.02)


def test_predictor_casts_its_tokens_once(model, inputs):
    seen = []
    for layer in (*model.encoder.layers, *model.predictor.layers):
        for projection in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj):
            projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    assert seen == [torch.bfloat16] * 12


def test_predictor_layer_computes_only_what_is_read(model):
    hidden = torch.randn(2, 9, 16)
    ours = model.predictor.layers[-1]
    whole = IJepaLayer(model.predictor.config)
    whole.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(hidden, start=4), whole(hidden)[:, 4:])
    assert torch.equal(ours(hidden), whole(hidden))


def test_fan_in_initialization_keeps_patch_content_audible():
    model = IJepaForPreTraining(tiny_config(initialization="fan_in"))
    for parameter in (model.encoder.embeddings.patch_embeddings.projection.weight, model.predictor.embed.weight):
        fan_in = parameter[0].numel()
        assert float(parameter.detach().std()) == pytest.approx(fan_in**-0.5, rel=0.15)


def test_target_starts_as_a_copy_and_never_learns(model, inputs):
    for target, context in zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(target, context)
    model.train()
    assert not model.target_encoder.training
    model(**inputs).loss.backward()
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
    assert not model.encoder.embeddings.position_embeddings.requires_grad


def test_update_target_is_the_closed_form(model):
    before = {name: parameter.clone() for name, parameter in model.target_encoder.named_parameters()}
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    for _ in range(3):
        model.update_target(0.9)
    for name, parameter in model.target_encoder.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 1 - 0.9**3)
    model.update_target(0.0)
    assert torch.equal(model.target_encoder.layernorm.weight, model.encoder.layernorm.weight)


@pytest.mark.parametrize("momentum", [-0.1, 1.0001, float("nan")])
def test_momentum_outside_the_unit_interval_is_refused(model, momentum):
    with pytest.raises(ValueError, match="momentum"):
        model.update_target(momentum)


def test_ema_refuses_bf16_weights(model):
    with pytest.raises(ValueError, match="float32"):
        model.to(torch.bfloat16).update_target(0.99)


def test_hidden_patches_cannot_leak_into_the_context(model, inputs):
    before = model(**inputs).context_features
    changed = inputs["pixel_values"].clone()
    changed[:, :, 24:, 24:] = 5.0  # token 15, in no context mask
    after = model(**{**inputs, "pixel_values": changed})
    assert torch.equal(before, after.context_features)
    assert not torch.equal(after.targets[1], model(**inputs).targets[1])


def test_predictions_depend_on_where_they_are_asked(model, inputs):
    here = model(**inputs).predictions[0]
    there = model(**{**inputs, "target_mask": [torch.tensor([[11, 10]] * 3)]}).predictions[0]
    torch.testing.assert_close(here, there.flip(1), atol=1e-5, rtol=0)
    assert (here[:, 0] - here[:, 1]).abs().max() > 1e-3


def test_blocks_are_predicted_independently(model, inputs):
    alone = model(**{**inputs, "target_mask": inputs["target_mask"][1:]}).predictions[0]
    torch.testing.assert_close(model(**inputs).predictions[1], alone, atol=1e-6, rtol=0)


def test_energy_is_the_unreduced_loss(model, inputs):
    energy = model.energy(**inputs)
    assert energy.shape == (3,)
    assert float(energy.mean()) == pytest.approx(float(model(**inputs).loss.detach()), abs=1e-6)
    alone = {key: value[:1] if key == "pixel_values" else [m[:1] for m in value] for key, value in inputs.items()}
    torch.testing.assert_close(model.energy(**alone)[0], energy[0], atol=1e-6, rtol=0)


def test_tuple_output(model, inputs):
    as_dict, as_tuple = model(**inputs), model(**inputs, return_dict=False)
    assert torch.equal(as_tuple[0], as_dict.loss)


@pytest.mark.parametrize(("loss_type", "function"), [("l2", F.mse_loss), ("l1", F.l1_loss)])
def test_other_distances(inputs, loss_type, function):
    output = IJepaForPreTraining(tiny_config(loss_type=loss_type))(**inputs)
    expected = function(torch.cat(output.predictions), torch.cat(output.targets))
    torch.testing.assert_close(output.loss, expected)


def test_non_square_and_other_sizes(inputs):
    model = IJepaForPreTraining(tiny_config(encoder={"image_size": (32, 48)}))
    exported = model.export_encoder()
    pixels = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(exported(pixels).last_hidden_state, model.get_features(pixels))
    mask = [torch.tensor([[0, 23]] * 2)]
    wide = torch.randn(2, 3, 64, 16)
    assert model(pixels, mask, [torch.tensor([[5, 6]] * 2)]).loss.isfinite()
    assert model(wide, [torch.tensor([[0, 15]] * 2)], [torch.tensor([[5, 6]] * 2)]).loss.isfinite()
    same = IJepaForPreTraining(tiny_config(encoder={"image_size": (64, 16)}))
    same.load_state_dict({k: v for k, v in model.state_dict().items() if "position" not in k}, strict=False)
    torch.testing.assert_close(model.get_features(wide), same.get_features(wide))


def test_all_tokens_equal_the_in_tree_forward(model):
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.get_features(pixels), model.target_encoder(pixels).last_hidden_state)


def test_gradient_checkpointing_changes_nothing(model, inputs):
    model.train()
    model(**inputs).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.encoder.layers[0].gradient_checkpointing
    assert model.predictor.layers[0].gradient_checkpointing
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, plain[name])


def test_bf16_autocast_keeps_loss_and_targets_in_fp32(model, inputs):
    reference = model(**inputs).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    assert output.loss.dtype == torch.float32
    assert output.targets[0].dtype == torch.float32
    assert float(output.loss) == pytest.approx(float(reference), rel=0.05)


def test_compiles_without_graph_breaks(model, inputs):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).loss, model(**inputs).loss)


def test_save_and_load(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForPreTraining):
        loaded = auto.from_pretrained(tmp_path)
        assert isinstance(loaded, IJepaForPreTraining)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(loaded(**inputs).loss, model.eval()(**inputs).loss)
    assert loaded.config.to_dict() == AutoModelForPreTraining.from_pretrained(tmp_path).config.to_dict()


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_partial_checkpoints_are_refused(model, tmp_path, damage):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    key = "predictor.embed.weight"
    if damage == "missing":
        del tensors[key]
    elif damage == "unexpected":
        key = "predictor.stranger"
        tensors[key] = torch.zeros(2)
    else:
        tensors[key] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=key):
        AutoModelForPreTraining.from_pretrained(tmp_path)


def test_from_encoder_continues_from_a_release(model, tmp_path):
    with torch.no_grad():
        model.target_encoder.layernorm.weight.mul_(1.5)
    model.export_encoder("target").save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), IJepaModel)
    continued = IJepaForPreTraining.from_encoder(str(tmp_path), predictor_hidden_size=8, predictor_num_hidden_layers=1)
    pixels = torch.randn(1, 3, 32, 32)
    for which in ("context", "target"):
        assert torch.equal(continued.get_features(pixels, which), model.get_features(pixels))
    assert continued.config.predictor_hidden_size == 8
    with pytest.raises(ValueError, match="which"):
        model.export_encoder("teacher")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_mask": []}, "non-empty list"),
        ({"target_mask": torch.zeros(3, 2, dtype=torch.int64)}, "non-empty list"),
        ({"target_mask": [torch.tensor([[16, 1]] * 3)]}, "index 16"),
        ({"context_mask": [torch.tensor([[-1, 1]] * 3)]}, "index -1"),
        ({"target_mask": [torch.zeros(3, 0, dtype=torch.int64)]}, "non-zero number"),
        ({"target_mask": [torch.zeros(3, 2)]}, "int64"),
        ({"target_mask": [torch.zeros(2, 2, dtype=torch.int64)]}, r"\(3, kept\)"),
        ({"target_mask": [torch.tensor([[1, 2]] * 3), torch.tensor([[1]] * 3)]}, "same, non-zero"),
        ({"pixel_values": torch.randn(3, 3, 30, 32)}, "30x32"),
        ({"pixel_values": torch.randn(3, 1, 32, 32)}, "channel"),
    ],
)
def test_bad_inputs_are_named(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **change})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"predictor_hidden_size": 18}, "divisible by 4"),
        ({"predictor_hidden_size": 20, "predictor_num_attention_heads": 3}, "heads"),
        ({"encoder": {"patch_size": 7}}, "patch size"),
        ({"predictor_num_hidden_layers": 0}, "at least 1"),
        ({"loss_type": "huber"}, "loss_type"),
        ({"predictor_num_hidden_layers": "6"}, "predictor_num_hidden_layers"),
    ],
)
def test_bad_configs_are_named(kwargs, message):
    with pytest.raises(Exception, match=message) as error:
        tiny_config(**kwargs)
    assert isinstance(error.value, ValueError | TypeError) or "Strict" in type(error.value).__name__


def test_unknown_size_and_foreign_encoder():
    with pytest.raises(ValueError, match="gigantic"):
        IJepaPreTrainingConfig.from_size("gigantic")
    with pytest.raises(Exception, match="vit"):
        IJepaPreTrainingConfig(encoder_config={"model_type": "vit"})
