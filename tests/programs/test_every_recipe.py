"""Every recipe of the package: found by name, understood, written back and read again, and run dry."""

import importlib

import pytest
import yaml

from hf_jepa.cli import main
from hf_jepa.cli.recipes import first_sentence
from hf_jepa.methods import method_of
from hf_jepa.programs.launch import family_of, train
from hf_jepa.programs.recipe_files import RECIPES, recipe_names
from hf_jepa.programs.recipes import parse_recipe, resolved
from hf_jepa.training import LLMJepaTrainingArguments

NAMES = sorted(recipe_names())
# One of each kind of method; the others are built and run dry by the slow test.
QUICK = ("data2vec_fashion_mnist", "ijepa_in1k_vith14", "mae_fashion_mnist", "nl_rx_synth_tiny_official")
QUICK += (
    "rectified_lpjepa_fashion_mnist",
    "vicreg_in1k_resnet50",
    "vjepa2_moving_fashion",
    "vjepa2_1_vitl16_pretrain",
)


def program_of(name: str):
    return importlib.import_module(method_of(family_of([name])).load("program").__module__).PROGRAM


def test_names_are_unique():
    assert len(NAMES) == len(list(RECIPES.rglob("*.yaml"))) >= 60


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_back_is_the_same_run(name, tmp_path):
    types = program_of(name).argument_types
    # Half precision on a machine that has none is refused by transformers itself.
    parts = parse_recipe(types, [name], use_cpu=True, bf16=False)
    written = resolved(*parts)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    assert parse_recipe(types, [str(path)]) == parts
    # Taken out of a release, it still says who is to train it.
    assert family_of([str(path)]) == family_of([name])
    given = yaml.safe_load(recipe_names()[name].read_text())
    for section in given.values():
        for key in section:
            assert key in written or getattr(next(part for part in parts if hasattr(part, key)), key) is not None


@pytest.mark.parametrize("name", [name for name in NAMES if "nl_rx" in name or "llama" in name])
def test_the_official_regime_is_whole(name):
    model, pairs, args = parse_recipe(program_of(name).argument_types, [name], use_cpu=True, bf16=False)
    assert isinstance(args, LLMJepaTrainingArguments)
    assert (model.model is None) != (model.decoder is None)
    if args.regime == "official":
        assert (model.dtype, pairs.layout) == ("bfloat16", "official")


def run_dry(name: str, capsys) -> dict:
    train([name, "--dry_run"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["recipe"]["family"] == family_of([name])
    # Not on this machine, as nothing is that the recipe names.
    assert shown["not_here"]
    return shown


@pytest.mark.parametrize("name", QUICK)
def test_recipes_run_dry_without_a_gpu_or_data(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run_dry(name, capsys)
    assert (shown["forward_pass"]["loss"] is None) == (shown["trainable_parameters"] > 20_000_000)
    assert shown["forward_pass"]["activations_mib_per_device"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_all_other_recipes_run_dry(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run_dry(name, capsys)
    assert "forward_pass" in shown or "model, of " in shown["not_here"][-1]


def test_a_dry_run_sees_every_size_of_view_and_keeps_what_the_recipe_says(capsys):
    train(["vjepa2_1_vitl16_pretrain", "--dry_run", "--per_device_train_batch_size=48"])
    shown = yaml.safe_load(capsys.readouterr().out)
    clips = shown["forward_pass"]["batch"]["pixel_values_videos"]
    assert clips == ["1x16x3x256x256", "1x1x3x256x256"]
    assert shown["recipe"]["bf16"] is True
    assert shown["recipe"]["per_device_train_batch_size"] == shown["global_batch_size"] == 48
    assert "use_cpu" not in shown["recipe"]


def test_shapes_alone_count_what_computing_does(capsys, monkeypatch):
    found = []
    for most in (10_000_000, 1000):
        monkeypatch.setattr("hf_jepa.programs.dry_run.MOST_PARAMETERS", most)
        train(["ijepa_fashion_mnist", "--dry_run"])
        found.append(yaml.safe_load(capsys.readouterr().out))
    computed, shapes = found
    assert "nothing was computed" in shapes["forward_pass"]["how"]
    assert (computed["forward_pass"].pop("loss") is None, shapes["forward_pass"].pop("loss") is None) == (False, True)
    for report in found:
        del report["forward_pass"]["how"]
    assert computed == shapes


def test_recipes_are_listed_with_what_they_are(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, path in recipe_names().items():
        line = next(line for line in lines if line.split()[:1] == [name])
        assert line.endswith(first_sentence(path.read_text()))
        assert len(first_sentence(path.read_text())) > 10
