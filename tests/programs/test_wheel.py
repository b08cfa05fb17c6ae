"""A wheel in an environment of its own: what it installs trains, evaluates and exports without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.processes import run_script

ROOT = Path(__file__).parents[2]


# One process for all commands: each would import torch and transformers.
COMMANDS = """
import json, os, sys
site, folder, commands = sys.argv[1:]
os.chdir(folder)
sys.path.insert(0, site)
import hf_jepa.cli
assert hf_jepa.__file__.startswith(site), hf_jepa.__file__
for words in json.loads(commands):
    assert not hf_jepa.cli.main(words), words
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `checkout/`, what a build reads of this one, and `dist/`, for what it makes."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "checkout" / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "checkout" / name)
    (folder / "dist").mkdir()
    return folder


@pytest.fixture(scope="module")
def installed(folder) -> Path:
    """The environment's folder of packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]

    def call(*arguments: str) -> str:
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-1000:]} {done.stderr[-2000:]}"
        return done.stdout

    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "./checkout")
    (folder / "checkout").rename(folder / "moved away")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("*.whl")
    call(*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    # Every other package comes from here; a checkout that is installed to be edited does not, as its .pth is not read.
    site = Path(call(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert str(folder) in call(str(python), "-c", "import hf_jepa; print(hf_jepa.__file__)")
    assert "ijepa_fashion_mnist" in call(str(python.with_name("hf-jepa")), "recipes")
    return site


def test_wheel_and_sdist_hold_what_is_no_python(installed, folder):
    build = "from setuptools import build_meta; build_meta.build_sdist('../dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "moved away", check=True, capture_output=True)
    (wheel,), (sdist,) = (list((folder / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/src/")[2] for name in archive.getnames()}
    package = ROOT / "src"
    wanted = {
        path.relative_to(package).as_posix()
        for path in (package / "hf_jepa").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert {"hf_jepa/py.typed", "hf_jepa/hub/card_template.md", "hf_jepa/programs/space/app.py.in"} <= wanted
    assert sum(name.startswith("hf_jepa/recipes/") for name in wanted) >= 60
    assert wanted <= in_wheel
    assert wanted <= in_sdist


def test_the_command_trains_evaluates_and_exports(installed, recipe, dataset, tmp_path):
    release, checkpoint = tmp_path / "run" / "release", tmp_path / "run" / "checkpoint-4"
    output = tmp_path / "evaluation.json"
    split = ["--dataset", str(dataset), "--train-split", "train", "--test-split", "validation"]
    commands = [
        ["train", *recipe, "--save_strategy", "steps", "--save_steps", "4"],
        ["evaluate", str(release), *split, "--task", "knn", "--device", "cpu", "--output", str(output)],
        ["export", str(checkpoint), str(tmp_path / "exported"), "--license", "mit"],
    ]
    done = run_script(COMMANDS, installed, tmp_path, json.dumps(commands))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The release is in" in done.stdout
    results = json.loads((release / "results.json").read_text())
    trained = next(entry for entry in results["evaluations"] if entry["task"] == "knn")
    # The number on the card is the number of the command.
    assert json.loads(output.read_text())["evaluations"][0]["value"] == pytest.approx(trained["value"])
    assert (tmp_path / "exported" / "model.safetensors").is_file()
