"""
Every Python block of README and docs runs, page by page, in a folder where tiny stand-ins lie under the names that the
pages use, with the changes below and no others.
"""

import importlib
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_jepa.cli import main
from tests import stand_ins
from tests.docs.test_docs import NAMES, PAGES, blocks

# What a page downloads, or a demo or a command above has written.
STAND_INS = {
    "facebook/ijepa_vith14_1k": stand_ins.save_ijepa,
    "me/photos-ijepa": stand_ins.save_ijepa,
    "outputs/demo/release": lambda folder: stand_ins.save_ijepa(folder, num_channels=1),
    "outputs/clips/release": stand_ins.save_vjepa2,
    "outputs/demo_vl/model": stand_ins.save_vl,
    "outputs/demo_planning/release": stand_ins.save_world_model,
    "HuggingFaceTB/SmolLM2-135M-Instruct": stand_ins.save_llm,
    "zh-plus/tiny-imagenet": lambda folder: stand_ins.save_photos(folder / "train", side=64),
    "my_photos": lambda folder: stand_ins.save_photos(folder, side=64),
}
# A picture of the web, and what would take long; each must occur in a block of its page.
CHANGED = {
    "README.md": {
        "http://images.cocodataset.org/val2017/000000039769.jpg": "photo.png",
        "max_steps=10_000, per_device_train_batch_size=64": "max_steps=1, per_device_train_batch_size=4",
        "max_steps=500": "max_steps=1",
    },
    "docs/quickstart.md": {
        "max_steps=1_000, per_device_train_batch_size=32": "max_steps=1, per_device_train_batch_size=4"
    },
    "docs/own/pairs.md": {"max_steps=500": "max_steps=1"},
}
# What a page leaves to its reader, given as code.
GIVEN = {
    "docs/methods/world_models.md": "import numpy as np\ngoals = frames = np.zeros((2, 16, 16, 3), np.uint8)",
    "docs/training.md": """
from hf_jepa import IJepaForPreTraining, JepaTrainer, JepaTrainingArguments
from datasets import load_dataset
args = {"output_dir": "outputs/run", "max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 4}
photos = load_dataset("imagefolder", data_dir="my_photos", split="train")
def build():
    model = IJepaForPreTraining.from_pretrained("me/photos-ijepa", subfolder="pretraining")
    return JepaTrainer(model=model, args=JepaTrainingArguments(**args), train_dataset=photos)
build().train()
trainer = build()
trainer.push_to_hub = lambda: None
""",
}
WITH_CODE = {name: page for name, page in zip(NAMES, PAGES, strict=True) if blocks(page, "python")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    for name, save in STAND_INS.items():
        save(folder / name)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "photo.png")
    return folder


@pytest.fixture
def _on_cpu(monkeypatch, tmp_path):
    """Trainers take a GPU where there is one, and log to what is installed."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module, name in (("jepa", "JepaTrainingArguments"), ("llm", "LLMJepaTrainingArguments")):
        arguments = getattr(importlib.import_module(f"hf_jepa.training.{module}.arguments"), name)
        plain = arguments.__init__

        def quiet(self, *args, _plain=plain, **settings):
            _plain(self, *args, **{"report_to": [], "disable_tqdm": True, "use_cpu": True, **settings})

        monkeypatch.setattr(arguments, "__init__", quiet)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", WITH_CODE)
@pytest.mark.usefixtures("_on_cpu")
def test_the_blocks_of_a_page_run(name, folder, monkeypatch, tmp_path):
    # A copy, as blocks write.
    for entry in folder.iterdir():
        if entry.name != "outputs":
            (tmp_path / entry.name).symlink_to(entry)
    for release in (folder / "outputs").iterdir():
        (tmp_path / "outputs").mkdir(exist_ok=True)
        (tmp_path / "outputs" / release.name).symlink_to(release)
    monkeypatch.chdir(tmp_path)
    found = blocks(WITH_CODE[name], "python")
    for text, short in CHANGED.get(name, {}).items():
        assert any(text in block for block in found), f"{text!r} is not on {name} any more"
        found = [block.replace(text, short) for block in found]
    scope: dict = {"__name__": "page"}
    exec(GIVEN.get(name, ""), scope)
    for block in found:
        exec(compile(block, name, "exec"), scope)


def test_the_readme_needs_nothing_beside_it():
    assert "README.md" in WITH_CODE
    assert "README.md" not in GIVEN


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/own/images.md"])
def test_a_plain_folder_of_photos_is_enough_to_train(name, folder, monkeypatch, tmp_path):
    (tmp_path / "my_photos").symlink_to(folder / "my_photos")
    monkeypatch.chdir(tmp_path)
    page = next(page for known, page in zip(NAMES, PAGES, strict=True) if known == name)
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("hf-jepa train")]
    commands = [words for words in commands if "my_photos" in " ".join(words)]
    assert commands
    for words in commands:
        assert main([*words, *([] if "--dry_run" in words else ["--dry_run"])]) in (0, None)
