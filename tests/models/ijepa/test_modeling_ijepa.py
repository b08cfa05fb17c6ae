"""I-JEPA against the official numbers, and what a user relies on."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, IJepaConfig, IJepaModel
from transformers.models.ijepa.modeling_ijepa import IJepaLayer

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig

GOLDEN = Path(__file__).parents[2] / "golden"


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


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * float(reference.abs().max()))


def module_gradient(model: IJepaForPreTraining, key: str) -> torch.Tensor:
    """The gradient under an official key; the fused attention projection is joined again."""
    group, name = key.removeprefix("grad/").split("/module.")
    part = getattr(model, group)
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "predictor_embed": "embed",
        "predictor_proj": "proj",
        "norm.": "layernorm.",
        "norm1": "layernorm_before",
        "predictor_blocks": "layers",
        "blocks": "layers",
        "attn.qkv": "attention.{}_proj",
    }
    for official_name, ours in names.items():
        name = name.replace(official_name, ours)
    if "{}" in name:
        return torch.cat([part.get_parameter(name.format(letter)).grad for letter in "qkv"])
    return part.get_parameter(name).grad


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_official_step(official_model, official, official_inputs, attention):
    official_model.set_attn_implementation(attention)
    assert official_model.predictor.config._attn_implementation == attention
    output = official_model.train()(**official_inputs)
    close(torch.cat(output.predictions), official["expected/predictor"])
    close(torch.cat(output.targets), official["expected/target_rows"])
    close(output.context_features, official["expected/encoder_masked"])
    assert float(output.loss.detach()) == pytest.approx(float(official["expected/loss"]), abs=2e-6)

    output.loss.backward()
    gradients = [key for key in official if key.startswith("grad/")]
    assert len(gradients) == 9
    for key in gradients:
        close(module_gradient(official_model, key), official[key], 5e-5)


@pytest.mark.parametrize("which", ["target", "context"])
def test_official_features(official_model, official, which):
    group = {"target": "target_encoder", "context": "encoder"}[which]
    close(official_model.get_features(official["input/images"], which), official[f"expected/{group}_full"])


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


def test_flex_attention_agrees(official_model, official, official_inputs):
    official_model.set_attn_implementation("flex_attention")
    # No backward pass on CPUs; compiled it is in `tests/test_gpu.py`, here that would take most of a minute.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        output = official_model(**official_inputs)
    close(torch.cat(output.predictions), official["expected/predictor"])


def test_two_context_masks(official_model, official):
    output = official_model(
        official["input/images"],
        context_mask=[official[f"two_context/masks_enc.{index}"] for index in range(2)],
        target_mask=[official[f"two_context/masks_pred.{index}"] for index in range(4)],
    )
    close(output.context_features, official["two_context/encoder_masked"])
    close(torch.cat(output.predictions), official["two_context/predictor"])
    close(torch.cat(output.targets), official["two_context/target_rows"])
    assert float(output.loss.detach()) == pytest.approx(float(official["two_context/loss"]), abs=2e-6)
    assert [tuple(block.shape) for block in output.predictions] == [(6, 12, 48)] * 4


def test_published_formula_fixture():
    """A fixture that needs no file: weights are sines of their index."""
    encoder = IJepaConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=64,
        patch_size=16,
        layer_norm_eps=1e-6,
    )
    model = IJepaForPreTraining(IJepaPreTrainingConfig(encoder_config=encoder, predictor_num_hidden_layers=2))
    pixels = torch.sin(0.01 * torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)).float().view(2, 3, 64, 64)
    with torch.no_grad():
        fill_by_formula(model.encoder, "blocks", {"embeddings.position_embeddings": "pos_embed"})
        fill_by_formula(model.predictor, "predictor_blocks", {"position_embeddings": "predictor_pos_embed"})
    model.sync_target()
    output = model(
        pixels,
        [torch.tensor([[0, 1, 2, 4, 5, 8], [0, 1, 4, 5, 6, 9]])],
        [torch.tensor([[10, 11, 14], [2, 3, 7]]), torch.tensor([[3, 7, 13], [11, 12, 15]])],
    )
    features = model.get_features(pixels)
    assert torch.allclose(
        features[0, 0, :4], torch.tensor([-0.7158895, -0.6688055, -0.3582949, -0.8443074]), atol=1e-5
    )
    predictions = torch.cat(output.predictions)
    assert torch.allclose(
        predictions[0, 0, :4], torch.tensor([-0.0988612, 0.1168559, 0.1646823, -0.0436508]), atol=1e-5
    )
    assert torch.allclose(predictions[3, 2, :3], torch.tensor([-0.0529698, 0.0904091, 0.1086028]), atol=1e-5)
    assert float(output.loss.detach()) == pytest.approx(0.4435269, abs=2e-6)
    assert float(F.mse_loss(predictions, torch.cat(output.targets)).detach()) == pytest.approx(1.0186449, abs=5e-6)


def fill_by_formula(module: torch.nn.Module, blocks: str, tables: dict[str, str]) -> None:
    """Element i of the j-th key in the official alphabetical order is 0.02 sin(0.7 i + 1.3 j), norms plus one."""
    prefix = "predictor_" if blocks.startswith("predictor") else ""
    stems = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": prefix + "norm",
        "embed": "predictor_embed",
        "proj": "predictor_proj",
    }
    inner = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    official = {}
    for name, parameter in module.named_parameters():
        if name in tables or name == "mask_token":
            official[tables.get(name, name)] = [parameter]
            continue
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("layers."):
            _, index, rest = stem.split(".", 2)
            stem = f"{blocks}.{index}.{'attn.qkv' if rest[-7:-5] in ('.q', '.k', '.v') else inner[rest]}"
        else:
            stem = stems[stem]
        official.setdefault(f"{stem}.{kind}", []).append(parameter)
    for j, (key, parameters) in enumerate(sorted(official.items())):
        if "pos_embed" in key:
            continue
        count = sum(parameter.numel() for parameter in parameters)
        values = 0.02 * torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + 1.3 * j)
        values += float("norm" in key and key.endswith(".weight"))
        for parameter, chunk in zip(parameters, values.float().chunk(len(parameters)), strict=True):
            parameter.copy_(chunk.view_as(parameter))


def test_initialization_has_the_official_statistics():
    recorded = json.loads((GOLDEN / "ijepa_init_statistics.json").read_text())
    statistics = load_file(GOLDEN / "ijepa_init_statistics.safetensors")
    encoder = IJepaConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        image_size=64,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    model = IJepaForPreTraining(
        IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=48, predictor_num_hidden_layers=3)
    )
    ours = {
        "encoder": {
            "pos_embed": model.encoder.embeddings.position_embeddings,
            "patch_embed.proj.weight": model.encoder.embeddings.patch_embeddings.projection.weight,
            "blocks.3.mlp.fc2.weight": model.encoder.layers[3].mlp.fc2.weight,
            "blocks.3.attn.proj.weight": model.encoder.layers[3].attention.o_proj.weight,
            "blocks.0.mlp.fc1.bias": model.encoder.layers[0].mlp.fc1.bias,
            "norm.weight": model.encoder.layernorm.weight,
        },
        "predictor": {
            "mask_token": model.predictor.mask_token,
            "predictor_pos_embed": model.predictor.position_embeddings,
            "predictor_embed.weight": model.predictor.embed.weight,
            "predictor_blocks.2.mlp.fc2.weight": model.predictor.layers[2].mlp.fc2.weight,
            "predictor_norm.bias": model.predictor.layernorm.bias,
        },
    }
    for group, tensors in ours.items():
        for key, tensor in tensors.items():
            mean, std, _, _, numel = statistics[f"statistics/{group}"][recorded["keys"][group].index(key)].tolist()
            slack = 1e-6 if "pos_embed" in key else 5 / (2 * numel) ** 0.5 * std
            assert float(tensor.detach().std()) == pytest.approx(std, abs=slack), key
            assert float(tensor.detach().mean()) == pytest.approx(mean, abs=1e-6 + 5 * std / numel**0.5), key


def test_fan_in_initialization_keeps_patch_content_audible():
    model = IJepaForPreTraining(tiny_config(initialization="fan_in"))
    for parameter in (model.encoder.embeddings.patch_embeddings.projection.weight, model.predictor.embed.weight):
        fan_in = parameter[0].numel()
        assert float(parameter.detach().std()) == pytest.approx(fan_in**-0.5, rel=0.15)


def test_published_parameter_counts():
    counts = {"tiny": 5_486_400, "small": 21_589_632, "base": 85_646_592, "large": 303_098_880, "huge": 630_434_560}
    for size, expected in counts.items():
        with torch.device("meta"):
            model = IJepaForPreTraining(IJepaPreTrainingConfig.from_size(size))
        assert sum(p.numel() for p in model.encoder.parameters() if p.requires_grad) == expected
    assert sum(p.numel() for p in model.predictor.parameters() if p.requires_grad) == 22_279_424
    giant = IJepaPreTrainingConfig.from_size("giant")
    assert (giant.encoder_config.intermediate_size, giant.predictor_num_hidden_layers) == (6144, 16)


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
