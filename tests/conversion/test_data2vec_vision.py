"""Original checkpoints: conversion, numbers, and the way back."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel
from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionRelativePositionBias

from hf_jepa import Data2VecVisionForPreTraining
from hf_jepa.conversion.data2vec_vision import (
    convert_data2vec_vision_checkpoint,
    export_original_checkpoint,
)
from hf_jepa.conversion.original_files import UnsafeCheckpointError
from hf_jepa.hub import load_pretraining
from hf_jepa.models.data2vec_vision.modeling_data2vec_vision import unique_consecutive_mask

DEPTH = 4
INDEX = "rel_pos_bias.relative_position_index"
TABLE = "rel_pos_bias.relative_position_bias_table"


def original_state(encoder: dict[str, torch.Tensor], head: dict[str, torch.Tensor]) -> OrderedDict:
    """A state dict in the released layout, from in-tree names; written out apart from the converter's own map."""
    patches = "embeddings.patch_embeddings.projection"
    state = OrderedDict(
        {
            "cls_token": encoder["embeddings.cls_token"],
            "mask_token": encoder["embeddings.mask_token"],
            "patch_embed.proj.weight": encoder[f"{patches}.weight"],
            "patch_embed.proj.bias": encoder[f"{patches}.bias"],
            TABLE: encoder["encoder.relative_position_bias.relative_position_bias_table"],
            INDEX: Data2VecVisionRelativePositionBias.generate_relative_position_index((4, 4)).clone(),
        }
    )
    for index in range(DEPTH):
        ours, theirs = f"encoder.layer.{index}", f"blocks.{index}"
        attention = f"{ours}.attention.attention"
        state[f"{theirs}.gamma_1"], state[f"{theirs}.gamma_2"] = (
            encoder[f"{ours}.lambda_1"],
            encoder[f"{ours}.lambda_2"],
        )
        for kind in ("weight", "bias"):
            state[f"{theirs}.norm1.{kind}"] = encoder[f"{ours}.layernorm_before.{kind}"]
        state[f"{theirs}.attn.q_bias"] = encoder[f"{attention}.query.bias"]
        state[f"{theirs}.attn.v_bias"] = encoder[f"{attention}.value.bias"]
        state[f"{theirs}.attn.qkv.weight"] = torch.cat(
            [encoder[f"{attention}.{part}.weight"] for part in ("query", "key", "value")]
        )
        for source, name in (
            ("attn.proj", "attention.output.dense"),
            ("norm2", "layernorm_after"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            for kind in ("weight", "bias"):
                state[f"{theirs}.{source}.{kind}"] = encoder[f"{ours}.{name}.{kind}"]
    for kind in ("weight", "bias"):
        state[f"norm.{kind}"] = encoder[f"layernorm.{kind}"]
    for kind in ("weight", "bias"):
        state[f"lm_head.{kind}"] = head[kind]
    return OrderedDict((key, value.clone()) for key, value in state.items())


@pytest.fixture
def original(official) -> dict:
    """The official tiny student and teacher in a checkpoint as the released code writes it, less optimizer state."""
    parts = {
        group: {key.removeprefix(f"{name}/"): value for key, value in official.items() if key.startswith(f"{name}/")}
        for group, name in (("model", "student"), ("model_ema", "teacher"))
    }
    head = {kind: parts["model"].pop(f"lm_head.{kind}") for kind in ("weight", "bias")}
    teacher_head = {kind: value + 0.5 for kind, value in head.items()}
    return {
        "model": original_state(parts["model"], head),
        "epoch": 799,
        "args": argparse.Namespace(model="beit_base", target_layers="[2,3]", l1_beta=2.0, color_jitter=[0.4], seed=0),
        "model_ema": original_state(parts["model_ema"], teacher_head),
    }


def save(checkpoint: dict, folder: Path, name: str = "checkpoint-799.pth") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / name)
    return folder / name


def convert(checkpoint: dict, tmp_path: Path, **kwargs) -> Path:
    kwargs = {"target_layers": [2, 3], "licence": "mit"} | kwargs
    return convert_data2vec_vision_checkpoint(save(checkpoint, tmp_path / "source"), tmp_path / "release", **kwargs)


def test_converted_model_reproduces_the_original_numbers(original, official, official_mask, tmp_path):
    model = load_pretraining(convert(original, tmp_path) / "pretraining")
    assert isinstance(model, Data2VecVisionForPreTraining)
    with torch.no_grad():
        output = model(official["pixel_values"], [official_mask])
    counted = unique_consecutive_mask(official_mask)
    for ours, name in ((output.predictions, "student_predictions"), (output.targets, "targets")):
        reference = official[name]
        torch.testing.assert_close(ours[0][counted], reference, rtol=0, atol=1e-5 * float(reference.abs().max()))
    assert float(output.loss) == pytest.approx(float(official["loss"]), abs=2e-6)


@pytest.mark.parametrize("which", ["target", "context"])
def test_root_is_the_chosen_encoder_and_says_so(original, official, official_model, tmp_path, which):
    folder = convert(original, tmp_path, which=which)
    encoder = AutoModel.from_pretrained(folder)
    assert encoder.config.layer_norm_eps == 1e-6
    with torch.no_grad():
        features = encoder(official["pixel_values"]).last_hidden_state[:, 1:]
    torch.testing.assert_close(features, official_model.get_features(official["pixel_values"], which))
    state = original[{"target": "model_ema", "context": "model"}[which]]
    assert torch.equal(encoder.embeddings.mask_token, state["mask_token"])
    assert json.loads((folder / "config.json").read_text())["jepa_encoder"] == which
    card = (folder / "README.md").read_text()
    assert f"**{which} encoder**" in card
    assert "license: mit" in card
    assert "data2vec" in card
    processor = AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert processor.resample == 3


def test_sizes_come_from_the_shapes(original, tmp_path):
    config = load_pretraining(convert(original, tmp_path, target_layers=None) / "pretraining").config
    encoder = config.encoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads) == (24, 4, 3)
    assert (encoder.intermediate_size, encoder.image_size, encoder.patch_size) == (96, 32, 8)
    assert encoder.num_channels == 3
    assert config.target_layers == [0, 1, 2, 3]


def test_both_heads_are_kept(original, tmp_path):
    model = load_pretraining(convert(original, tmp_path) / "pretraining")
    assert torch.equal(model.head.weight, original["model"]["lm_head.weight"])
    assert torch.equal(model.target_head.bias, original["model_ema"]["lm_head.bias"])


def test_way_back_gives_the_same_bytes(original, tmp_path):
    source = save(original, tmp_path / "source")
    folder = convert_data2vec_vision_checkpoint(source, tmp_path / "release", licence="mit")
    back = export_original_checkpoint(folder, tmp_path / "renamed-on-the-way.pth")
    assert back.read_bytes() == source.read_bytes()


def test_way_back_keeps_the_teachers_rounding_fault(original, tmp_path):
    original["model_ema"][INDEX].view(-1)[[3, 40, 77]] -= 1
    test_way_back_gives_the_same_bytes(original, tmp_path)


def test_way_back_without_layer_scale(original, tmp_path):
    for group in ("model", "model_ema"):
        for key in [key for key in original[group] if "gamma" in key]:
            del original[group][key]
    test_way_back_gives_the_same_bytes(original, tmp_path)


def test_optimizer_is_dropped_and_named(original, tmp_path):
    original["optimizer"] = {"state": {0: torch.zeros(2)}}
    original["scaler"] = {"scale": 1.0}
    folder = convert(original, tmp_path)
    layout = json.loads((folder / "pretraining" / "original_checkpoint.json").read_text())
    assert layout["dropped"] == ["optimizer", "scaler"]
    file = export_original_checkpoint(folder, tmp_path / "back.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        back = torch.load(file, weights_only=True)
    assert set(back) == set(original) - {"optimizer", "scaler"}
    assert back["args"] == original["args"]


def test_a_model_that_never_was_original_gets_the_original_layout(original, tmp_path):
    folder = convert(original, tmp_path)
    (folder / "pretraining" / "original_checkpoint.json").unlink()
    back = torch.load(export_original_checkpoint(folder / "pretraining", tmp_path / "x.pth"), weights_only=True)
    assert list(back) == ["model", "model_ema"]
    for group in back:
        assert list(back[group]) == list(original[group])
        assert all(torch.equal(back[group][key], original[group][key]) for key in original[group])


def test_every_fault_is_named_and_nothing_is_written(original, tmp_path):
    del original["model"]["blocks.1.attn.q_bias"]
    del original["model"][INDEX]
    original["model_ema"]["pos_embed"] = torch.zeros(1)
    original["model_ema"]["lm_head.weight"] = torch.zeros(23, 24)
    with pytest.raises(ValueError, match="not a data2vec vision model of the inferred size") as error:
        convert(original, tmp_path)
    message = str(error.value)
    assert "missing: model/blocks.1.attn.q_bias" in message
    assert f"missing: model/{INDEX}" in message
    assert "extra: model_ema/pos_embed" in message
    assert "mis-shaped: model_ema/lm_head.weight is (23, 24), expected (24, 24)" in message
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        (lambda c: c["model"].clear(), {}, "it is empty"),
        (lambda c: c["model"].update({"norm.bias": 3}), {}, "norm.bias"),
        (lambda c: c["model"].pop("patch_embed.proj.weight"), {}, "patch_embed.proj.weight"),
        (lambda c: c["model"].pop(TABLE), {}, TABLE),
        (lambda c: c["model"].update({TABLE: torch.zeros(53, 3)}), {}, "53 rows"),
        (lambda c: c["model"].update({TABLE: torch.zeros(39, 3)}), {}, "39 rows"),
        (lambda c: c["model"].update({"norm.bias": torch.zeros(24).half()}), {}, "one floating-point type"),
        (lambda c: c["model"][INDEX].view(-1)[3:4].sub_(1), {}, f"wrong: model/{INDEX}"),
        (lambda c: c["model_ema"][INDEX].view(-1)[3:4].sub_(2), {}, f"wrong: model_ema/{INDEX}"),
        (lambda c: c["model"].update({INDEX: c["model"][INDEX].float()}), {}, f"mis-shaped: model/{INDEX}"),
        (lambda c: None, {"target_layers": [3, 4]}, "target_layers"),
    ],
)
def test_bad_checkpoints_are_refused(original, tmp_path, change, kwargs, message):
    change(original)
    with pytest.raises(ValueError, match=message):
        convert(original, tmp_path, **kwargs)
    assert not (tmp_path / "release").exists()


class _RunsCode:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("hidden_in_arguments", [False, True])
def test_pickles_with_code_are_refused(original, tmp_path, capsys, hidden_in_arguments):
    if hidden_in_arguments:
        original["args"].hook = _RunsCode()
    else:
        original["hook"] = _RunsCode()
    with pytest.raises(UnsafeCheckpointError, match="cannot be loaded safely"):
        convert(original, tmp_path)
    assert "never run" not in capsys.readouterr().out
    assert not (tmp_path / "release").exists()


def test_way_back_refuses_what_the_layout_cannot_hold(original, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        export_original_checkpoint(tmp_path / "nothing", tmp_path / "x.pth")
    folder = convert(original, tmp_path)
    composite = folder / "pretraining"
    model = load_pretraining(composite)
    model.config.encoder_config.use_shared_relative_position_bias = False
    unshared = Data2VecVisionForPreTraining(model.config)
    unshared.save_pretrained(tmp_path / "unshared")
    with pytest.raises(ValueError, match="one position bias that all blocks share"):
        export_original_checkpoint(tmp_path / "unshared", tmp_path / "x.pth")
