"""V-JEPA and V-JEPA 2 against the official numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import VJEPA2Model

from hf_jepa import VJepaConfig, VJepaForPreTraining, VJepaModel, VJepaPreTrainingConfig
from hf_jepa.models.vjepa.encoder_vjepa import VJepaEncoder
from hf_jepa.positions import resize_table

from .conftest import GOLDEN, close, module_weights, official_gradient, our_name


def frames_first(clips: torch.Tensor) -> torch.Tensor:
    """Official clips are (batch, channels, frames, height, width)."""
    return clips.transpose(1, 2)


def still(image: torch.Tensor, frames: int) -> torch.Tensor:
    return image.unsqueeze(1).repeat(1, frames, 1, 1, 1)


def masks(tensors: dict[str, torch.Tensor], prefix: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return tuple([tensors[f"{prefix}masks_{kind}.{index}"] for index in range(2)] for kind in ("enc", "pred"))


@pytest.mark.parametrize("attention", ["eager", "sdpa", "cpu_bf16"])
def test_vjepa_step(model_1, official_1, attention):
    model_1.set_attn_implementation(attention)
    assert model_1.encoder.config._attn_implementation == attention
    context_mask, target_mask = masks(official_1, "input/")
    output = model_1.train()(frames_first(official_1["input/clips"]), context_mask, target_mask)
    for index in range(2):
        close(output.context_features[index], official_1[f"expected/encoder_masked.{index}"])
        close(output.predictions[index], official_1[f"expected/predictor.{index}"])
        close(output.targets[index], official_1[f"expected/target_rows.{index}"])
    assert float(output.loss.detach()) == pytest.approx(float(official_1["expected/loss"]), abs=2e-6)
    for name, expected in (("prediction_loss", "loss_jepa"), ("variance", "loss_reg")):
        assert float(output.loss_components[name]) == pytest.approx(
            float(official_1[f"expected/{expected}"]), abs=2e-6
        )
    output.loss.backward()
    gradients = [key for key in official_1 if key.startswith("grad/")]
    assert len(gradients) == 9
    for key in gradients:
        close(official_gradient(model_1, key), official_1[key], 5e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "cpu_bf16"])
def test_vjepa2_step_on_two_clip_lengths(model_2, official_2, attention):
    model_2.set_attn_implementation(attention)
    clips = [frames_first(official_2[f"input/group{group}/clips"]) for group in range(2)]
    context_mask, target_mask = zip(*(masks(official_2, f"input/group{group}/") for group in range(2)), strict=True)
    output = model_2.train()(clips, list(context_mask), list(target_mask))
    pairs = [(group, index) for group in range(2) for index in range(2)]
    assert len(output.predictions) == len(pairs)
    for position, (group, index) in enumerate(pairs):
        expected = f"expected/group{group}/"
        close(output.context_features[position], official_2[f"{expected}encoder_masked.{index}"])
        close(output.predictions[position], official_2[f"{expected}predictor.{index}"])
        close(output.targets[position], official_2[f"{expected}target_rows.{index}"])
    assert float(output.loss.detach()) == pytest.approx(float(official_2["expected/loss"]), abs=2e-6)
    output.loss.backward()
    gradients = [key for key in official_2 if key.startswith("grad/")]
    assert len(gradients) == 9
    for key in gradients:
        close(official_gradient(model_2, key), official_2[key], 5e-5)
    # Mask tokens of groups that the batch does not have get nothing, as officially.
    assert not model_2.predictor.embeddings.mask_tokens.grad[2:].any()


@pytest.mark.parametrize("which", ["target", "context"])
def test_vjepa_features(model_1, official_1, which):
    expected = {"target": "target_encoder_full", "context": "encoder_full"}[which]
    features = model_1.get_features(frames_first(official_1["input/clips"]), which)
    close(features, official_1[f"expected/{expected}"])


@pytest.mark.parametrize("group", [0, 1])
def test_vjepa2_features(model_2, official_2, group):
    clips = frames_first(official_2[f"input/group{group}/clips"])
    close(model_2.get_features(clips), official_2[f"expected/group{group}/target_encoder_full"])
    close(model_2.get_features(clips, "context"), official_2[f"expected/group{group}/encoder_full"])


@pytest.mark.parametrize("index", range(3))
def test_vjepa_on_other_sizes(model_1, official_1, index):
    clip = frames_first(official_1[f"resized/clip.{index}"])
    grid = (clip.shape[1] // 2, clip.shape[3] // 4, clip.shape[4] // 4)
    table = resize_table(model_1.encoder.embeddings.position_embeddings, (4, 6, 6), grid)
    close(table, official_1[f"resized/pos_embed.{index}"])
    close(model_1.get_features(clip, "context"), official_1[f"resized/encoder.{index}"])


@pytest.mark.parametrize("index", range(4))
def test_vjepa2_on_other_sizes(model_2, official_2, index):
    clip = frames_first(official_2[f"resized/clip.{index}"])
    close(model_2.get_features(clip, "context"), official_2[f"resized/encoder.{index}"])
    with torch.no_grad():
        (masked,) = model_2.encoder([clip], [[official_2[f"resized/mask.{index}"]]])
    close(masked, official_2[f"resized/encoder_masked.{index}"])


def test_still_images(model_1, model_2, official_1, official_2):
    close(model_1.get_features(still(official_1["image/image"], 8)), official_1["image/encoder"])
    image = official_2["image/image"]
    for frames in (2, 8):
        close(model_2.get_features(still(image, frames)), official_2[f"image/encoder_repeat{frames}"])
    # One frame stands for a tubelet of itself.
    close(model_2.get_features(still(image, 1)), official_2["image/encoder_repeat2"])


def test_image_only_model(official_1):
    config = VJepaConfig(
        position_embedding_type="sincos",
        crop_size=24,
        patch_size=4,
        frames_per_clip=1,
        tubelet_size=1,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    encoder = VJepaEncoder(config).eval()
    drawn = encoder.embeddings.position_embeddings.clone()
    encoder.load_state_dict(module_weights(official_1, "image_model"))
    assert torch.equal(drawn, encoder.embeddings.position_embeddings)
    with torch.no_grad():
        for name in ("", "large_"):
            (features,) = encoder([still(official_1[f"image_model_out/{name}image"], 1)])
            close(features, official_1[f"image_model_out/{name}encoder"])


def backbone(model) -> VJepaModel:
    model_ = VJepaModel(model.config.encoder_config)
    model_.encoder.load_state_dict(model.encoder.state_dict())
    model_.predictor.load_state_dict(model.predictor.state_dict())
    return model_.eval()


@pytest.mark.parametrize("index", [0, 1])
def test_mask_token_index(model_2, official_2, index):
    context_mask, target_mask = masks(official_2, "input/group1/")
    clips = frames_first(official_2["input/group1/clips"])
    with torch.no_grad():
        output = backbone(model_2)(clips, context_mask[:1], target_mask[:1], mask_token_index=index)
    close(output.predictor_output.last_hidden_state, official_2[f"direct/predictor_mask_index{index}"])
    explicit = model_2.predict([clips], [context_mask[:1]], [target_mask[:1]], [index]).predictions[0]
    close(explicit, official_2[f"direct/predictor_mask_index{index}"])


def test_predictor_on_a_context_that_has_seen_everything(model_2, official_2):
    """What in-tree does: encode the whole clip, then keep the visible tokens."""
    context_mask, target_mask = masks(official_2, "input/group1/")
    clips = frames_first(official_2["input/group1/clips"])
    with torch.no_grad():
        whole = model_2.get_features(clips, "context")
        close(whole, official_2["in_tree/encoder_full"])
        context = whole.gather(1, context_mask[0].unsqueeze(-1).expand(-1, -1, 48))
        (predicted,), _ = model_2.predictor([context], context_mask[:1], target_mask[:1], [(4, 6, 6)], [1])
        close(predicted, official_2["direct/predictor_from_full_encoding"])
        close(predicted, official_2["in_tree/predictor"])

        in_tree = backbone(model_2).export_in_tree()
        assert isinstance(in_tree, VJEPA2Model)
        output = in_tree(clips, context_mask[:1], target_mask[:1])
    close(output.last_hidden_state, official_2["in_tree/encoder_full"])
    close(output.predictor_output.last_hidden_state, official_2["in_tree/predictor"])


@pytest.mark.parametrize("generation", ["1", "2"])
def test_initialization_has_the_official_statistics(generation):
    name = {"1": "vjepa", "2": "vjepa2"}[generation]
    keys = json.loads((GOLDEN / f"{name}_init_statistics.json").read_text())["keys"]
    statistics = load_file(GOLDEN / f"{name}_init_statistics.safetensors")
    encoder = VJepaConfig.from_size(
        "tiny",
        generation,
        crop_size=32,
        patch_size=8,
        frames_per_clip=4,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        pred_hidden_size=48,
        pred_num_hidden_layers=3,
        pred_num_attention_heads=2 if generation == "2" else 4,
        pred_num_mask_tokens=2,
    )
    model = VJepaForPreTraining(VJepaPreTrainingConfig(encoder_config=encoder))
    compared = 0
    for group in ("encoder", "predictor"):
        part = getattr(model, group)
        for key, row in zip(keys[group], statistics[f"statistics/{group}"].tolist(), strict=True):
            mean, std, lowest, _, numel = row
            if lowest == -2:
                # One weight of a hundred standard deviations: a flaw of `trunc_normal_` that we do not share.
                assert key == "backbone.blocks.0.mlp.fc1.weight"
                continue
            name = our_name(f"module.{key}")
            if "qkv" in name:
                tensor = torch.cat([part.get_parameter(name.replace("qkv", p)) for p in ("query", "key", "value")])
            elif "mask_tokens" in name:
                stem, index = name.rsplit(".", 1)
                tensor = part.get_parameter(stem)[int(index)]
            else:
                tensor = part.get_parameter(name)
            assert tensor.numel() == numel, key
            slack = 1e-6 if "pos_embed" in key else 5 / (2 * numel) ** 0.5 * std
            assert float(tensor.detach().std()) == pytest.approx(std, abs=slack), key
            assert float(tensor.detach().mean()) == pytest.approx(mean, abs=1e-6 + 5 * std / numel**0.5), key
            compared += 1
    assert compared == len(keys["encoder"]) + len(keys["predictor"]) - (generation == "1")
