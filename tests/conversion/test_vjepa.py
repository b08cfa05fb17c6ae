"""Original V-JEPA 1 checkpoints: conversion, numbers, and the way back."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoVideoProcessor

from hf_jepa import VJepaForPreTraining, VJepaModel
from hf_jepa.conversion.original_vjepa import read_grid
from hf_jepa.conversion.vjepa import convert_vjepa_checkpoint, export_original_checkpoint
from hf_jepa.hub import check_release, load_pretraining
from hf_jepa.positions import sincos_3d

from .original_files import GOLDEN, TRAINING_STATE, assert_same_tensors, golden, save, state_dicts, training_file

GROUPS = ("encoder", "predictor", "target_encoder")


@pytest.fixture
def original() -> dict:
    return training_file("vjepa_forward")


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return golden("vjepa_forward")


def convert(checkpoint: dict, tmp_path: Path, **kwargs) -> Path:
    kwargs = {"num_attention_heads": 4, "licence": "mit"} | kwargs
    return convert_vjepa_checkpoint(save(checkpoint, tmp_path / "source"), tmp_path / "release", **kwargs)


def clips(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return tensors["input/clips"].transpose(1, 2)


def close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5 * float(reference.abs().max()))


def test_converted_model_reproduces_the_original_numbers(original, expected, tmp_path):
    model = load_pretraining(convert(original, tmp_path) / "pretraining")
    assert type(model) is VJepaForPreTraining
    model.config.variance_weight = 0.1
    with torch.no_grad():
        output = model(
            clips(expected),
            [expected[f"input/masks_enc.{mask}"] for mask in range(2)],
            [expected[f"input/masks_pred.{mask}"] for mask in range(2)],
        )
    for mask in range(2):
        close(output.context_features[mask], expected[f"expected/encoder_masked.{mask}"])
        close(output.predictions[mask], expected[f"expected/predictor.{mask}"])
        close(output.targets[mask], expected[f"expected/target_rows.{mask}"])
    assert float(output.loss) == pytest.approx(float(expected["expected/loss"]), abs=2e-6)


@pytest.mark.parametrize(("which", "name"), [("target", "target_encoder_full"), ("context", "encoder_full")])
def test_root_is_the_chosen_encoder_and_says_so(original, expected, tmp_path, which, name):
    folder = convert(original, tmp_path, which=which)
    check_release(folder)
    root = AutoModel.from_pretrained(folder)
    assert type(root) is VJepaModel  # in-tree has no sine-cosine positions
    with torch.no_grad():
        close(root(clips(expected)).last_hidden_state, expected[f"expected/{name}"])
    assert json.loads((folder / "config.json").read_text())["jepa_encoder"] == which
    card = (folder / "README.md").read_text()
    assert f"**{which} encoder**" in card
    assert "needs `import hf_jepa`" in card
    assert "arXiv:2404.08471" in card
    assert "clips of 8 frames, one frame out of 4" in card


def test_sizes_come_from_shapes_and_tables(original, tmp_path):
    config = load_pretraining(convert(original, tmp_path) / "pretraining").config.encoder_config
    assert (config.hidden_size, config.num_hidden_layers, config.mlp_ratio) == (48, 2, 4.0)
    assert (config.crop_size, config.frames_per_clip, config.patch_size, config.tubelet_size) == (24, 8, 4, 2)
    assert (config.position_embedding_type, config.uniform_power, config.depth_scaled_init) == ("sincos", True, False)
    assert (config.pred_hidden_size, config.pred_num_hidden_layers, config.pred_num_mask_tokens) == (24, 2, 2)
    assert config.pred_num_attention_heads == 4
    assert AutoVideoProcessor.from_pretrained(tmp_path / "release").crop_size["height"] == 24


@pytest.mark.parametrize("uniform_power", [True, False])
@pytest.mark.parametrize("grid", [(8, 14, 14), (1, 4, 4), (2, 3, 5), (4, 1, 1)])
def test_tables_tell_their_grid(grid, uniform_power):
    table = sincos_3d(grid, 48, uniform_power).unsqueeze(0)
    assert read_grid(table) == (grid, uniform_power)


def test_other_tables_are_refused(original, tmp_path):
    original["encoder"]["module.backbone.pos_embed"] += 0.1
    with pytest.raises(ValueError, match="no sine-cosine table"):
        convert(original, tmp_path)


def test_position_tables_are_copied(original, tmp_path):
    # The EMA moves the target's table by roundings; recomputing it would lose that.
    drifted = original["target_encoder"]["module.backbone.pos_embed"] * (1 + 1e-3)
    original["target_encoder"]["module.backbone.pos_embed"] = drifted
    model = load_pretraining(convert(original, tmp_path) / "pretraining")
    assert torch.equal(model.target_encoder.embeddings.position_embeddings, drifted)
    table = model.predictor.embeddings.position_embeddings
    assert torch.equal(table, original["predictor"]["module.backbone.predictor_pos_embed"])
    assert not table.requires_grad


def test_way_back_gives_the_same_bytes(original, tmp_path):
    source = save(original, tmp_path / "source")
    folder = convert_vjepa_checkpoint(source, tmp_path / "release", num_attention_heads=4, licence="mit")
    back = export_original_checkpoint(folder, tmp_path / "renamed-on-the-way.pth.tar")
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("prefixes", [("", "module.", "backbone."), ("backbone.module.", "", "module.module.")])
def test_any_combination_of_prefixes_comes_back(original, tmp_path, prefixes):
    for group, prefix in zip(GROUPS, prefixes, strict=True):
        original[group] = OrderedDict(
            (prefix + key.removeprefix("module.backbone."), tensor) for key, tensor in original[group].items()
        )
    test_way_back_gives_the_same_bytes(original, tmp_path)


@pytest.mark.parametrize("start", ["init/", "final/"])
def test_training_weights_come_back(start, tmp_path):
    tensors = golden("vjepa_train")
    groups = tuple(group for group in GROUPS if any(name.startswith(f"{start}{group}/") for name in tensors))
    checkpoint = state_dicts(tensors, groups, start)
    folder = convert(checkpoint, tmp_path, num_attention_heads=2)
    config = load_pretraining(folder / "pretraining").config.encoder_config
    assert (config.crop_size, config.frames_per_clip) == (16, 4)
    back = torch.load(export_original_checkpoint(folder, tmp_path / "back.pth.tar"), weights_only=True)
    assert list(back) == list(groups)
    assert_same_tensors(back, checkpoint)


def test_optimizer_is_dropped_and_named(original, tmp_path):
    original["opt"] = {"state": {0: torch.zeros(2)}}
    original["scaler"] = {"scale": 2.0}
    folder = convert(original, tmp_path)
    layout = json.loads((folder / "pretraining" / "original_checkpoint.json").read_text())
    assert layout["dropped"] == ["opt", "scaler"]
    back = torch.load(export_original_checkpoint(folder, tmp_path / "back.pth.tar"), weights_only=True)
    assert {key: back[key] for key in TRAINING_STATE} == TRAINING_STATE
    assert_same_tensors(back, {group: original[group] for group in GROUPS})


def test_a_model_that_never_was_original_gets_the_original_layout(original, tmp_path):
    folder = convert(original, tmp_path)
    (folder / "pretraining" / "original_checkpoint.json").unlink()
    back = torch.load(export_original_checkpoint(folder / "pretraining", tmp_path / "x.pth.tar"), weights_only=True)
    assert list(back) == list(GROUPS)
    assert_same_tensors(back, {group: original[group] for group in GROUPS})


@pytest.mark.parametrize(("kept", "which"), [("encoder", "context"), ("target_encoder", "target")])
def test_files_of_one_encoder(original, expected, tmp_path, kept, which):
    hub_file = {"predictor": original["predictor"], kept: original[kept]}
    source = save(hub_file, tmp_path / "source")
    folder = convert_vjepa_checkpoint(source, tmp_path / "release", num_attention_heads=4, licence="mit")
    assert json.loads((folder / "config.json").read_text())["jepa_encoder"] == which
    model = load_pretraining(folder / "pretraining")
    reference = expected["expected/encoder_full" if kept == "encoder" else "expected/target_encoder_full"]
    for encoder in ("target", "context"):
        close(model.get_features(clips(expected), which=encoder), reference)
    assert export_original_checkpoint(folder, tmp_path / "back.pth.tar").read_bytes() == source.read_bytes()

    other = {"context": "target", "target": "context"}[which]
    with pytest.raises(ValueError, match=f"no {other} encoder"):
        convert_vjepa_checkpoint(source, tmp_path / "x", num_attention_heads=4, licence="mit", which=other)
    assert not (tmp_path / "x").exists()
    # Two encoders that differ would lose one.
    with torch.no_grad():
        model.encoder.layernorm.bias.add_(1.0)
    model.save_pretrained(folder / "pretraining")
    with pytest.raises(ValueError, match="two differ now"):
        export_original_checkpoint(folder, tmp_path / "back2.pth.tar")


def test_every_fault_is_named_and_nothing_is_written(original, tmp_path):
    del original["encoder"]["module.backbone.blocks.1.attn.qkv.bias"]
    del original["predictor"]["module.backbone.mask_tokens.0"]
    original["target_encoder"]["module.backbone.head.weight"] = torch.zeros(1)
    original["predictor"]["module.backbone.predictor_proj.weight"] = torch.zeros(47, 24)
    original["teacher"] = {"weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="not a V-JEPA of the inferred size") as error:
        convert(original, tmp_path)
    for fault in (
        "missing: encoder/blocks.1.attn.qkv.bias",
        "missing: predictor/mask_tokens.0",
        "extra: target_encoder/head.weight",
        "mis-shaped: predictor/predictor_proj.weight is (47, 24), expected (48, 24)",
        "extra: teacher",
    ):
        assert fault in str(error.value)
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        (lambda c: None, {"num_attention_heads": None}, "--num-attention-heads"),
        (lambda c: None, {"num_attention_heads": 5}, "48.* not divisible by 5"),
        (lambda c: None, {"predictor_num_attention_heads": 5}, "24.* not divisible by 5"),
        (lambda c: None, {"image_size": 28}, "--image-size.* is 24, not 28"),
        (lambda c: None, {"num_frames": 16}, "--num-frames.* is 8, not 16"),
        (lambda c: None, {"encoder": "x"}, "--encoder"),
        (lambda c: [c.pop("encoder"), c.pop("target_encoder")], {}, "no encoder"),
        (lambda c: c["encoder"].clear(), {}, "it is empty"),
        (lambda c: c["encoder"].update({"module.backbone.norm.bias": 3}), {}, "norm.bias"),
        (lambda c: c["encoder"].pop("module.backbone.patch_embed.proj.weight"), {}, "patch_embed.proj.weight"),
        (lambda c: c["encoder"].pop("module.backbone.pos_embed"), {}, "convert it as `vjepa2`"),
        (lambda c: c["encoder"].update({"module.backbone.norm.bias": torch.zeros(48).half()}), {}, "one floating"),
        (
            lambda c: c["predictor"].update(
                {f"module.backbone.mask_tokens.{index}": torch.zeros(1, 1, 24) for index in range(10)}
            ),
            {},
            "10 mask tokens.*`vjepa2`",
        ),
    ],
)
def test_bad_checkpoints_are_refused(original, tmp_path, change, kwargs, message):
    change(original)
    with pytest.raises(ValueError, match=message):
        convert(original, tmp_path, **kwargs)
    assert not (tmp_path / "release").exists()


def test_non_square_tables_are_refused(original, tmp_path):
    table = sincos_3d((4, 6, 3), 48).unsqueeze(0)
    for group in ("encoder", "target_encoder"):
        original[group]["module.backbone.pos_embed"] = table
    with pytest.raises(ValueError, match="24x12 pixels"):
        convert(original, tmp_path)


def test_licence_is_that_of_the_source(original, tmp_path):
    assert "license: mit" in (convert(original, tmp_path, licence="mit") / "README.md").read_text()


def test_files_that_could_run_code_are_refused(tmp_path):
    path = save({"encoder": GOLDEN}, tmp_path)  # a `Path` object: no plain value
    with pytest.raises(ValueError, match="cannot be loaded safely"):
        convert_vjepa_checkpoint(path, tmp_path / "release")
