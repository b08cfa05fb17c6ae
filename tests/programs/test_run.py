"""What every program does in the same order: the release first, then what may fail; and folders that are in use."""

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import AutoModel

from hf_jepa.cli import main as command
from hf_jepa.data.dataset import TooManyBadImagesError
from hf_jepa.programs.command_line import run_program
from hf_jepa.programs.launch import train
from hf_jepa.training import TrainingInterrupted
from tests.processes import run_in_two_processes


@pytest.fixture
def program():
    return importlib.import_module("hf_jepa.programs.pretrain_image")


def release_of(tmp_path) -> dict:
    return json.loads((tmp_path / "run" / "release" / "results.json").read_text())


def test_missing_matplotlib_costs_the_pictures_only(program, recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setattr("hf_jepa.programs.run.logger.warning", lambda text: warnings.append(text))
    warnings: list[str] = []
    for name in [name for name in sys.modules if name.startswith("hf_jepa.visualization")]:
        monkeypatch.delitem(sys.modules, name)
    program.main(recipe)
    assert len(warnings) == 1
    assert "pictures could not be drawn" in warnings[0]
    results = release_of(tmp_path)
    assert results["pictures"] == []
    assert len(results["evaluations"]) == 2


def test_scores_that_fail_leave_a_release(program, recipe, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no scores today")

    monkeypatch.setattr(program.JepaTrainer, "evaluate", fail)
    with pytest.raises(RuntimeError, match="no scores today"):
        program.main(recipe)
    assert "The release is in" in capsys.readouterr().out
    AutoModel.from_pretrained(tmp_path / "run" / "release")
    assert release_of(tmp_path)["training"]["steps"] == 4


def test_what_comes_later_is_in_the_release_with_its_files(program, recipe, tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr("hf_jepa.programs.run.logger.warning", warnings.append)
    program.main([*recipe, "--logging_steps", "100"])
    results = release_of(tmp_path)
    # A run that ends before its first log has no curves, and all else.
    assert not warnings
    names = [picture["file"] for picture in results["pictures"]]
    assert names == ["masks.png", "feature_pca.png", "prediction_similarity.png"]
    files = {path.name for path in (tmp_path / "run" / "release").iterdir()}
    assert {picture["file"] for picture in results["pictures"]} <= set(results["files"]) == files
    command_line = results["evaluations"][0]["command"]
    assert str(tmp_path) not in command_line
    assert command_line.endswith("recipe.yaml --logging_steps 100")
    named = yaml.safe_load(Path(recipe[0]).read_text())["data"]["dataset"]
    assert results["evaluations"][0]["dataset"] == Path(named).name


def test_the_recipe_of_a_release_runs_again(recipe, dataset, tmp_path, monkeypatch):
    train(recipe)
    release = tmp_path / "run" / "release"
    written = yaml.safe_load((release / "recipe.yaml").read_text())
    assert str(tmp_path) not in (release / "recipe.yaml").read_text()
    assert written["dataset"] == dataset.name
    monkeypatch.chdir(dataset.parent)
    train([str(release / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    folders = (release, tmp_path / "again" / "release")
    first, second = (AutoModel.from_pretrained(folder).state_dict() for folder in folders)
    assert all((first[name] == second[name]).all() for name in first)


def test_a_used_folder_is_refused_resumed_or_emptied(program, recipe, tmp_path):
    program.main([*recipe, "--save_strategy", "steps", "--save_steps", "2", "--max_steps", "2"])
    with pytest.raises(ValueError, match=r"checkpoint-2, release.*--resume_from_checkpoint true.*--overwrite_output"):
        program.main(recipe)
    options = ["--allow_changed_settings", "--save_strategy", "steps", "--save_steps", "2"]
    program.main([*recipe, *options, "--resume_from_checkpoint", "true"])
    assert release_of(tmp_path)["training"]["steps"] == 4
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    program.main([*recipe, "--overwrite_output_dir", "--max_steps", "1"])
    assert release_of(tmp_path)["training"]["steps"] == 1
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_file_is_no_folder_of_a_run(program, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_jepa.programs.run.load_rows", lambda *_: pytest.fail("work began"))
    file = tmp_path / "taken"
    file.write_text("")
    for folder in (file, file / "run"):
        with pytest.raises(ValueError, match=r"`output_dir` is .*taken' is a file; give a folder: --output_dir"):
            program.main([*recipe, "--output_dir", str(folder)])


def test_the_command_trains_and_shows_tracebacks_on_demand(recipe, tmp_path, capsys):
    assert command(["train", *recipe, "--max_steps", "1"]) == 0
    assert release_of(tmp_path)["training"]["steps"] == 1
    assert command(["train", *recipe, "--hiden_size", "3"]) == 1
    assert "did you mean '--hidden_size'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="hiden_size"):
        command(["train", *recipe, "--hiden_size", "3", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ijepa_fashion_mnst"], "did you mean ijepa_fashion_mnist"),
        (["train", "ijepa_fashion_mnist", "--accelerate_config", "fsdp3"], "fsdp2"),
        (["train", "ijepa_fashion_mnist", "--family", "ijpa"], "Unknown method 'ijpa'"),
        (["train", "ijepa_fashion_mnist", "--family", "vjepa2_ac", "--frameskipp", "2"], "frameskipp"),
    ],
)
def test_the_command_refuses_before_anything_starts(arguments, message, capsys):
    assert command(arguments) == 1
    assert message in capsys.readouterr().err


def start_program(argv: list[str], output: Path) -> None:
    sys.argv = ["hf_jepa.programs", *argv]
    with (output / f"shown-{os.environ['RANK']}.txt").open("w") as file, contextlib.redirect_stdout(file):
        runpy.run_module("hf_jepa.programs", run_name="__main__")


def test_two_processes_on_cpus_make_one_release(recipe, tmp_path, monkeypatch, capsys):
    started = []
    ended = SimpleNamespace(wait=lambda: 0)
    monkeypatch.setattr("hf_jepa.programs.launch.subprocess.Popen", lambda words, env: started.extend(words) or ended)
    assert command(["train", *recipe, "--accelerate_config", "cpu", "--num_processes", "2", "--max_steps", "2"]) == 0
    assert "2 processes, CPU" in capsys.readouterr().out
    place = started.index("hf_jepa.programs") + 1
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hf_jepa.programs"]
    assert started[:place] == [sys.executable, *launcher]
    # What that launcher does, without its seconds; the slow suite calls it.
    run_in_two_processes(start_program, started[place:], tmp_path)
    # One optimizer step is two batches of 8.
    assert release_of(tmp_path)["training"]["batch_size"] == 16
    shown = [(tmp_path / f"shown-{rank}.txt").read_text().count("The release is in") for rank in range(2)]
    assert shown == [1, 0]


@pytest.mark.slow
def test_two_processes_on_cpus_are_two(recipe, tmp_path):
    flags = ["--accelerate_config", "cpu", "--num_processes", "2", "--max_steps", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    launch = [sys.executable, "-m", "hf_jepa.cli", "train", *recipe, *flags]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes, CPU" in done.stdout
    # One optimizer step is two batches of 8.
    assert release_of(tmp_path)["training"]["batch_size"] == 16
    assert done.stdout.count("The release is in") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_with_the_status_of_its_signal(number, status, monkeypatch):
    def stop(argv):
        raise TrainingInterrupted(number)

    monkeypatch.setattr("hf_jepa.programs.launch.train", stop)
    assert command(["train", "ijepa_fashion_mnist"]) == status


@pytest.mark.parametrize("error", [TooManyBadImagesError("9 of 10 cannot be used"), ValueError("9 of 10")])
def test_a_launcher_ends_in_one_line(error):
    def fail(argv):
        raise error

    with pytest.raises(SystemExit, match="error: 9 of 10"):
        run_program(fail)


def test_a_launcher_keeps_the_traceback_of_what_nobody_foresaw():
    def fail(argv):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        run_program(fail)
