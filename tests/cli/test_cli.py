"""The `hf-jepa` command: what it does, and how it fails."""

import argparse
import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, IJepaConfig

import hf_jepa
from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, cli
from hf_jepa.cli import build_parser, main
from hf_jepa.evaluation import TASKS, VISION_LANGUAGE_TASKS
from hf_jepa.evaluation.language import ANSWER_TASKS
from hf_jepa.hub import PushError, check_release, save_release

RESULTS = {"model": {"name": "tiny"}, "licence": "apache-2.0"}


@pytest.fixture
def model() -> IJepaForPreTraining:
    encoder = IJepaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=4
    )
    return IJepaForPreTraining(
        IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    )


@pytest.fixture
def release(model, tmp_path) -> Path:
    return save_release(model, tmp_path / "release", results=RESULTS)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two splits of a folder of images, two classes that differ in colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label in range(2):
            folder = tmp_path / "pictures" / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 60, (32, 32, 3)).astype(np.uint8)
                pixels[..., label] += 180
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    return next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))


def fails(arguments: list[str], capsys) -> str:
    """Runs a command that must fail; returns its one line."""
    capsys.readouterr()
    assert main(arguments) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("hf-jepa: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def test_every_command_is_there_and_its_help_has_an_example(capsys):
    files = {path.stem for path in Path(cli.__file__).parent.iterdir() if path.stem[0] not in "_."}
    assert {verb.__name__.rpartition(".")[2] for verb in cli.VERBS} == files
    assert len(commands()) == len(files)
    for name in commands():
        with pytest.raises(SystemExit) as exited:
            main([name, "--help"])
        assert exited.value.code == 0
        assert f"example:\n  hf-jepa {name}" in capsys.readouterr().out


def test_examples_parse():
    for parser in commands().values():
        for line in parser.epilog.splitlines()[1:]:
            build_parser().parse_args(line.split()[1:])


def test_a_notebooks_backend_for_figures_is_not_taken_over(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://not_installed")
    main(["recipes"])
    assert os.environ["MPLBACKEND"] == "Agg"


def test_tasks_are_those_of_evaluation():
    task = next(action for action in commands()["evaluate"]._actions if action.dest == "task")
    assert set(task.choices) == {*TASKS, *ANSWER_TASKS, *VISION_LANGUAGE_TASKS, "planning"}


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["convert", "ijepa"], ["evaluate"]])
def test_wrong_usage_exits_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert "hf-jepa" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["hf-jepa", hf_jepa.__version__]


def test_list_names_the_registered_types(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "ijepa_pretraining" in out
    assert "CJepaForPreTraining" in out


def test_env_reports_versions(capsys):
    assert main(["env"]) == 0
    assert f"- torch: {torch.__version__}" in capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["hf_jepa"] == hf_jepa.__version__
    assert {"python", "platform", "hardware", "transformers", "cuda", "accelerate"} <= set(report)


def test_convert_there_and_back(golden_dir, tmp_path, capsys):
    checkpoint = {group: OrderedDict() for group in ("encoder", "predictor", "target_encoder")}
    for name, tensor in load_file(golden_dir / "ijepa_forward.safetensors").items():
        group, _, key = name.partition("/")
        if group in checkpoint:
            checkpoint[group][key] = tensor
    source, folder = tmp_path / "in.pth.tar", tmp_path / "out"
    torch.save(checkpoint, source)

    assert "--num-attention-heads" in fails(["convert", "ijepa", str(source), str(folder)], capsys)
    options = ["--num-attention-heads", "4", "--image-size", "64", "--which", "context", "--license", "mit"]
    assert main(["convert", "ijepa", str(source), str(folder), *options]) == 0
    features = AutoModel.from_pretrained(folder).layernorm.bias
    assert torch.equal(features, checkpoint["encoder"]["module.norm.bias"])
    assert "license: mit" in (folder / "README.md").read_text()
    assert main(["convert", "ijepa", str(folder), str(tmp_path / "back.pth.tar"), "--reverse"]) == 0
    assert (tmp_path / "back.pth.tar").read_bytes() == source.read_bytes()


def test_export_makes_a_release_of_a_checkpoint(model, tmp_path, capsys):
    checkpoint, out = tmp_path / "checkpoint-7", tmp_path / "out"
    model.save_pretrained(checkpoint, save_original_format=False)
    arguments = [
        "export",
        str(checkpoint),
        str(out),
        "--image-mean",
        "0.1",
        "0.2",
        "0.3",
        "--image-std",
        "1",
        "1",
        "1",
    ]
    assert "--license" in fails(arguments, capsys)
    assert not out.exists()
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"training": {"steps": 7}}))
    assert main([*arguments, "--license", "mit", "--results", str(results)]) == 0
    check_release(out)
    exported = AutoModel.from_pretrained(out).state_dict()
    assert all(torch.equal(exported[key], value) for key, value in model.target_encoder.state_dict().items())
    assert list(AutoImageProcessor.from_pretrained(out).image_mean) == [0.1, 0.2, 0.3]
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert "| 7 x not recorded |" in card


def test_export_from_a_release_keeps_its_processor_and_licence(model, tmp_path):
    release = save_release(
        model, tmp_path / "release", results=RESULTS | {"licence": "cc-by-nc-4.0", "training": {"steps": 7}}
    )
    processor = AutoImageProcessor.from_pretrained(release)
    processor.image_mean = [0.25, 0.25, 0.25]
    processor.save_pretrained(release)
    with torch.no_grad():
        model.encoder.layernorm.bias.add_(1)
    model.save_pretrained(release / "pretraining")
    options = ["--subfolder", "pretraining", "--which", "context"]
    assert main(["export", str(release), str(tmp_path / "out"), *options]) == 0
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean) == [0.25, 0.25, 0.25]
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "out").layernorm.bias, model.encoder.layernorm.bias)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["licence"] == "cc-by-nc-4.0"
    assert results["model"]["encoder"] == "context"
    assert "training" not in results


def test_evaluate_prints_and_records_its_command(release, pictures, tmp_path, capsys):
    output = tmp_path / "evaluation.json"
    arguments = ["evaluate", str(release), "--dataset", str(pictures), "--task", "knn", "--output", str(output)]
    assert main([*arguments, "--device", "cpu", "--k", "3"]) == 0
    entry = json.loads(output.read_text())["evaluations"][0]
    assert entry["num_examples"] == 8
    assert 0 <= entry["value"] <= 1
    assert entry["command"].startswith(f"hf-jepa evaluate {release} --dataset {pictures} --task knn")
    assert f"accuracy (mean): {entry['value']:.4f}" in capsys.readouterr().out


def test_card_prints_or_writes(tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"model": {"name": "tiny", "family": "ijepa"}, "licence": "apache-2.0"}))
    assert main(["card", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "# tiny" in printed
    assert main(["card", str(results), "--output", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == printed


@pytest.mark.parametrize("kind", ["pca", "masks", "similarity"])
def test_visualize_draws(release, pictures, tmp_path, kind):
    picture = pictures / "test" / "0" / "0.png"
    output = tmp_path / f"{kind}.png"
    options = ["--kind", kind, "--subfolder", "pretraining", "--output", str(output)]
    assert main(["visualize", str(release), str(picture), *options]) == 0
    with Image.open(output) as drawn:
        assert np.asarray(drawn.convert("RGB")).std() > 1


def test_push_says_how_to_finish(release, monkeypatch, capsys):
    seen = {}

    def push(folder, repo_id, **kwargs):
        seen.update(kwargs, folder=folder, repo_id=repo_id)
        raise PushError(f"finish with: hf upload {repo_id} {folder}")

    monkeypatch.setattr("hf_jepa.hub.release.push_release", push)
    line = fails(["push", str(release), "me/tiny", "--private", "--revision", "v1"], capsys)
    assert line.endswith(f"hf upload me/tiny {release}")
    assert seen == {"folder": release, "repo_id": "me/tiny", "private": True, "revision": "v1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "ijepa", "absent.pth.tar", "out"], "absent.pth.tar"),
        (["convert", "ijepa", "absent", "out", "--reverse"], "'absent' is no folder"),
        (["convert", "ijepa", "x", "out", "--image-size", "1", "2", "3"], "--image-size"),
        (["push", "absent", "me/tiny"], "'absent' is no folder"),
        (["card", "absent.json"], "absent.json"),
        (["card", "{pictures}"], "results.json"),
        (["visualize", "{release}", "absent.png"], "absent.png"),
        (["visualize", "{release}", "{pictures}"], "is a folder; give a file in it"),
        (["visualize", "{release}", "{picture}", "--kind", "masks"], "--subfolder pretraining"),
        (["evaluate", "{release}", "--dataset", "{pictures}", "--label-column", "colour"], "colour"),
        (["evaluate", "{release}", "--dataset", "./absent"], "'./absent'"),
        (["evaluate", "{release}"], "--dataset, or --test-dataset"),
        (["export", "./absent", "out"], "absent"),
    ],
)
def test_failures_are_one_line(arguments, message, release, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"release": release, "pictures": pictures, "picture": pictures / "test" / "0" / "0.png"}
    assert message in fails([text.format(**names) for text in arguments], capsys)
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback():
    with pytest.raises(FileNotFoundError):
        main(["convert", "ijepa", "absent.pth.tar", "out", "--debug"])


@pytest.mark.parametrize(("flags", "private"), [(["--private"], True), ([], None)])
def test_push_creates_a_private_repository_when_told(flags, private, tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr("hf_jepa.hub.release.push_release", lambda *args, **options: asked.update(options) or "url")
    assert main(["push", str(tmp_path), "me/x", *flags]) == 0
    assert asked == {"private": private, "revision": None}
