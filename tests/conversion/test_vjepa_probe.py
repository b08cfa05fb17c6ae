"""Original attentive probes: conversion to classifiers, numbers, and the way back."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForVideoClassification, VJEPA2ForVideoClassification

from hf_jepa import VJepaConfig, VJepaForVideoClassification, VJepaModel
from hf_jepa.conversion.vjepa import convert_vjepa_checkpoint, export_original_checkpoint
from hf_jepa.conversion.vjepa2 import convert_vjepa2_checkpoint
from hf_jepa.conversion.vjepa2 import export_original_checkpoint as export_generation_2
from hf_jepa.hub import check_release
from tests.models.vjepa.conftest import close

from .original_files import assert_same_tensors, golden, save, state_dicts

CONVERTERS = {"vjepa": convert_vjepa_checkpoint, "vjepa2": convert_vjepa2_checkpoint}
CASES = [("vjepa", 1), ("vjepa", 3), ("vjepa2", 1), ("vjepa2", 4)]


def encoder_folder(tmp_path: Path, family: str, width: int = 36) -> Path:
    """A release's root, as far as a probe is concerned."""
    config = VJepaConfig(
        position_embedding_type="sincos" if family == "vjepa" else "rope", patch_size=4, crop_size=16,
        frames_per_clip=4, hidden_size=width, num_hidden_layers=1, num_attention_heads=3, pred_hidden_size=24,
        pred_num_hidden_layers=1, pred_num_attention_heads=2,
    )  # fmt: skip
    model = VJepaModel(config)
    (model if family == "vjepa" else model.export_in_tree()).save_pretrained(tmp_path / f"{family}-encoder-{width}")
    return tmp_path / f"{family}-encoder-{width}"


def probe_file(family: str, depth: int) -> tuple[dict, OrderedDict]:
    """A probe file as the released code writes it, less the optimizer, and its first head."""
    name = "classifier" if family == "vjepa" else "classifiers.0"
    head = state_dicts(golden(f"{family}_attentive_probe"), (name,), f"depth{depth}/")[name]
    content = {"classifier": head} if family == "vjepa" else {"classifiers": [head]}
    return content | {"epoch": 20, "batch_size": 4, "world_size": 64}, head


def convert(family: str, content: dict, tmp_path: Path, **kwargs) -> Path:
    options = {"encoder": encoder_folder(tmp_path, family), "num_attention_heads": 3, "licence": "mit"} | kwargs
    return CONVERTERS[family](save(content, tmp_path / "source", "probe.pt"), tmp_path / "release", **options)


@pytest.mark.parametrize(("family", "depth"), CASES)
def test_converted_probe_reproduces_the_original_numbers(family, depth, tmp_path):
    folder = convert(family, probe_file(family, depth)[0], tmp_path)
    check_release(folder)
    model = AutoModelForVideoClassification.from_pretrained(folder)
    assert type(model) is VJepaForVideoClassification
    expected = golden(f"{family}_attentive_probe")
    with torch.no_grad():
        pooled = model.pooler(expected["input/tokens"])
        close(pooled, expected[f"depth{depth}/expected/pooled"])
        close(model.classifier(pooled[:, 0]), expected[f"depth{depth}/expected/logits"])
        clip = torch.randn(2, 4, 3, 16, 16)
        backbone = VJepaModel.from_pretrained(tmp_path / f"{family}-encoder-36")
        tokens = backbone.get_vision_features(clip)
        assert torch.equal(model(clip).logits, model.classifier(model.pooler(tokens)[:, 0]))


@pytest.mark.parametrize(("family", "depth"), CASES)
def test_way_back_gives_the_same_bytes(family, depth, tmp_path):
    folder = convert(family, probe_file(family, depth)[0], tmp_path)
    back = export_original_checkpoint(folder, tmp_path / "renamed-on-the-way.pt")
    assert back.read_bytes() == (tmp_path / "source" / "probe.pt").read_bytes()


@pytest.mark.parametrize(("family", "depth"), CASES)
def test_a_probe_that_never_was_original_gets_the_original_layout(family, depth, tmp_path):
    content, head = probe_file(family, depth)
    folder = convert(family, content, tmp_path)
    (folder / "original_checkpoint.json").unlink()
    back = torch.load(export_generation_2(folder, tmp_path / "x.pt"), weights_only=True)
    ours = back["classifier"] if family == "vjepa" else back["classifiers"][0]
    assert len(back) == 1
    assert_same_tensors({"head": ours}, {"head": head})


def test_the_first_of_many_heads_is_taken_and_the_others_named(tmp_path):
    content, head = probe_file("vjepa2", 4)
    content["classifiers"] = [head, *({key: tensor + 1 for key, tensor in head.items()} for _ in range(2))]
    content["opt"] = [{"state": {0: torch.zeros(2)}}]
    folder = convert("vjepa2", content, tmp_path)
    layout = json.loads((folder / "original_checkpoint.json").read_text())
    assert layout["dropped"] == ["classifiers.1", "classifiers.2", "opt"]
    model = VJepaForVideoClassification.from_pretrained(folder)
    assert torch.equal(model.classifier.bias, head["module.linear.bias"])
    back = torch.load(export_original_checkpoint(folder, tmp_path / "x.pt"), weights_only=True)
    assert len(back["classifiers"]) == 1


def test_keys_are_those_of_the_in_tree_classifier(tmp_path):
    folder = convert("vjepa2", probe_file("vjepa2", 4)[0], tmp_path)
    ours = VJepaForVideoClassification.from_pretrained(folder)
    config = ours.vjepa2.export_in_tree().config
    config.num_labels, config.num_pooler_layers, config.pooler_num_attention_heads = 7, 3, 3
    in_tree = VJEPA2ForVideoClassification(config).eval()
    in_tree.load_state_dict(ours.state_dict())
    # The epsilon of the probes, which in-tree takes from the encoder, is the one difference.
    for module in in_tree.pooler.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    in_tree.save_pretrained(tmp_path / "in-tree")
    back = export_generation_2(tmp_path / "in-tree", tmp_path / "back.pt")
    head = probe_file("vjepa2", 4)[1]
    assert_same_tensors({"head": torch.load(back, weights_only=True)["classifiers"][0]}, {"head": head})
    clip = torch.randn(2, 4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip).logits, in_tree(clip).logits, rtol=0, atol=1e-5)


def test_card_names_the_encoder_and_not_its_place(tmp_path):
    card = (convert("vjepa", probe_file("vjepa", 1)[0], tmp_path) / "README.md").read_text()
    assert "video classifier** of 7 classes" in card
    assert "that of `vjepa-encoder-36`" in card
    assert str(tmp_path) not in card
    assert "pipeline_tag: video-classification" in card
    assert "license: mit" in card


def three_queries(content: dict) -> None:
    content["classifiers"][0]["module.pooler.query_tokens"] = torch.zeros(1, 3, 36)


def faulty(content: dict) -> None:
    head = content["classifiers"][0]
    del head["module.pooler.blocks.1.attn.qkv.bias"]
    head["module.head.weight"] = torch.zeros(1)
    head["module.linear.bias"] = torch.zeros(6)


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        (lambda c: None, {"encoder": None}, "--encoder"),
        (lambda c: None, {"num_attention_heads": None}, "36.* not divisible by 16.*--num-attention-heads"),
        (three_queries, {}, "3 queries"),
        (lambda c: c.update(classifiers=[]), {}, "must be a list of state dicts"),
        (lambda c: c.update(classifiers=[3]), {}, "must be a list of state dicts"),
        (lambda c: c["classifiers"][0].pop("module.linear.weight"), {}, "linear.weight"),
        (faulty, {}, "missing: classifiers.0/pooler.blocks.1.attn.qkv.bias"),
        (faulty, {}, "extra: classifiers.0/head.weight"),
        (faulty, {}, r"mis-shaped: classifiers.0/linear.bias is \(6,\), expected \(7,\)"),
    ],
)
def test_bad_probes_are_refused(tmp_path, change, kwargs, message):
    content, _ = probe_file("vjepa2", 4)
    change(content)
    with pytest.raises(ValueError, match=message):
        convert("vjepa2", content, tmp_path, **kwargs)
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    ("encoder", "width", "message"),
    [("vjepa2", 24, "width 36, the encoder .*-24' of 24"), ("vjepa", 36, "one of V-JEPA 2, the encoder .* V-JEPA 1")],
)
def test_probes_of_another_encoder_are_refused(tmp_path, encoder, width, message):
    content, _ = probe_file("vjepa2", 1)
    with pytest.raises(ValueError, match=message):
        convert("vjepa2", content, tmp_path, encoder=encoder_folder(tmp_path, encoder, width))
    assert not (tmp_path / "release").exists()
