"""I-JEPA against the official numbers."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig

from .conftest import GOLDEN, close


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


def test_published_parameter_counts():
    counts = {"tiny": 5_486_400, "small": 21_589_632, "base": 85_646_592, "large": 303_098_880, "huge": 630_434_560}
    for size, expected in counts.items():
        with torch.device("meta"):
            model = IJepaForPreTraining(IJepaPreTrainingConfig.from_size(size))
        assert sum(p.numel() for p in model.encoder.parameters() if p.requires_grad) == expected
    assert sum(p.numel() for p in model.predictor.parameters() if p.requires_grad) == 22_279_424
    giant = IJepaPreTrainingConfig.from_size("giant")
    assert (giant.encoder_config.intermediate_size, giant.predictor_num_hidden_layers) == (6144, 16)
