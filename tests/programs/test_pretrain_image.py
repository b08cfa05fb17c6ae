"""The image pretraining program, run as a user runs it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoModel, AutoModelForPreTraining

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "trainers" / "pretrain_image.py"
RECIPES = sorted((ROOT / "trainers" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("pretrain_image", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_image"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (48, 16, 16), dtype=np.uint8)
    rows = {"image": [PILImage.fromarray(pixels) for pixels in noise], "label": [index % 3 for index in range(48)]}
    features = Features({"image": Image(), "label": Value("int64")})
    for split in ("train", "validation"):
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


@pytest.fixture
def recipe(tmp_path, dataset) -> list[str]:
    content = {
        "model": {
            "image_size": 16,
            "patch_size": 4,
            "num_channels": 1,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "predictor_hidden_size": 8,
            "predictor_num_hidden_layers": 1,
        },
        "data": {
            "dataset": str(dataset),
            "probe_split": "validation",
            "image_mean": [0.5],
            "image_std": [0.5],
        },
        "masks": {"min_keep": 1, "target_scale": [0.2, 0.25]},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "logging_steps": 2,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return [str(path)]


@pytest.mark.parametrize("family", ["ijepa", "cjepa"])
def test_a_recipe_becomes_a_release(program, recipe, tmp_path, family, capsys):
    program.main([*recipe, "--family", family])
    release = tmp_path / "run" / "release"
    encoder = AutoModel.from_pretrained(release)
    composite = AutoModelForPreTraining.from_pretrained(release, subfolder="pretraining")
    assert encoder.config.model_type == "ijepa"
    assert composite.config.model_type == f"{family}_pretraining"
    results = json.loads((release / "results.json").read_text())
    assert results["training"]["steps"] == 4
    assert {entry["task"] for entry in results["evaluations"]} == {"knn", "linear"}
    assert yaml.safe_load((release / "recipe.yaml").read_text())["hidden_size"] == 16
    for picture in ("curves", "masks", "feature_pca", "prediction_similarity"):
        assert (release / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{picture}.png" in (release / "README.md").read_text()
    assert json.loads((release / "preprocessor_config.json").read_text())["image_mean"] == [0.5]
    assert "release is in" in capsys.readouterr().out


def test_dry_run_prints_and_writes_nothing(program, recipe, tmp_path, capsys):
    program.main([*recipe, "--dry-run", "--max_steps=-1", "--num_train_epochs=2"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["recipe"]["hidden_size"] == 16
    assert printed["optimizer_steps"] == 12
    assert printed["parameters"]["encoder"] == printed["parameters"]["target_encoder"] > 0
    assert printed["memory_estimate_mib"]["weights_gradients_optimizer"] >= 0
    assert not (tmp_path / "run" / "release").exists()


def test_a_release_can_be_continued(program, recipe, tmp_path):
    program.main(recipe)
    own = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    content = yaml.safe_load(Path(recipe[0]).read_text())
    content["model"] = {key: value for key, value in content["model"].items() if key not in own}
    content["model"]["from_encoder"] = str(tmp_path / "run" / "release")
    content["training"]["output_dir"] = str(tmp_path / "more")
    Path(recipe[0]).write_text(yaml.safe_dump(content))
    program.main(recipe)
    results = json.loads((tmp_path / "more" / "release" / "results.json").read_text())
    assert results["licence"] == "apache-2.0"
    (tmp_path / "run" / "release" / "results.json").unlink()
    with pytest.raises(ValueError, match="--licence"):
        program.main(recipe)
    program.main([*recipe, "--licence", "cc-by-nc-4.0", "--max_steps", "1", "--output_dir", str(tmp_path / "nc")])
    assert "license: cc-by-nc-4.0" in (tmp_path / "nc" / "release" / "README.md").read_text()


def test_command_line_errors_are_one_line(recipe):
    run = subprocess.run(
        [sys.executable, str(PROGRAM), *recipe, "--hiden_size", "3"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "did you mean 'hidden_size'" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_column", "picture"], "picture.*image"),
        (["--label_column", "kind"], "kind"),
        (["--patch_size", "5"], "patch size"),
        (["--min_keep", "10"], "min_keep=10"),
        (["--ema_momentum", "1.5"], "1.5"),
        (["--size", "tiny"], "Give one of"),
        (["--vicreg_weight", "0.1"], "C-JEPA"),
        (["--num_attention_heads", "3"], "heads"),
    ],
)
def test_bad_recipes_are_named_before_training(program, recipe, flags, message):
    with pytest.raises(Exception, match=message) as error:
        program.main([*recipe, *flags])
    assert isinstance(error.value, ValueError) or "Strict" in type(error.value).__name__


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_committed_recipes_describe_models_and_masks(program, path):
    types = (program.ModelArguments, program.DataArguments, program.MaskArguments, program.JepaTrainingArguments)
    model_args, data_args, mask_args, training_args = program.parse_recipe(types, [str(path), "--use_cpu", "true"])
    with program.torch.device("meta"):
        model = program.build_model(model_args)
    context_mask, _ = program.build_collator(model, mask_args, 0).mask_generator(2)
    assert context_mask[0].shape[1] > mask_args.min_keep
    assert data_args.dataset
    assert training_args.output_dir
