"""A disk that fills up during a save, a release or an export: the error says so, and nothing earlier is lost."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import IJepaConfig, TrainerCallback

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, JepaTrainer, JepaTrainingArguments
from hf_jepa.cli import main
from hf_jepa.data import MaskCollator
from hf_jepa.hub import save_release
from hf_jepa.hub.replacing import replace_text
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.training.checkpoints import incompleteness

SIZE = 2**20
# Bytes that are left: some weights; all weights but not the optimizer; nothing, a text, ...
ROOMS = [12288, 90112, *(pytest.param(size, marks=pytest.mark.slow) for size in (0, 4096, 40960, 65536))]
FULL = r"No space left|File too large|file write failed|Errno 2[78]"


@dataclass
class Disk:
    folder: Path
    is_mounted: bool

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Leaves so many bytes; a disk that is no file system of its own lets no file grow beyond them."""
        if self.is_mounted:
            free = shutil.disk_usage(self.folder).free
            (self.folder / "filler").write_bytes(bytes(max(0, free - size)))
            yield
            (self.folder / "filler").unlink()
            return
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    is_mounted = bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True).returncode
    try:
        yield Disk(folder, is_mounted and not hasattr(request, "param"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def build_model() -> IJepaForPreTraining:
    torch.manual_seed(0)
    encoder = IJepaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    return IJepaForPreTraining(
        IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    )


def build_trainer(folder: Path, *callbacks: TrainerCallback) -> JepaTrainer:
    args = JepaTrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        per_device_train_batch_size=2,
        warmup_steps=0,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    pictures = [{"pixel_values": torch.full((3, 32, 32), index / 4)} for index in range(4)]
    collator = MaskCollator(MultiBlockMaskGenerator(32, 8, min_keep=1, mode="balanced", target_scale=(0.2, 0.25)))
    return JepaTrainer(build_model(), args, collator, pictures, callbacks=list(callbacks))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class FillUp(TrainerCallback):
    """Takes the room away after the first checkpoint."""

    def __init__(self, disk: Disk, size: int) -> None:
        self.room = disk.room(size)

    def on_save(self, *_: object, **__: object) -> None:
        self.room.__enter__()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What a run without trouble ends with."""
    trainer = build_trainer(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer.model.state_dict()


@pytest.mark.parametrize("size", ROOMS)
def test_a_save_loses_no_earlier_checkpoint(disk: Disk, whole: dict[str, torch.Tensor], size: int) -> None:
    fill_up_and_go_on(disk, whole, size)


@pytest.mark.parametrize("disk", ["limit"], indirect=True)
def test_nor_does_a_limit_on_files(disk: Disk, whole: dict[str, torch.Tensor]) -> None:
    fill_up_and_go_on(disk, whole, 4096)


def fill_up_and_go_on(disk: Disk, whole: dict[str, torch.Tensor], size: int) -> None:
    fill = FillUp(disk, size)
    with pytest.raises((OSError, SafetensorError), match=FULL):
        build_trainer(disk.folder / "run", fill).train()
    fill.room.__exit__(None, None, None)
    assert incompleteness(disk.folder / "run" / "checkpoint-1") is None
    assert incompleteness(disk.folder / "run" / "checkpoint-2") is not None
    resumed = build_trainer(disk.folder / "run")
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(whole[name], value) for name, value in resumed.model.state_dict().items())


def release(folder: Path) -> None:
    save_release(build_model(), folder, results={"model": {"name": "tiny"}, "licence": "mit"})


def export(folder: Path) -> None:
    composite = folder.parent.parent / "composite"
    if not composite.is_dir():
        build_model().save_pretrained(composite)
    if main(["export", str(composite), str(folder), "--license", "mit", "--debug"]):
        raise AssertionError


@pytest.mark.parametrize("write", [release, export])
@pytest.mark.parametrize("size", [12288, *ROOMS[2:4]])
def test_a_release_is_the_old_one_or_the_new_one(disk: Disk, write: Callable[[Path], None], size: int) -> None:
    folder = disk.folder / "model"
    write(folder)
    before = contents(disk.folder)
    with disk.room(size):
        with pytest.raises((OSError, SafetensorError), match=FULL):
            write(folder)
        assert {name: data for name, data in contents(disk.folder).items() if name != "filler"} == before
    write(folder)
    assert sorted(contents(disk.folder)) == sorted(before)


def test_texts_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    replace_text(path, "old")
    write = Path.write_text

    def half(self: Path, text: str, **options: object) -> None:
        write(self, text[: len(text) // 2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "new text")
    assert path.read_text() == "old"
