"""The video pretraining program, run as a user runs it."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoModelForPreTraining, AutoVideoProcessor

from hf_jepa import VJepaForPreTraining
from tests.tiny_models import TINY_VJEPA

av = pytest.importorskip("av")
ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "trainers" / "pretrain_video.py"
# The demo's recipe has a size of its own and is built by the demo.


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("hf_jepa.programs.pretrain_video")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Twelve short clips of moving squares in two classes, a list of them, and still images."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for number in range(12):
        label = number % 2
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
            for time in range(20):
                frame = np.full((40, 48, 3), 20 * number, dtype=np.uint8)
                place = time if label else 20 - time
                frame[10:20, place : place + 10] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        lines.append(f"{number}.mp4 {label}")
        (folder / "stills").mkdir(exist_ok=True)
        Image.fromarray(frame).save(folder / "stills" / f"{number}.png")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def recipe(tmp_path, videos) -> list[str]:
    content = {
        "model": {
            "family": "vjepa2",
            "image_size": 32,
            "encoder_args": {n: v for n, v in TINY_VJEPA.items() if n not in ("crop_size", "frames_per_clip")},
        },
        "data": {"dataset": [str(videos / "train.csv")], "num_frames": [4], "fps": [4]},
        "masks": {"num_blocks": [2, 1], "spatial_scale": [0.2, 0.5]},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return [str(path)]


@pytest.mark.parametrize("generation", ["1", "2"])
def test_a_recipe_becomes_a_release(program, recipe, videos, tmp_path, generation, capsys):
    probes = [
        "--probe_dataset",
        str(videos / "train.csv"),
        "--probe_train_split",
        "train[:8]",
        "--probe_split",
        "train[8:]",
    ]
    program.main([*recipe, "--generation", generation, *probes])
    release = tmp_path / "run" / "release"
    composite = AutoModelForPreTraining.from_pretrained(release, subfolder="pretraining")
    assert isinstance(composite, VJepaForPreTraining)
    results = json.loads((release / "results.json").read_text())
    assert {entry["task"] for entry in results["evaluations"]} == {"knn", "ridge"}
    for picture in results["pictures"]:
        assert (release / picture["file"]).stat().st_size > 5000
    processor = AutoVideoProcessor.from_pretrained(release)
    assert processor.crop_size["height"] == 32
    assert "recipe.yaml" in capsys.readouterr().out or (release / "recipe.yaml").is_file()


def test_videos_and_images_mix_in_v_jepa_2_1(program, recipe, videos, tmp_path):
    mixed = ["--dataset", str(videos / "train.csv"), str(videos / "stills"), "--dataset_weights", "0.5", "0.5"]
    mixed += ["--num_frames", "4", "1", "--video_column", "video", "image", "--no_mix_within_batches"]
    levels = yaml.safe_load(Path(recipe[0]).read_text())["model"]["encoder_args"] | {"hierarchical_layers": [0, 1]}
    program.main([*recipe, "--generation", "2.1", "--encoder_args", yaml.safe_dump(levels), *mixed])
    assert (tmp_path / "run" / "release" / "pretraining" / "model.safetensors").is_file()


def test_a_cooldown_starts_from_the_phase_before_with_longer_and_larger_clips(program, recipe, tmp_path):
    program.main([*recipe, "--save_strategy", "steps", "--save_steps", "2"])
    first = tmp_path / "run" / "checkpoint-2"
    phase = ["--start_from_checkpoint", str(first), "--num_frames", "8", "--image_size", "48"]
    program.main([*recipe, *phase, "--output_dir", str(tmp_path / "cooldown")])
    config = json.loads((tmp_path / "cooldown" / "release" / "pretraining" / "config.json").read_text())
    assert config["encoder_config"]["frames_per_clip"] == 8
    assert config["encoder_config"]["crop_size"] == 48


def test_a_dry_run_counts_and_trains_nothing(program, recipe, tmp_path, capsys):
    program.main([*recipe, "--dry_run"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optimizer_steps"] == 2
    assert shown["training_rows"] == 12
    assert shown["forward_pass"]["batch"]["pixel_values_videos"] == "2x4x3x32x32"
    assert shown["parameters"]["encoder"] == shown["parameters"]["target_encoder"] > 0
    assert not (tmp_path / "run" / "release").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "large"], "Give one of `size`, `from_encoder`, or `encoder_args`"),
        (["--encoder_args", "{hiden_size: 3, hidden_size: 24}"], "`encoder_args` names hiden_size"),
        (["--method", "{loss_expnent: 2}"], "`method` names loss_expnent"),
        (["--family", "ijepa"], "I-JEPA is trained by pretrain_image"),
        (["--num_frames", "4", "8"], "`num_frames` has 2 entries for 1"),
        (["--spatial_scale", "0.1", "0.2", "0.3"], "`spatial_scale` has 3 entries for 2"),
        (["--image_size", "36"], "divisible"),
        (["--num_frames", "5"], "divisible"),
    ],
)
def test_contradictions_are_refused_before_training(program, recipe, flags, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        program.main([*recipe, *flags])
