"""Original V-JEPA 2-AC checkpoints: conversion, numbers, and the way back."""

import pytest
import torch
from transformers import AutoModel, AutoVideoProcessor, ViTConfig

from hf_jepa import VJepa2ACModel
from hf_jepa.cli import main
from hf_jepa.conversion.vjepa2_ac import convert_vjepa2_ac_checkpoint, export_original_checkpoint
from hf_jepa.hub import check_release
from tests.models.vjepa2_ac.conftest import close, tiny_config

from .original_files import assert_same_tensors, golden, save, training_file

OPTIONS = {"num_attention_heads": 2, "predictor_num_attention_heads": 3, "image_size": 16, "licence": "mit"}
FLAGS = [
    "--num-attention-heads",
    "2",
    "--predictor-num-attention-heads",
    "3",
    "--image-size",
    "16",
    "--license",
    "mit",
]
GROUPS = ("encoder", "predictor", "target_encoder")


@pytest.fixture
def original() -> dict:
    """As the released code writes it: both encoders are one."""
    checkpoint = training_file("vjepa2_ac")
    checkpoint["encoder"] = type(checkpoint["encoder"])(
        {key: tensor.clone() for key, tensor in checkpoint["target_encoder"].items()}
    )
    return checkpoint


def test_converts_by_command_and_gives_the_official_numbers(original, tmp_path, capsys):
    path, folder, back = save(original, tmp_path, "vitg.pt"), tmp_path / "release", tmp_path / "back" / "vitg.pt"
    assert main(["convert", "vjepa2_ac", str(path), str(folder), *FLAGS]) == 0
    check_release(folder)
    card = (folder / "README.md").read_text()
    assert "license: mit" in card
    assert "holds the whole V-JEPA 2-AC model" in card
    assert "states=states" in card
    assert not (folder / "pretraining").exists()
    expected = golden("vjepa2_ac")
    model = AutoModel.from_pretrained(folder)
    assert type(model) is VJepa2ACModel
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    latents = model.encode(expected["input/clips"].transpose(1, 2))
    close(latents.flatten(1, 2), expected["expected/target_normalized"])
    for variant, use_extrinsics in (("no_extrinsics", False), ("extrinsics", True)):
        model = AutoModel.from_pretrained(folder, use_extrinsics=use_extrinsics)
        given = {"actions": expected["input/actions"], "states": expected["input/states"]}
        given |= {"extrinsics": expected["input/extrinsics"]} if use_extrinsics else {}
        with torch.no_grad():
            loss = model(expected["expected/target_normalized"].unflatten(1, (4, 16)), **given).loss
        assert float(loss) == pytest.approx(float(expected[f"expected/{variant}/loss"]), abs=2e-6)
    processor = AutoVideoProcessor.from_pretrained(folder)
    picture = torch.zeros(1, 3, 40, 54, dtype=torch.uint8)
    picture[..., :5] = picture[..., -5:] = 255
    ((frame,),) = processor(picture, return_tensors="pt").pixel_values_videos
    assert frame.shape == (3, 16, 16)
    mean, std = (torch.tensor(values)[:, None] for values in (model.config.image_mean, model.config.image_std))
    for column, value in ((0, 1.0), (8, 0.0), (15, 1.0)):  # nothing is cut off at the sides
        torch.testing.assert_close(frame[:, :, column], ((value - mean) / std).expand(-1, 16), rtol=0, atol=0.01)

    assert main(["convert", "vjepa2_ac", str(folder), str(back), "--reverse"]) == 0
    assert path.read_bytes() == back.read_bytes()


def test_a_second_conversion_into_the_folder_replaces_the_first(original, tmp_path):
    folder = tmp_path / "release"
    first = training_file("vjepa2_ac")
    convert_vjepa2_ac_checkpoint(save(first, tmp_path / "1", "a.pt"), folder, **OPTIONS)
    path = save(original, tmp_path / "2", "b.pt")
    convert_vjepa2_ac_checkpoint(path, folder, **OPTIONS, overwrite=True)
    assert path.read_bytes() == export_original_checkpoint(folder, tmp_path / "back.pt").read_bytes()


@pytest.mark.parametrize("which", ["target", "context", None])
def test_two_encoders_are_kept_and_one_is_used(which, tmp_path):
    original = training_file("vjepa2_ac")
    path = save(original, tmp_path, "latest.pt")
    folder = convert_vjepa2_ac_checkpoint(path, tmp_path / "release", which=which, **OPTIONS)
    weights = AutoModel.from_pretrained(folder).encoder.encoder.layernorm.weight
    group = "encoder" if which == "context" else "target_encoder"
    assert torch.equal(weights, original[group]["module.norm.weight"])
    back = export_original_checkpoint(folder, tmp_path / "back.pt")
    assert path.read_bytes() == back.read_bytes()


def test_files_with_position_tables_and_one_encoder(original, tmp_path):
    del original["target_encoder"]
    original["encoder"]["module.pos_embed"] = torch.randn(1, 16, 32)
    original["opt"] = {"state": {0: torch.zeros(2)}}
    path = save(original, tmp_path, "latest.pt")
    folder = convert_vjepa2_ac_checkpoint(path, tmp_path / "release", **OPTIONS)
    back = torch.load(export_original_checkpoint(folder, tmp_path / "back.pt"), weights_only=True)
    assert_same_tensors(back, {name: original[name] for name in ("encoder", "predictor")})
    with pytest.raises(ValueError, match="no target encoder"):
        convert_vjepa2_ac_checkpoint(path, tmp_path / "other", which="target", **OPTIONS)
    assert not (tmp_path / "other").exists()


def test_models_that_came_from_no_file_are_written_as_the_released_code_would(tmp_path):
    model = VJepa2ACModel(tiny_config())
    model.save_pretrained(tmp_path / "model")
    path = export_original_checkpoint(tmp_path / "model", tmp_path / "ac.pt")
    assert all(key.startswith("module.") for key in torch.load(path, weights_only=True)["predictor"])
    again = AutoModel.from_pretrained(convert_vjepa2_ac_checkpoint(path, tmp_path / "again", **OPTIONS))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    other = VJepa2ACModel(
        tiny_config(
            encoder_config=ViTConfig(
                image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
            )
        )
    )
    other.save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="no place for an encoder of type 'vit'"):
        export_original_checkpoint(tmp_path / "vit", tmp_path / "vit.pt")


def test_every_key_must_be_accounted_for(original, tmp_path):
    predictor = original["predictor"]
    predictor["module.extra.weight"] = torch.zeros(2)
    del predictor["module.state_encoder.bias"]
    predictor["module.predictor_proj.bias"] = torch.zeros(3)
    path = save(original, tmp_path, "latest.pt")
    with pytest.raises(ValueError, match="nothing was written") as error:
        convert_vjepa2_ac_checkpoint(path, tmp_path / "release", **OPTIONS)
    for fault in (
        "extra: predictor/extra.weight",
        "missing: predictor/state_encoder.bias",
        "predictor_proj.bias is (3,)",
    ):
        assert fault in str(error.value)
    assert not (tmp_path / "release").exists()


def test_files_of_another_family_and_unknown_heads_are_refused(original, tmp_path):
    path = save(original, tmp_path, "latest.pt")
    with pytest.raises(ValueError, match="--predictor-num-attention-heads"):
        convert_vjepa2_ac_checkpoint(path, tmp_path / "release", **(OPTIONS | {"predictor_num_attention_heads": None}))
    with pytest.raises(ValueError, match="--image-size"):
        convert_vjepa2_ac_checkpoint(path, tmp_path / "release", **(OPTIONS | {"image_size": 18}))
    video = save(training_file("vjepa2_forward"), tmp_path, "video.pt")
    with pytest.raises(ValueError, match="convert it as `vjepa2`"):
        convert_vjepa2_ac_checkpoint(video, tmp_path / "release", **OPTIONS)
