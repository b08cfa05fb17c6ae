"""Original checkpoints: conversion, numbers, and the way back."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from hf_jepa.conversion.ijepa import _heads, convert_ijepa_checkpoint, export_original_checkpoint
from hf_jepa.hub import load_pretraining

GOLDEN = Path(__file__).parents[1] / "golden"
GROUPS = ("encoder", "predictor", "target_encoder")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "ijepa_forward.safetensors")


@pytest.fixture
def original(golden) -> dict:
    """A checkpoint as the released code writes it, less the optimizer."""
    checkpoint = {group: OrderedDict() for group in GROUPS}
    # The JSON lists the tensors in the order of the original state dicts; safetensors sorts them.
    for name in json.loads((GOLDEN / "ijepa_forward.json").read_text())["tensors"]:
        group, _, key = name.partition("/")
        if group in checkpoint:
            checkpoint[group][key] = golden[name].clone()
    return {**checkpoint, "epoch": 3, "loss": 0.25, "batch_size": 16, "world_size": 1, "lr": 1e-3}


def save(checkpoint: dict, folder: Path, name: str = "jepa-latest.pth.tar") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / name)
    return folder / name


def convert(checkpoint: dict, tmp_path: Path, **kwargs) -> Path:
    kwargs = {"num_attention_heads": 4, "licence": "mit"} | kwargs
    return convert_ijepa_checkpoint(save(checkpoint, tmp_path / "source"), tmp_path / "release", **kwargs)


def test_converted_model_reproduces_the_original_numbers(original, golden, tmp_path):
    folder = convert(original, tmp_path)
    model = load_pretraining(folder / "pretraining")
    with torch.no_grad():
        output = model(
            golden["input/images"],
            context_mask=[golden["input/masks_enc.0"]],
            target_mask=[golden[f"input/masks_pred.{index}"] for index in range(4)],
        )
    for name, ours in {
        "encoder_masked": output.context_features,
        "predictor": torch.cat(output.predictions),
        "target_rows": torch.cat(output.targets),
    }.items():
        reference = golden[f"expected/{name}"]
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5 * float(reference.abs().max()))
    assert float(output.loss) == pytest.approx(float(golden["expected/loss"]), abs=2e-6)


@pytest.mark.parametrize(("which", "expected"), [("target", "target_encoder_full"), ("context", "encoder_full")])
def test_root_is_the_chosen_encoder_and_says_so(original, golden, tmp_path, which, expected):
    folder = convert(original, tmp_path, which=which)
    encoder = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        features = encoder(golden["input/images"]).last_hidden_state
    reference = golden[f"expected/{expected}"]
    torch.testing.assert_close(features, reference, rtol=0, atol=1e-5 * float(reference.abs().max()))
    assert json.loads((folder / "config.json").read_text())["jepa_encoder"] == which
    assert f"**{which} encoder**" in (folder / "README.md").read_text()


def test_sizes_come_from_the_shapes(original, tmp_path):
    config = load_pretraining(convert(original, tmp_path) / "pretraining").config
    encoder = config.encoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.intermediate_size) == (48, 3, 192)
    assert (encoder.image_size, encoder.patch_size, encoder.num_channels) == (64, 8, 3)
    assert encoder.layer_norm_eps == 1e-6
    assert (config.predictor_hidden_size, config.predictor_num_hidden_layers) == (24, 2)
    assert config.predictor_num_attention_heads == 4


def test_position_tables_are_copied(original, tmp_path):
    # The EMA moves the target's table; recomputing it would lose that.
    drifted = original["target_encoder"]["module.pos_embed"] + 1e-3
    original["target_encoder"]["module.pos_embed"] = drifted
    original["predictor"]["module.predictor_pos_embed"] += 2e-3
    model = load_pretraining(convert(original, tmp_path) / "pretraining")
    assert torch.equal(model.target_encoder.embeddings.position_embeddings, drifted)
    assert torch.equal(model.encoder.embeddings.position_embeddings, original["encoder"]["module.pos_embed"])
    assert torch.equal(model.predictor.position_embeddings, original["predictor"]["module.predictor_pos_embed"])
    assert not model.target_encoder.embeddings.position_embeddings.requires_grad


def test_way_back_gives_the_same_bytes(original, tmp_path):
    source = save(original, tmp_path / "source")
    folder = convert_ijepa_checkpoint(source, tmp_path / "release", num_attention_heads=4, licence="mit")
    back = export_original_checkpoint(folder, tmp_path / "renamed-on-the-way.pth.tar")
    assert back.read_bytes() == source.read_bytes()


def test_way_back_keeps_module_metadata_shared_names_and_plain_dicts(original, tmp_path):
    real = nn.Sequential(OrderedDict(module=nn.Linear(2, 2))).state_dict()
    original["encoder"]._metadata = real._metadata
    names = list(original["encoder"])
    original["target_encoder"] = {name: original["target_encoder"][name] for name in names}
    test_way_back_gives_the_same_bytes(original, tmp_path)
    loaded = torch.load(tmp_path / "renamed-on-the-way.pth.tar", weights_only=True)
    assert loaded["encoder"]._metadata == real._metadata
    assert type(loaded["target_encoder"]) is dict


def test_way_back_without_prefix(original, tmp_path):
    for group in GROUPS:
        original[group] = OrderedDict((key.removeprefix("module."), value) for key, value in original[group].items())
    test_way_back_gives_the_same_bytes(original, tmp_path)


def test_optimizer_is_dropped_and_named(original, tmp_path):
    original["opt"] = {"state": {0: torch.zeros(2)}}
    original["loss"] = np.float64(0.5)
    folder = convert(original, tmp_path)
    layout = json.loads((folder / "pretraining" / "original_checkpoint.json").read_text())
    assert layout["dropped"] == ["opt"]
    back = torch.load(export_original_checkpoint(folder, tmp_path / "back.pth.tar"), weights_only=True)
    assert set(back) == set(original) - {"opt"}
    assert back["loss"] == 0.5
    assert back["epoch"] == 3
    for group in GROUPS:
        assert list(back[group]) == list(original[group])
        assert all(torch.equal(back[group][key], original[group][key]) for key in original[group])


def test_a_model_that_never_was_original_gets_the_original_layout(original, tmp_path):
    folder = convert(original, tmp_path)
    (folder / "pretraining" / "original_checkpoint.json").unlink()
    back = torch.load(export_original_checkpoint(folder / "pretraining", tmp_path / "x.pth.tar"), weights_only=True)
    assert list(back) == list(GROUPS)
    for group in GROUPS:
        assert list(back[group]) == list(original[group])
        assert all(torch.equal(back[group][key], original[group][key]) for key in original[group])


def test_every_fault_is_named_and_nothing_is_written(original, tmp_path):
    del original["encoder"]["module.blocks.1.attn.qkv.bias"]
    original["target_encoder"]["module.head.weight"] = torch.zeros(1)
    original["predictor"]["module.predictor_proj.weight"] = torch.zeros(47, 24)
    with pytest.raises(ValueError, match="not an I-JEPA of the inferred size") as error:
        convert(original, tmp_path)
    message = str(error.value)
    assert "missing: encoder/blocks.1.attn.qkv.bias" in message
    assert "extra: target_encoder/head.weight" in message
    assert "mis-shaped: predictor/predictor_proj.weight is (47, 24), expected (48, 24)" in message
    assert not (tmp_path / "release").exists()


def test_missing_block_in_the_middle_is_missing_not_shallower(original, tmp_path):
    for key in [key for key in original["encoder"] if ".blocks.1." in key]:
        del original["encoder"][key]
    with pytest.raises(ValueError, match=r"missing: encoder/blocks\.1\.norm1\.weight"):
        convert(original, tmp_path)


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        (lambda c: None, {"num_attention_heads": None}, "--num-attention-heads"),
        (lambda c: None, {"num_attention_heads": 5}, "48.* not divisible by .*5"),
        (lambda c: None, {"predictor_num_attention_heads": 5}, "24.* not divisible by .*5"),
        (lambda c: None, {"image_size": 72}, "correct `image_size`"),
        (lambda c: c["encoder"].clear(), {}, "it is empty"),
        (lambda c: c["encoder"].update({"module.norm.bias": 3}), {}, "norm.bias"),
        (lambda c: c["encoder"].pop("module.patch_embed.proj.weight"), {}, "patch_embed.proj.weight"),
        (lambda c: c["encoder"].update({"module.norm.bias": torch.zeros(48).half()}), {}, "one floating-point type"),
    ],
)
def test_bad_checkpoints_are_refused(original, tmp_path, change, kwargs, message):
    change(original)
    with pytest.raises(ValueError, match=message):
        convert(original, tmp_path, **kwargs)
    assert not (tmp_path / "release").exists()


def test_non_square_images_need_their_size(original, tmp_path):
    for group, key in (
        ("encoder", "module.pos_embed"),
        ("target_encoder", "module.pos_embed"),
        ("predictor", "module.predictor_pos_embed"),
    ):
        original[group][key] = original[group][key][:, :32].clone()
    with pytest.raises(ValueError, match="--image-size"):
        convert(original, tmp_path)
    folder = convert(original, tmp_path, image_size=(32, 64))
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder)(torch.zeros(1, 3, 32, 64)).last_hidden_state
    assert features.shape == (1, 32, 48)


def test_known_sizes_need_no_head_count():
    assert [_heads(*size, None) for size in ((1280, 32), (1408, 40), (768, 12), (192, 12))] == [16, 16, 12, 3]


def test_converted_card_carries_the_licence_of_the_source(original, tmp_path):
    card = (convert(original, tmp_path, licence="cc-by-nc-4.0") / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card
    assert "converted" in card
    assert "not evaluated" in card
    assert "jepa-latest.pth.tar" in card
