"""Code that comes with data: planted in every place where some loader of some library would run it, and never run."""

import ast
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import IJepaConfig, ViTImageProcessor

import hf_jepa
from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig, VLJepaPipeline
from hf_jepa.cli import main
from hf_jepa.conversion.lewm import convert_lewm_checkpoint
from hf_jepa.evaluation.checkpoints import load_encoder, load_image_transform
from hf_jepa.hub import load_pretraining
from hf_jepa.hub.card import render_card
from hf_jepa.hub.processors import saved_processor
from hf_jepa.programs.recipes import read_recipe

SOURCE = Path(hf_jepa.__file__).parent
CODE = "import pathlib\npathlib.Path({trace!r}).touch()\nclass Evil:\n    pass\n"


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """What planted code would make; asked by hand it does."""
    path = tmp_path / "it-ran"
    exec(CODE.format(trace=str(path)), {})
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture
def folder(tmp_path: Path, trace: Path) -> Path:
    """A composite with code in its folder, which every config file names."""
    folder = tmp_path / "model"
    encoder = IJepaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    config = IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    IJepaForPreTraining(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    (folder / "evil.py").write_text(CODE.format(trace=str(trace)))
    names = ("AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoImageProcessor", "AutoProcessor")
    for name in ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        values["auto_map"] = dict.fromkeys(names, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        (folder / name).write_text(json.dumps(values))
    return folder


def of_an_unknown_type(folder: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        values = json.loads((folder / name).read_text())
        values |= {"model_type": "evil", "image_processor_type": "Evil"}
        (folder / name).write_text(json.dumps(values))


@pytest.mark.parametrize("is_known", [True, False])
def test_an_auto_map_is_not_followed(
    folder: Path, tmp_path: Path, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # and no question asked
    model = load_pretraining(folder)
    if not is_known:
        of_an_unknown_type(folder)
    readers: list[Callable[[], object]] = [
        lambda: load_pretraining(folder),
        lambda: load_encoder(folder),
        lambda: load_image_transform(folder, model),
        lambda: saved_processor(model, [folder]),
        lambda: IJepaForPreTraining.from_encoder(str(folder)),
        lambda: VLJepaPipeline.from_pretrained(str(folder)),
        lambda: main(["export", str(folder), str(tmp_path / "out"), "--license", "mit"]),
        lambda: main(["visualize", str(folder), str(folder / "config.json"), "--output", str(tmp_path / "x.png")]),
    ]
    for read in readers:
        try:
            read()
        except (ValueError, OSError, TypeError, AttributeError):
            continue
    # Nor is what the export wrote told to load any.
    for file in (tmp_path / "out").rglob("*.json"):
        assert "auto_map" not in file.read_text()
    assert not any(name.endswith("evil") for name in sys.modules)


def test_pickled_weights_are_not_run(folder: Path, trace: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple:
            return exec, (CODE.format(trace=str(trace)),)

    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(pickle.dumps(Touch()))
    for read in (load_pretraining, load_encoder, IJepaForPreTraining.from_pretrained):
        with pytest.raises((ValueError, OSError, pickle.UnpicklingError)):
            read(folder)


def test_classes_in_a_config_are_not_made(tmp_path: Path, trace: Path) -> None:
    """LeWM's published config names classes for Hydra to instantiate."""
    source = tmp_path / "lewm"
    source.mkdir()
    torch.save({"encoder.embeddings.cls_token": torch.zeros(1, 1, 8)}, source / "weights.pt")
    planted = {"_target_": "builtins.exec", "_args_": [CODE.format(trace=str(trace))]}
    (source / "config.json").write_text(json.dumps({**planted, "encoder": planted, "predictor": planted}))
    (tmp_path / "statistics.json").write_text(json.dumps({"action_mean": [0], "action_std": [1], "_target_": "os"}))
    with pytest.raises(ValueError, match="lewm"):
        convert_lewm_checkpoint(source, tmp_path / "out", statistics=tmp_path / "statistics.json")


@pytest.mark.parametrize("tag", ["object/apply:builtins.exec", "object/new:builtins.exec", "name:builtins.exec"])
def test_yaml_makes_no_objects(tmp_path: Path, trace: Path, tag: str) -> None:
    path = tmp_path / "recipe.yaml"
    code = json.dumps(CODE.format(trace=str(trace)))
    path.write_text(f"family: !!python/{tag} {'[' + code + ']' if 'object' in tag else ''}\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml is not valid YAML"):
        read_recipe(path)


def test_templates_in_results_are_text() -> None:
    planted = "{{ cycler.__init__.__globals__.os.getpid() }}{% for x in range(9) %}x{% endfor %}"
    card = render_card({"model": {"name": "tiny", "family": "ijepa"}, "licence": "mit", "limits": [planted]})
    assert planted in card


# Called by this name, each runs what its argument holds.
FORBIDDEN = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "marshal.loads"}
FORBIDDEN |= {"os.system", "os.popen", "dill.load", "dill.loads", "joblib.load"}


def test_the_package_calls_nothing_that_runs_its_input() -> None:
    calls = 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            calls += 1
            name, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            where = f"{path.relative_to(SOURCE)}:{node.lineno}"
            assert name not in FORBIDDEN, where
            assert name != "torch.load" or options.get("weights_only") == "True", where
            assert name != "np.load" or options.get("allow_pickle", "False") == "False", where
            if name.endswith(".from_pretrained") and ("Auto" in name or name.startswith("auto")):
                # Left open, transformers asks on the terminal.
                assert path.name == "parts.py", f"{where}: load by `load_auto`"
            assert options.get("trust_remote_code", "False") == "False", where
            assert not name.startswith("subprocess.") or options.get("shell", "False") == "False", where
    assert calls > 5000
