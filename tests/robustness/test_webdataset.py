"""Shards of tar files, as webdataset writes them, through `datasets`: images and videos, read whole and streamed."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torch.utils.data import DataLoader

from hf_jepa.cli import main
from hf_jepa.data import SeededImageStream, eval_transform, load_image_dataset, load_video_dataset
from hf_jepa.programs.program import nothing


def write_shards(folder: Path, num_shards: int, files: Callable[[int], dict[str, bytes]]) -> Path:
    """`files(number)`: extension -> content of a sample; six samples a shard."""
    folder.mkdir()
    for shard in range(num_shards):
        with tarfile.open(folder / f"train-{shard:05d}.tar", "w") as archive:
            for number in range(6 * shard, 6 * shard + 6):
                for extension, content in files(number).items():
                    entry = tarfile.TarInfo(f"{number:06d}.{extension}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return folder


def picture(number: int) -> dict[str, bytes]:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    # One in the middle was cut off.
    content = buffer.getvalue()[: 300 if number == 3 else None]
    return {"png": content, "cls": str(number % 3).encode(), "json": json.dumps({"caption": "noise"}).encode()}


MODEL = {"family": "ijepa", "image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1}
MODEL |= {"num_attention_heads": 2, "predictor_hidden_size": 8, "predictor_num_hidden_layers": 1}
TRAINING = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "warmup_steps": 0, "use_cpu": True}
TRAINING |= {"disable_tqdm": True, "save_strategy": "steps", "save_steps": 3, "dataloader_pin_memory": False}


def write_recipe(folder: Path, sections: dict[str, dict], output: str) -> str:
    training = TRAINING | {"output_dir": str(folder / output)}
    (folder / f"{output}.yaml").write_text(yaml.safe_dump({**sections, "training": training}))
    return str(folder / f"{output}.yaml")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all else."""
    monkeypatch.setattr("hf_jepa.programs.run.best_effort", lambda draw: nothing)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_train_and_release(tmp_path: Path, streaming: bool, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_shards(tmp_path / "shards", 3, picture)
    data = {"dataset": str(shards), "image_column": "png", "streaming": streaming, "max_bad_fraction": 0.2}
    sections = {"model": MODEL, "data": data, "masks": {"min_keep": 1, "target_scale": [0.2, 0.25]}}
    assert main(["train", write_recipe(tmp_path, sections, "run")]) == 0
    results = json.loads((tmp_path / "run" / "release" / "results.json").read_text())
    assert results["training"]["steps"] == 6
    assert "Unusable image" in caplog.text


def test_labels_columns_and_single_tars(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 2, picture)
    rows = load_image_dataset(shards, image_column="png", label_column="cls")
    assert len(rows) == 12
    assert rows["cls"][:4] == [0, 1, 2, 0]
    one = load_image_dataset(shards / "train-00001.tar", image_column="png", label_column="cls")
    assert one["cls"] == rows["cls"][6:]
    assert load_image_dataset(shards, image_column="png", streaming=True).num_shards == 2
    (shards / "train-00001.tar").write_bytes((shards / "train-00001.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match="cut off"):
        load_image_dataset(shards, image_column="png")


def test_a_shard_that_was_cut_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shards = write_shards(tmp_path / "shards", 3, picture)
    content = (shards / "train-00001.tar").read_bytes()
    # Within a header, which tarfile takes for the end.
    (shards / "train-00001.tar").write_bytes(content[: 7 * 512 + 100])
    for path in (shards, shards / "train-00001.tar"):
        with pytest.raises(ValueError, match="train-00001.tar' was cut off"):
            load_image_dataset(path, image_column="png", streaming=True)
    # Where a block ends it is found once it is read.
    (shards / "train-00001.tar").write_bytes(content[: 16 * 512])
    with pytest.raises(ValueError, match=r"Cannot load .*shards': unexpected end of data, in .*train-00001.tar"):
        load_image_dataset(shards, image_column="png")
    rows = load_image_dataset(shards, image_column="png", streaming=True)
    stream = SeededImageStream(rows, eval_transform(16), image_column="png", max_bad_fraction=0.5)
    for samples in (stream, DataLoader(stream, num_workers=1, batch_size=None)):
        with pytest.raises(ValueError, match=r"broke off after \d+ rows, in .*train-00001.tar: unexpected end"):
            list(samples)
    # In a run, without the traceback of its worker.
    data = {"dataset": str(shards), "image_column": "png", "streaming": True, "max_bad_fraction": 0.2}
    sections = {"model": MODEL, "data": data, "masks": {"min_keep": 1, "target_scale": [0.2, 0.25]}}
    assert main(["train", write_recipe(tmp_path, sections, "run"), "--dataloader_num_workers", "1"]) == 1
    assert "hf-jepa: error: The stream of images broke off" in capsys.readouterr().err


def test_a_shard_that_was_cut_between_files_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_shards(tmp_path / "shards", 1, picture)
    (shard,) = shards.glob("*.tar")
    assert len(load_image_dataset(shards, image_column="png")) == 6
    assert "cut off" not in caplog.text
    with tarfile.open(shard) as archive:
        third = [member for member in archive.getmembers() if member.name.endswith(".png")][3]
    shard.write_bytes(shard.read_bytes()[: third.offset])
    assert len(load_image_dataset(shards, image_column="png")) < 6
    assert "train-00000.tar' does not end as tar files do" in caplog.text


def test_videos_train_and_release(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    pytest.importorskip("av")
    clip = write_video(tmp_path / "clip.mp4", num_frames=12).read_bytes()
    shards = write_shards(tmp_path / "shards", 1, lambda number: {"mp4": clip, "cls": str(number % 2).encode()})
    assert len(load_video_dataset(shards, video_column="mp4", label_column="cls")) == 6
    sizes = {"patch_size": 8, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    model = {"family": "vjepa2", "image_size": 32, "encoder_args": sizes}
    data = {"dataset": [str(shards)], "video_column": ["mp4"], "num_frames": [4], "frame_step": [2]}
    masks = {"num_blocks": [2, 1], "spatial_scale": [0.2, 0.5]}
    assert main(["train", write_recipe(tmp_path, {"model": model, "data": data, "masks": masks}, "run")]) == 0
    assert (tmp_path / "run" / "release" / "config.json").is_file()
