"""`evaluate_model` and `hf-jepa evaluate` on videos, and by attentive heads."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import IJepaConfig, IJepaModel, ViTImageProcessor, VJEPA2VideoProcessor

from hf_jepa import VJepaConfig, VJepaModel
from hf_jepa.cli import main
from hf_jepa.data.video_transforms import video_eval_transform
from hf_jepa.evaluation import ClipProtocol, evaluate_model, load_encoder

STATISTICS = {"image_mean": [0.3] * 3, "image_std": [0.4] * 3}


def bars(label: int, frame: int, shift: int, generator: np.random.Generator) -> np.ndarray:
    """A bar that moves down, or (label 1) to the right."""
    pixels = generator.integers(0, 60, (32, 48, 3), dtype=np.uint8)
    place = (2 * frame + shift) % 28
    if label:
        pixels[:, place : place + 4] = 220
    else:
        pixels[place : place + 4] = 220
    return pixels


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for label in range(2):
            (folder / split / "ab"[label]).mkdir(parents=True)
            for number in range(count):
                path = folder / split / "ab"[label] / f"{number}.mp4"
                with av.open(str(path), "w") as container:
                    stream = container.add_stream("mpeg4", rate=8)
                    stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 32, 48, "yuv420p", 1_000_000
                    for frame in range(12):
                        pixels = bars(label, frame, 3 * number, generator)
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                    container.mux(stream.encode())
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for label in range(2):
            (folder / split / "ab"[label]).mkdir(parents=True)
            for number in range(count):
                pixels = bars(label, 0, 2 * number, generator)
                Image.fromarray(pixels).save(folder / split / "ab"[label] / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def video_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video-model")
    torch.manual_seed(0)
    config = VJepaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        crop_size=16,
        patch_size=8,
        frames_per_clip=4,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        initializer_range=0.2,
    )
    VJepaModel(config).export_in_tree().save_pretrained(folder)
    VJEPA2VideoProcessor(crop_size=16, **STATISTICS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image-model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    IJepaModel(IJepaConfig(**sizes, image_size=16, patch_size=8, initializer_range=0.2)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}, **STATISTICS).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["knn", "linear", "attentive", "collapse"])
def test_videos_from_folder_to_entries(video_model, videos, task):
    clips = ClipProtocol(4, frame_step=1, segments=2, views=3)
    results = evaluate_model(video_model, videos, task, k=3, batch_size=4, clips=clips, progress=False)
    entry = results["evaluations"][0]
    assert entry["clips"] == {"num_frames": 4, "frame_step": 1, "segments": 2, "views": 3}
    assert results["data"]["num_examples"] == 10
    if task == "collapse":
        assert {entry["metric"] for entry in results["evaluations"]} >= {"rankme"}
    else:
        assert 0.6 < entry["value"] <= 1
    if task == "attentive":
        assert entry["features"] == "tokens"
        assert entry["num_probe_blocks"] == 1
        assert entry["learning_rate"] in (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)


def test_the_clips_are_those_asked_for(video_model, videos, monkeypatch):
    seen = {}

    def remember(train, train_labels, test, test_labels, **options):
        seen.update(train=train, test=test, labels=test_labels, options=options)
        raise InterruptedError

    monkeypatch.setattr("hf_jepa.evaluation.run.train_attentive_heads", remember)
    clips = ClipProtocol(4, frames_per_second=4, segments=2, views=3)
    with pytest.raises(InterruptedError):
        evaluate_model(video_model, videos, "attentive", clips=clips, num_probe_blocks=4, progress=False)
    assert seen["train"].shape == (24, 2 * 8, 32)  # 2 segments of 2 slots of 2 x 2 patches
    assert seen["test"].shape == (10, 3, 2 * 8, 32)
    assert seen["options"]["num_self_attention_layers"] == 3
    assert sorted(seen["labels"].tolist()) == [0] * 5 + [1] * 5
    # Every second frame of 8 per second, from the start: the first test clip by hand, with the video's own file.
    with av.open(str(videos / "test" / "a" / "0.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    model = load_encoder(video_model)
    assert type(model) is VJepaModel
    transform = video_eval_transform(16, num_views=3, mean=STATISTICS["image_mean"], std=STATISTICS["image_std"])
    indices = clips.sampler().indices(12, 8.0)[0]
    pixels = torch.from_numpy(np.stack([frames[index] for index in indices])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.get_vision_features(transform(pixels))
    torch.testing.assert_close(seen["test"][0, :, :8], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("as_clips", [False, True])
def test_attentive_heads_on_images(image_model, pictures, as_clips):
    clips = ClipProtocol(2) if as_clips else None
    results = evaluate_model(
        image_model, pictures, "attentive", clips=clips, video_column="image", batch_size=8, progress=False
    )
    assert results["evaluations"][0]["value"] > 0.6


def test_image_encoders_see_videos(image_model, videos):
    results = evaluate_model(image_model, videos, "knn", k=3, clips=ClipProtocol(4), progress=False)
    assert results["model"]["model_type"] == "ijepa"
    assert 0.5 < results["evaluations"][0]["value"] <= 1


def test_a_video_model_needs_to_know_its_clips(video_model, image_model, pictures, videos):
    with pytest.raises(ValueError, match='still clips with video_column="image"'):
        evaluate_model(video_model, pictures, progress=False)
    still = evaluate_model(video_model, pictures, k=3, clips=ClipProtocol(4), video_column="image", progress=False)
    assert still["evaluations"][0]["value"] > 0.5
    with pytest.raises(ValueError, match='With video_column="image" its images are stills'):
        evaluate_model(video_model, pictures, clips=ClipProtocol(4), progress=False)
    with pytest.raises(ValueError, match="num_probe_blocks must be at least 1"):
        evaluate_model(image_model, pictures, "attentive", num_probe_blocks=0)


def test_protocols_are_checked():
    assert ClipProtocol(16).description() == {"num_frames": 16, "frame_step": 4, "segments": 1, "views": 1}
    for options, name in (({"num_frames": 0}, "num_frames"), ({"num_frames": 4, "segments": 0}, "num_clips")):
        with pytest.raises(ValueError, match=name):
            ClipProtocol(**options)
    with pytest.raises(ValueError, match="views must be at least 1"):
        ClipProtocol(4, views=0)
    with pytest.raises(ValueError, match="one of frame_step and fps"):
        ClipProtocol(4, frame_step=2, frames_per_second=4)


def test_the_command(video_model, videos, tmp_path, capsys):
    output = tmp_path / "results.json"
    arguments = ["evaluate", str(video_model), "--dataset", str(videos), "--task", "attentive", "--num-frames", "4"]
    assert main([*arguments, "--frame-step", "2", "--segments", "2", "--views", "2", "--output", str(output)]) == 0
    assert "attentive  accuracy (tokens): " in capsys.readouterr().out
    entry = json.loads(output.read_text())["evaluations"][0]
    assert entry["clips"] == {"num_frames": 4, "frame_step": 2, "segments": 2, "views": 2}
    assert entry["command"].startswith("hf-jepa evaluate")
    assert main([*arguments[:-2], "--views", "3"]) == 1
    assert "give --num-frames" in capsys.readouterr().err
