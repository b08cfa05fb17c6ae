"""`hf-jepa` on video models: conversion, export and pictures."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor

from hf_jepa import VJepa2ForPreTraining, VJepa2PreTrainingConfig
from hf_jepa.cli import main
from hf_jepa.hub import check_release

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {
    "vjepa": ["--num-attention-heads", "4"],
    "vjepa2": [
        "--num-attention-heads", "3", "--predictor-num-attention-heads", "3", "--image-size", "24",
        "--num-frames", "8",
    ],
}  # fmt: skip


def original_file(case: str, path: Path) -> dict:
    """Writes the weights of a golden case as an official file."""
    checkpoint = {group: {} for group in ("encoder", "predictor", "target_encoder")}
    for name, tensor in load_file(GOLDEN / f"{case}.safetensors").items():
        group, _, key = name.partition("/")
        if group in checkpoint:
            checkpoint[group][key] = tensor
    torch.save(checkpoint, path)
    return checkpoint


@pytest.fixture
def composite(tmp_path) -> Path:
    """A training checkpoint."""
    config = VJepa2PreTrainingConfig.from_size(
        "tiny", patch_size=4, crop_size=16, frames_per_clip=8, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=2, pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2,
    )  # fmt: skip
    VJepa2ForPreTraining(config).save_pretrained(tmp_path / "checkpoint-7")
    return tmp_path / "checkpoint-7"


@pytest.fixture
def video(tmp_path) -> Path:
    """A bright square that moves over noise."""
    generator = np.random.default_rng(0)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(12):
            pixels = generator.integers(0, 80, (48, 64, 3), dtype=np.uint8)
            pixels[10:26, 4 * index : 4 * index + 16] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize(
    ("family", "case", "licence"), [("vjepa", "vjepa_forward", "cc0-1.0"), ("vjepa2", "vjepa2_forward", "mit")]
)
def test_convert_there_and_back(family, case, licence, tmp_path, capsys):
    source, folder, back = tmp_path / "in.pt", tmp_path / "out", tmp_path / "back.pt"
    checkpoint = original_file(case, source)
    assert main(["convert", family, str(source), str(folder)]) == 1
    assert "--num-attention-heads" in capsys.readouterr().err
    assert main(["convert", family, str(source), str(folder), *TINY[family], "--which", "context"]) == 1
    assert "--license" in capsys.readouterr().err
    options = [*TINY[family], "--which", "context", "--license", licence]
    assert main(["convert", family, str(source), str(folder), *options]) == 0
    check_release(folder)
    bias = AutoModel.from_pretrained(folder).encoder.layernorm.bias
    assert torch.equal(bias, checkpoint["encoder"]["module.backbone.norm.bias"])
    assert f"license: {licence}" in (folder / "README.md").read_text()
    assert main(["convert", family, str(folder), str(back), "--reverse"]) == 0
    assert back.read_bytes() == source.read_bytes()


def test_convert_a_probe_with_its_encoder(tmp_path):
    head = {
        name.removeprefix("depth4/classifiers.0/"): tensor
        for name, tensor in load_file(GOLDEN / "vjepa2_attentive_probe.safetensors").items()
        if name.startswith("depth4/classifiers.0/")
    }
    source, encoder, folder = tmp_path / "probe.pt", tmp_path / "encoder", tmp_path / "out"
    torch.save({"classifiers": [head]}, source)
    config = VJepa2PreTrainingConfig.from_size(
        "tiny", patch_size=4, crop_size=16, frames_per_clip=4, hidden_size=36, num_hidden_layers=1,
        num_attention_heads=3, pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2,
    )  # fmt: skip
    VJepa2ForPreTraining(config).export_encoder().save_pretrained(encoder)
    arguments = ["convert", "vjepa2", str(source), str(folder), "--encoder", str(encoder), "--license", "apache-2.0"]
    assert main([*arguments, "--num-attention-heads", "3"]) == 0
    check_release(folder)
    assert AutoModelForVideoClassification.from_pretrained(folder).config.num_labels == 7
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert main(["convert", "vjepa2", str(folder), str(tmp_path / "back.pt"), "--reverse"]) == 0
    assert (tmp_path / "back.pt").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vjepa", "absent.pt", "out"], "absent.pt"),
        (["vjepa", "in.pt", "out", "--generation", "2"], "--generation"),
        (["ijepa", "in.pt", "out", "--num-frames", "8"], "--num-frames"),
        (["vjepa2", "in.pt", "out", "--target-layers", "1"], "--target-layers"),
        (["vjepa2", "in.pt", "out", *TINY["vjepa2"], "--image-size", "24", "32"], "one number"),
        (["vjepa", "in.pt", "out", *TINY["vjepa"]], "convert it as `vjepa2`"),
        (["vjepa2", "nowhere", "out", "--reverse"], "is no folder"),
    ],
)
def test_convert_failures_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original_file("vjepa2_forward", tmp_path / "in.pt")
    assert main(["convert", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hf-jepa: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_export_makes_a_release_and_draws(composite, video, tmp_path, capsys):
    release = tmp_path / "release"
    statistics = ["--image-mean", "0.1", "0.2", "0.3", "--image-std", "1", "1", "1"]
    assert main(["export", str(composite), str(release), "--license", "mit", *statistics]) == 0
    check_release(release)
    processor = AutoVideoProcessor.from_pretrained(release)
    assert (processor.crop_size["height"], list(processor.image_mean)) == (16, [0.1, 0.2, 0.3])

    # Again from the release: its processor, licence and sampling stay.
    results = json.loads((release / "results.json").read_text()) | {"data": {"fps": 5}}
    (release / "results.json").write_text(json.dumps(results))
    options = ["--subfolder", "pretraining", "--which", "context"]
    assert main(["export", str(release), str(tmp_path / "again"), *options]) == 0
    assert list(AutoVideoProcessor.from_pretrained(tmp_path / "again").image_mean) == [0.1, 0.2, 0.3]
    card = (tmp_path / "again" / "README.md").read_text()
    assert "at 5 per second" in card
    assert "license: mit" in card

    for kind in ("pca", "masks", "surprise"):
        drawn = tmp_path / f"{kind}.png"
        floor = [] if kind == "pca" else ["--subfolder", "pretraining"]
        assert main(["visualize", str(release), str(video), "--kind", kind, "--output", str(drawn), *floor]) == 0
        with Image.open(drawn) as image:
            assert np.asarray(image.convert("RGB")).std() > 1
    capsys.readouterr()
    for arguments, message in (
        (["--kind", "similarity"], "not for video models"),
        (["--kind", "surprise"], "--subfolder pretraining"),
        (["--num-frames", "7"], "tubelets"),
    ):
        assert main(["visualize", str(release), str(video), *arguments]) == 1
        assert message in capsys.readouterr().err


def test_visualize_takes_several_videos_and_images_as_still_clips(composite, video, tmp_path):
    release = tmp_path / "release"
    assert main(["export", str(composite), str(release), "--license", "mit"]) == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    drawn = tmp_path / "pca.png"
    assert main(["visualize", str(release), str(video), str(tmp_path / "x.png"), "--output", str(drawn)]) == 0
    assert drawn.stat().st_size > 1000
