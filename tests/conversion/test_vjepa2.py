"""Original V-JEPA 2 and 2.1 checkpoints: conversion, numbers, and the way back."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoVideoProcessor, VJEPA2Model

from hf_jepa import VJepa2ForPreTraining, VJepa2PreTrainingConfig, VJepaConfig, VJepaModel
from hf_jepa.conversion.key_maps import UNUSED_FILE, original_groups
from hf_jepa.conversion.key_maps_vjepa import key_maps
from hf_jepa.conversion.original_vjepa import (
    VideoCheckpoint,
    infer_config,
    stack_mask_tokens,
    unstack_mask_tokens,
)
from hf_jepa.conversion.vjepa import convert_vjepa_checkpoint
from hf_jepa.conversion.vjepa import export_original_checkpoint as export_generation_1
from hf_jepa.conversion.vjepa2 import convert_vjepa2_checkpoint, export_original_checkpoint
from hf_jepa.hub import check_release, load_pretraining
from tests.models.vjepa.conftest import close

from .original_files import assert_same_tensors, golden, save, state_dicts, training_file

GROUPS = ("encoder", "predictor", "target_encoder")
OPTIONS = {"num_attention_heads": 3, "predictor_num_attention_heads": 3, "image_size": 24, "num_frames": 8}
OPTIONS["licence"] = "mit"


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return golden("vjepa2_forward")


@pytest.fixture
def clean() -> dict:
    """A training file without the stale tables."""
    return training_file("vjepa2_forward")


@pytest.fixture
def original(clean, expected) -> dict:
    """As published files are: with position tables that nothing reads."""
    tables = state_dicts(expected, ("encoder", "predictor"), "legacy/")
    for group, stale in {**tables, "target_encoder": tables["encoder"]}.items():
        clean[group] = OrderedDict({key: tensor.clone() for key, tensor in stale.items()} | clean[group])
    return clean


def convert(checkpoint: dict, tmp_path: Path, **kwargs) -> Path:
    path = save(checkpoint, tmp_path / "source", "vit.pt")
    return convert_vjepa2_checkpoint(path, tmp_path / "release", **(OPTIONS | kwargs))


def clips(tensors: dict[str, torch.Tensor], group: int) -> torch.Tensor:
    return tensors[f"input/group{group}/clips"].transpose(1, 2)


def masks(tensors: dict[str, torch.Tensor], kind: str) -> list[list[torch.Tensor]]:
    return [[tensors[f"input/group{group}/masks_{kind}.{mask}"] for mask in range(2)] for group in range(2)]


@pytest.mark.parametrize("tables", [True, False])
def test_converted_model_reproduces_the_original_numbers(original, expected, tmp_path, tables):
    if not tables:
        original = training_file("vjepa2_forward")
    folder = convert(original, tmp_path)
    assert (folder / "pretraining" / UNUSED_FILE).is_file() is tables
    model = load_pretraining(folder / "pretraining")
    assert type(model) is VJepa2ForPreTraining
    with torch.no_grad():
        output = model([clips(expected, group) for group in range(2)], masks(expected, "enc"), masks(expected, "pred"))
    names = [(group, mask) for group in range(2) for mask in range(2)]
    for index, (group, mask) in enumerate(names):
        close(output.context_features[index], expected[f"expected/group{group}/encoder_masked.{mask}"])
        close(output.predictions[index], expected[f"expected/group{group}/predictor.{mask}"])
        close(output.targets[index], expected[f"expected/group{group}/target_rows.{mask}"])
    assert float(output.loss) == pytest.approx(float(expected["expected/loss"]), abs=2e-6)


@pytest.mark.parametrize(("which", "name"), [("target", "target_encoder_full"), ("context", "encoder_full")])
def test_root_is_the_in_tree_model_of_the_chosen_encoder(original, expected, tmp_path, which, name):
    folder = convert(original, tmp_path, which=which)
    check_release(folder)
    root = AutoModel.from_pretrained(folder)
    assert type(root) is VJEPA2Model
    with torch.no_grad():
        output = root(clips(expected, 1), skip_predictor=True)
    close(output.last_hidden_state, expected[f"expected/group1/{name}"])
    assert root.config.jepa_encoder == which
    card = (folder / "README.md").read_text()
    assert f"**{which} encoder**" in card
    assert "a plain `VJEPA2Model`" in card
    assert "clips of 8 frames at 4 per second" in card
    assert "license: mit" in card
    assert "arXiv:2506.09985" in card


def test_in_tree_root_predicts_as_the_original(original, expected, tmp_path):
    root = AutoModel.from_pretrained(convert(original, tmp_path, which="context"))
    group = 1
    with torch.no_grad():
        output = root(
            clips(expected, group),
            context_mask=[expected[f"input/group{group}/masks_enc.0"]],
            target_mask=[expected[f"input/group{group}/masks_pred.0"]],
        )
    # In-tree encodes the whole clip, gathers then, and takes mask token 1.
    close(output.predictor_output.last_hidden_state, expected["direct/predictor_from_full_encoding"])


def test_sizes_come_from_the_shapes(original, tmp_path):
    config = load_pretraining(convert(original, tmp_path) / "pretraining").config.encoder_config
    assert (config.hidden_size, config.num_hidden_layers, config.mlp_ratio) == (48, 2, 4.0)
    assert (config.patch_size, config.tubelet_size, config.crop_size, config.frames_per_clip) == (4, 2, 24, 8)
    assert (config.position_embedding_type, config.rope_layout, config.rope_interpolation) == ("rope", "tiled", False)
    assert (config.pred_hidden_size, config.pred_num_hidden_layers, config.pred_num_mask_tokens) == (36, 2, 4)
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "release")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (int(24 * 256 / 224), 24)


def test_files_named_so_are_of_384_pixels(clean, tmp_path):
    options = {key: value for key, value in OPTIONS.items() if "heads" in key or key == "licence"}
    for name, size in (("vitg.pt", 256), ("vitg-384.pt", 384)):
        folder = convert_vjepa2_checkpoint(save(clean, tmp_path, name), tmp_path / name[:-3], **options)
        config = json.loads((folder / "config.json").read_text())
        assert (config["crop_size"], config["frames_per_clip"]) == (size, 64)


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("prefix", ["module.backbone.", "module.", "backbone.", ""])
def test_way_back_gives_the_same_bytes(original, tmp_path, tables, prefix):
    if not tables:
        original = training_file("vjepa2_forward")
    for group in GROUPS:
        original[group] = OrderedDict(
            (prefix + key.removeprefix("module.backbone."), tensor) for key, tensor in original[group].items()
        )
    folder = convert(original, tmp_path)
    back = export_original_checkpoint(folder, tmp_path / "renamed-on-the-way.pt")
    assert back.read_bytes() == (tmp_path / "source" / "vit.pt").read_bytes()


@pytest.mark.parametrize("start", ["init/", "final/"])
def test_training_weights_come_back(start, tmp_path):
    tensors = golden("vjepa2_train")
    groups = tuple(group for group in GROUPS if any(name.startswith(f"{start}{group}/") for name in tensors))
    checkpoint = state_dicts(tensors, groups, start) | {"opt": {"state": {0: torch.zeros(2)}}, "scaler": None}
    options = {
        "num_attention_heads": 2,
        "predictor_num_attention_heads": 2,
        "image_size": 16,
        "num_frames": 4,
        "licence": "mit",
    }
    folder = convert(checkpoint, tmp_path, **options)
    back = torch.load(export_original_checkpoint(folder, tmp_path / "back.pt"), weights_only=True)
    assert list(back) == [*groups, "scaler"]
    assert_same_tensors(back, {group: checkpoint[group] for group in groups})


def test_ten_mask_tokens(clean, tmp_path):
    for index in range(4, 10):
        clean["predictor"][f"module.backbone.mask_tokens.{index}"] = torch.full((1, 1, 36), float(index))
    folder = convert(clean, tmp_path)
    tokens = AutoModel.from_pretrained(folder).predictor.embeddings.mask_tokens
    assert tokens.shape == (10, 1, 1, 36)
    assert torch.equal(tokens[9, 0, 0], torch.full((36,), 9.0))
    # The order of the file, in which token 10 need not follow token 9, is kept.
    back = export_original_checkpoint(folder, tmp_path / "back.pt")
    assert back.read_bytes() == (tmp_path / "source" / "vit.pt").read_bytes()


def test_options_of_the_released_code(tmp_path):
    """Attention without biases, which no release uses."""
    encoder = VJepaConfig(
        patch_size=4, crop_size=16, frames_per_clip=4, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2, qkv_bias=False,
    )  # fmt: skip
    check_round_trip(VJepa2ForPreTraining(VJepa2PreTrainingConfig(encoder_config=encoder)), tmp_path)


def check_round_trip(model: VJepa2ForPreTraining, tmp_path: Path, **kwargs) -> dict:
    """Out to an original file and back in; returns the file's content."""
    with torch.no_grad():  # so that every tensor is told apart
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    config = model.config.encoder_config
    model.save_pretrained(tmp_path / "trained")
    file = export_original_checkpoint(tmp_path / "trained", tmp_path / "back.pt")
    options = {
        "licence": "mit",
        "num_attention_heads": config.num_attention_heads,
        "predictor_num_attention_heads": config.pred_num_attention_heads,
        "image_size": config.crop_size,
        "num_frames": config.frames_per_clip,
    }
    folder = convert_vjepa2_checkpoint(file, tmp_path / "release", **(options | kwargs))
    again = load_pretraining(folder / "pretraining")
    # The MLPs' ratio is known up to rounding.
    ours, theirs = again.config.encoder_config.to_dict(), config.to_dict() | {"dtype": "float32"}
    for name in ("mlp_ratio", "pred_mlp_ratio"):
        assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=0.02)
    assert ours == theirs
    before = model.state_dict()
    assert before.keys() == again.state_dict().keys()
    assert all(torch.equal(before[key], tensor) for key, tensor in again.state_dict().items())
    return torch.load(file, weights_only=True)


@pytest.fixture
def dense() -> VJepa2ForPreTraining:
    """V-JEPA 2.1, small but as deep as its ViT-B."""
    config = VJepa2PreTrainingConfig.from_size(
        "base", "2.1", patch_size=4, crop_size=16, frames_per_clip=4, hidden_size=24, num_attention_heads=2,
        pred_hidden_size=24, pred_num_hidden_layers=2, pred_num_attention_heads=2,
    )  # fmt: skip
    return VJepa2ForPreTraining(config)


@pytest.mark.parametrize(
    ("size", "generation"),
    [("large", "1"), ("huge", "1"), ("large", "2"), ("huge", "2"), ("giant", "2")]
    + [(size, "2.1") for size in ("base", "large", "giant", "gigantic")],
)
def test_published_sizes_need_no_flags(size, generation):
    """Names and shapes of the published files, without their weights."""
    config = VJepaConfig.from_size(size, generation, crop_size=384, frames_per_clip=16)
    with torch.device("meta"):
        model = VJepa2ForPreTraining(VJepa2PreTrainingConfig(encoder_config=config))
    groups = original_groups(model.state_dict(), key_maps(config, GROUPS))
    unstack_mask_tokens(groups)
    assert stack_mask_tokens(groups) == []
    clip = {"crop_size": 384, "frames_per_clip": 16}
    found = infer_config(
        VideoCheckpoint({}, groups, {}, []),
        generation,
        clip,
        num_attention_heads=None,
        predictor_num_attention_heads=None,
    )
    ours, theirs = found.to_dict(), config.to_dict()
    assert ours.pop("mlp_ratio") == pytest.approx(theirs.pop("mlp_ratio"), rel=1e-12)
    assert ours == theirs


def names_of(state_dict: dict[str, torch.Tensor]) -> set[str]:
    return {key.removeprefix("module.backbone.") for key in state_dict}


def pairs(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def block(name: str) -> set[str]:
    return pairs(*(f"{name}.{part}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")))


def test_dense_layout(dense, tmp_path):
    """Every key of V-JEPA 2.1's layout, written out."""
    file = check_round_trip(dense, tmp_path)
    encoder = {"img_mod_embed", "video_mod_embed"} | pairs("patch_embed.proj", "patch_embed_img.proj")
    encoder |= pairs(*(f"norms_block.{level}" for level in range(4)))
    encoder = encoder.union(*(block(f"blocks.{index}") for index in range(12)))
    assert names_of(file["encoder"]) == names_of(file["target_encoder"]) == encoder
    predictor = {"img_mod_embed", "video_mod_embed", *(f"mask_tokens.{index}" for index in range(8))}
    predictor |= pairs(
        "predictor_embed.0", "predictor_embed.2", "predictor_norm", "predictor_proj", "predictor_proj_context"
    )
    assert names_of(file["predictor"]) == predictor.union(*(block(f"predictor_blocks.{index}") for index in range(2)))
    shapes = {key.removeprefix("module.backbone."): tuple(tensor.shape) for key, tensor in file["predictor"].items()}
    assert shapes["predictor_embed.0.weight"] == (24, 4 * 24)
    assert shapes["predictor_proj_context.weight"] == (4 * 24, 24)
    assert file["encoder"]["module.backbone.patch_embed_img.proj.weight"].shape == (24, 3, 1, 4, 4)
    # The last level's norm is the norm of the output.
    norm = file["target_encoder"]["module.backbone.norms_block.3.weight"]
    assert torch.equal(norm, dense.target_encoder.layernorm.weight)


def test_dense_root_is_ours_and_says_so(dense, tmp_path):
    file = check_round_trip(dense, tmp_path)
    assert "norm.weight" not in names_of(file["encoder"])
    root = AutoModel.from_pretrained(tmp_path / "release")
    assert type(root) is VJepaModel
    clip = torch.randn(1, 4, 3, 16, 16)
    with torch.no_grad():
        features = root(clip, skip_predictor=True).last_hidden_state
    assert torch.equal(features, dense.eval().get_features(clip))
    card = (tmp_path / "release" / "README.md").read_text()
    assert "arXiv:2603.14482" in card
    assert "needs `import hf_jepa`" in card
    results = json.loads((tmp_path / "release" / "results.json").read_text())
    assert results["model"]["family"] == "vjepa2_1"


def test_distilled_layout(tmp_path):
    """`ema_encoder`, one predicted level at the teacher's width, and four norms all the same."""
    config = VJepaConfig.from_size(
        "base", "2.1", patch_size=4, crop_size=16, frames_per_clip=4, hidden_size=24, num_attention_heads=2,
        pred_hidden_size=24, pred_num_hidden_layers=2, pred_num_attention_heads=2, pred_num_levels=1,
        pred_output_size=40,
    )  # fmt: skip
    model = VJepa2ForPreTraining(VJepa2PreTrainingConfig(encoder_config=config))
    file = check_round_trip(model, tmp_path)
    assert "predictor_embed.weight" in names_of(file["predictor"])
    assert file["predictor"]["module.backbone.predictor_proj.weight"].shape == (40, 24)

    distilled = {"ema_encoder": file["target_encoder"], "predictor": file["predictor"]}
    distilled["target_encoder"] = {"module.teacher": torch.zeros(3)}  # beside `ema_encoder` nobody reads it
    source = save(distilled, tmp_path / "source", "vjepa2_1_vitb_dist_vitG_384.pt")
    options = {"num_attention_heads": 2, "predictor_num_attention_heads": 2, "num_frames": 4, "licence": "mit"}
    folder = convert_vjepa2_checkpoint(source, tmp_path / "distilled", **options)
    root = AutoModel.from_pretrained(folder)
    assert (root.config.jepa_encoder, root.config.crop_size, root.config.num_levels) == ("target", 384, 4)
    assert torch.equal(root.encoder.layernorm.weight, model.target_encoder.layernorm.weight)
    layout = json.loads((folder / "pretraining" / "original_checkpoint.json").read_text())
    assert layout["dropped"] == ["target_encoder"]
    back = torch.load(export_original_checkpoint(folder, tmp_path / "again.pt"), weights_only=True)
    assert list(back) == ["ema_encoder", "predictor"]
    assert_same_tensors(back, {group: distilled[group] for group in back})


def test_supervised_blocks_of_other_depths_must_be_given(tmp_path):
    config = VJepaConfig(
        patch_size=4, crop_size=16, frames_per_clip=4, hidden_size=24, num_hidden_layers=4, num_attention_heads=2,
        pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2, pred_num_mask_tokens=8,
        rope_layout="interleaved", rope_interpolation=True, pred_rope_interpolation=True, use_image_tokenizer=True,
        pred_context_output=True, hierarchical_layers=[1, 3],
    )  # fmt: skip
    model = VJepa2ForPreTraining(VJepa2PreTrainingConfig(encoder_config=config))
    check_round_trip(model, tmp_path, hierarchical_layers=[1, 3])
    with pytest.raises(ValueError, match="--hierarchical-layers"):
        check_round_trip(model, tmp_path / "again")


def test_every_fault_is_named_and_nothing_is_written(dense, tmp_path):
    file = check_round_trip(dense, tmp_path)
    del file["encoder"]["module.backbone.video_mod_embed"]
    del file["predictor"]["module.backbone.predictor_proj_context.bias"]
    file["encoder"]["module.backbone.norm.weight"] = torch.zeros(24)
    file["target_encoder"]["module.backbone.norms_block.1.weight"] = torch.zeros(23)
    options = {
        "num_attention_heads": 2,
        "predictor_num_attention_heads": 2,
        "image_size": 16,
        "num_frames": 4,
        "licence": "mit",
    }
    with pytest.raises(ValueError, match="not a V-JEPA 2 of the inferred size") as error:
        convert_vjepa2_checkpoint(save(file, tmp_path / "bad"), tmp_path / "out", **options)
    for fault in (
        "missing: encoder/video_mod_embed",
        "missing: predictor/predictor_proj_context.bias",
        "extra: encoder/norm.weight",
        "mis-shaped: target_encoder/norms_block.1.weight is (23,), expected (24,)",
    ):
        assert fault in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        (lambda c: None, {"num_attention_heads": None}, "--num-attention-heads"),
        (lambda c: None, {"predictor_num_attention_heads": None}, "--predictor-num-attention-heads"),
        (lambda c: None, {"num_attention_heads": 7}, "48.* not divisible by 7"),
        (lambda c: None, {"image_size": 30}, "--image-size.* is 30, .*4 pixels"),
        (lambda c: None, {"num_frames": 9}, "--num-frames.* is 9, .*2 frames"),
        (lambda c: None, {"generation": "2.1"}, "0 `norms_block`"),
        (lambda c: None, {"generation": "3"}, "generation.*'3'"),
        (lambda c: c["predictor"].update({"module.backbone.action_encoder.weight": torch.zeros(1)}), {}, "2-AC"),
        (lambda c: c["predictor"].pop("module.backbone.mask_tokens.1"), {}, "missing: predictor/mask_tokens.1"),
        (
            lambda c: c["predictor"].update({"module.backbone.mask_tokens.1": torch.zeros(1, 1, 35)}),
            {},
            "mis-shaped: predictor/mask_tokens must share one shape",
        ),
    ],
)
def test_bad_checkpoints_are_refused(original, tmp_path, change, kwargs, message):
    change(original)
    with pytest.raises(ValueError, match=message):
        convert(original, tmp_path, **kwargs)
    assert not (tmp_path / "release").exists()


def test_generations_are_not_mixed_up(original, tmp_path):
    first = save(training_file("vjepa_forward"), tmp_path, "first.pth.tar")
    options = {
        "num_attention_heads": 4,
        "predictor_num_attention_heads": 4,
        "image_size": 24,
        "num_frames": 8,
        "licence": "mit",
    }
    with pytest.raises(ValueError, match="convert it as `vjepa`"):
        convert_vjepa2_checkpoint(first, tmp_path / "x", **options)
    # Whoever knows better says so.
    folder = convert_vjepa2_checkpoint(first, tmp_path / "second", generation="2", **options)
    assert type(AutoModel.from_pretrained(folder)) is VJEPA2Model

    plain = save(training_file("vjepa2_forward"), tmp_path, "second.pt")
    with pytest.raises(ValueError, match="convert it as `vjepa2`"):
        convert_vjepa_checkpoint(plain, tmp_path / "x", num_attention_heads=3, licence="mit")
    with pytest.raises(ValueError, match="only VJepaForPreTraining has this layout"):
        export_generation_1(folder, tmp_path / "y.pt")
    first_release = convert_vjepa_checkpoint(first, tmp_path / "first", num_attention_heads=4, licence="mit")
    with pytest.raises(ValueError, match="only VJepa2ForPreTraining has this layout"):
        export_original_checkpoint(first_release, tmp_path / "y.pt")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y.pt").exists()
