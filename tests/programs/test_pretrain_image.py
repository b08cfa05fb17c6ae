"""The image pretraining program, run as a user runs it."""

import importlib
import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModel, AutoModelForPreTraining

from tests.processes import run_script

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "trainers" / "pretrain_image.py"


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("hf_jepa.programs.pretrain_image")


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
    assert {entry["task"] for entry in results["evaluations"]} == {"knn", "ridge"}
    assert yaml.safe_load((release / "recipe.yaml").read_text())["hidden_size"] == 16
    for picture in ("curves", "masks", "feature_pca", "prediction_similarity"):
        assert (release / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{picture}.png" in (release / "README.md").read_text()
    assert json.loads((release / "preprocessor_config.json").read_text())["image_mean"] == [0.5]
    assert "release is in" in capsys.readouterr().out


JOINT_EMBEDDING = {
    "lejepa": (
        "vit",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4},
        {"embedding_size": 8, "projector_hidden_size": 16, "projection_size": 4, "num_slices": 8},
    ),
    "simsiam": (
        "timm/resnet10t",
        {"encoder_args": {"channels": [8, 8, 16, 16], "stem_width": 8}},
        {"projection_size": 8, "predictor_hidden_size": 4},
    ),
}

# What takes back the sizes of the recipe's ViT.
NO_SIZES = [word for name in JOINT_EMBEDDING["lejepa"][1] for word in (f"--{name}", "null")]


@pytest.fixture(params=JOINT_EMBEDDING)
def view_recipe(request, recipe, dataset) -> list[str]:
    encoder, sizes, method = JOINT_EMBEDDING[request.param]
    content = yaml.safe_load(Path(recipe[0]).read_text())
    content["model"] = {
        "family": request.param,
        "image_size": 16,
        "num_channels": 1,
        "encoder": encoder,
        "method": method,
        **sizes,
    }
    content["data"] |= {"baselines": True, "num_views": 2}
    content["data"]["num_local_views"] = 1 if request.param == "lejepa" else 0
    content["data"]["local_image_size"] = 8
    content["training"]["max_steps"] = 2
    del content["masks"]
    Path(recipe[0]).write_text(yaml.safe_dump(content))
    return recipe


def test_views_recipes_become_releases(program, view_recipe, tmp_path):
    program.main(view_recipe)
    release = tmp_path / "run" / "release"
    composite = AutoModelForPreTraining.from_pretrained(release, subfolder="pretraining").eval()
    encoder = AutoModel.from_pretrained(release).eval()
    images = program.torch.randn(2, 1, 16, 16)
    assert type(encoder) is type(composite.encoder)
    with program.torch.no_grad():
        found = encoder(images).last_hidden_state
        program.torch.testing.assert_close(found, composite.encoder(images).last_hidden_state, rtol=1e-5, atol=1e-6)
    results = json.loads((release / "results.json").read_text())
    assert {entry["name"] for entry in results["baselines"]} == {"raw pixels", "untrained encoder"}
    assert len(results["baselines"]) == 4
    assert results["evaluations"][0]["command"].startswith("hf-jepa train ")
    assert results["compute"]["cpu_seconds"] > 0
    pictures = {picture["file"] for picture in results["pictures"]}
    assert {"curves.png", "views.png", "neighbours.png"} <= pictures
    # A ViT's patches have places, resnet10t's single vector has none.
    assert ("feature_pca.png" in pictures) == (composite.config.model_type == "lejepa_pretraining")
    card = (release / "README.md").read_text()
    assert "the **encoder**" in card
    assert "raw pixels | untrained encoder" in card
    assert json.loads((release / "preprocessor_config.json").read_text())["crop_size"] == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "{projectin_size: 3}"], "projectin_size"),
        (["--method", "3"], "mapping"),
        (["--encoder_args", "{depthz: 3}"], "depthz"),
        (
            ["--encoder_args", "{patch_drop_rate: 0.3}"],
            "timm's ViTs have it.* recipe `encoder: timm/.*` with `encoder_args: {patch_drop_rate: 0.3}`",
        ),
        (["--encoder", "timm/resnet10t"], "does not read `patch_size`, `hidden_size`.*null"),
        (
            ["--encoder", "timm/resnet10t", "--encoder_args", "{patch_drop_rate: 0.3}", *NO_SIZES],
            "timm builds no 'resnet10t'",
        ),
        (["--encoder", "nonsense"], "nonsense"),
        (["--from_encoder", "somewhere", "--licence", "mit"], "Give one of"),
        (["--family", "dino"], "dino"),
        (["--solarize_probability", "0.1", "0.2", "0.3"], "one per view"),
        (["--num_views", "1"], "at least 2"),
        (["--lars_trust_coefficient", "-1"], "lars_trust_coefficient"),
    ],
)
@pytest.mark.parametrize("view_recipe", ["lejepa"], indirect=True)
def test_bad_view_recipes_are_named(program, view_recipe, flags, message):
    extra = ["--num_local_views", "0"] if "--num_views" in flags else []
    with pytest.raises(ValueError, match=message):
        program.main([*view_recipe, *flags, *extra])


@pytest.mark.parametrize("view_recipe", ["lejepa"], indirect=True)
def test_a_dry_run_of_views_counts_parts(program, view_recipe, capsys):
    program.main([*view_recipe, "--dry-run", "--lars_trust_coefficient", "0.02"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["parameters"].keys() == {"encoder", "embedding", "projector", "sigreg"}
    assert printed["recipe"]["lars_trust_coefficient"] == 0.02


@pytest.mark.parametrize("view_recipe", ["lejepa"], indirect=True)
def test_lejepas_averaged_network_and_dropped_patches_are_options_of_a_recipe(program, view_recipe, tmp_path, capsys):
    content = yaml.safe_load(Path(view_recipe[0]).read_text())
    model = content["model"]
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        del model[name]
    model["encoder"] = "timm/vit_tiny_patch16_224"
    model["encoder_args"] = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_drop_rate": 0.3}
    model["method"] |= {"target": "ema", "centre": "global_views"}
    content["training"]["ema_momentum"] = 0.9
    Path(view_recipe[0]).write_text(yaml.safe_dump(content))
    program.main([*view_recipe, "--dry-run"])
    counts = yaml.safe_load(capsys.readouterr().out)["parameters"]
    for name in ("encoder", "embedding", "projector"):
        assert counts[name] == counts[f"target_{name}"]
    program.main(view_recipe)
    release = tmp_path / "run" / "release"
    composite = AutoModelForPreTraining.from_pretrained(release, subfolder="pretraining")
    encoder = AutoModel.from_pretrained(release)
    images = program.torch.randn(2, 1, 16, 16)
    with program.torch.no_grad():
        found = encoder(images).last_hidden_state
    program.torch.testing.assert_close(found[:, 1:], composite.get_features(images), rtol=1e-5, atol=1e-6)
    assert not program.torch.equal(found[:, 1:], composite.get_features(images, which="context"))


def test_dry_run_prints_and_writes_nothing(program, recipe, tmp_path, capsys):
    program.main([*recipe, "--dry-run", "--max_steps=-1", "--num_train_epochs=2"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["recipe"]["hidden_size"] == 16
    assert printed["optimizer_steps"] == 12
    assert printed["parameters"]["encoder"] == printed["parameters"]["target_encoder"] > 0
    assert printed["memory_mib"]["weights_gradients_optimizer"] >= 0
    assert printed["forward_pass"]["batch"]["pixel_values"] == "2x1x16x16"
    assert printed["forward_pass"]["loss"] > 0
    assert printed["global_batch_size"] == 8
    assert not (tmp_path / "run" / "release").exists()
    with pytest.raises(ValueError, match="`warmup_steps` is 3, but the run has 2 updates"):
        program.main([*recipe, "--dry-run", "--max_steps", "2", "--warmup_steps", "3"])


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
    run = run_script(PROGRAM.read_text(), *recipe, "--hiden_size", "3")
    assert run.returncode == 1
    assert "did you mean '--hidden_size'" in run.stderr.splitlines()[-1]
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
        (["--method", "{vicreg_weight: 0.1}"], "vicreg_weight, which IJepaPreTrainingConfig has not"),
        (["--num_attention_heads", "3"], "heads"),
    ],
)
def test_bad_recipes_are_named_before_training(program, recipe, flags, message):
    with pytest.raises(Exception, match=message) as error:
        program.main([*recipe, *flags])
    assert isinstance(error.value, ValueError) or "Strict" in type(error.value).__name__


def test_probes_are_not_scored_on_what_they_are_fitted_on(program, recipe, dataset):
    with pytest.raises(ValueError, match="48 of the 48 rows of test are also in train"):
        program.main([*recipe, "--probe_split=train"])
