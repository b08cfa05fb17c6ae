"""A release folder, as its readers find it: plain transformers at the root, the composite in `pretraining/`."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.hub import check_release, load_pretraining, render_card, save_release
from tests.processes import run_script

RESULTS = {
    "model": {"name": "tiny-ijepa"},
    "data": {"name": "someone/pictures", "split": "train", "num_examples": 12, "licence": "mit"},
    "licence": "apache-2.0",
    "pictures": [{"file": "curves.png", "caption": "Loss by step"}],
}

# Runs where `import hf_jepa` fails, as on a machine that has only transformers.
PLAIN_USER = """
import sys
sys.modules["hf_jepa"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
folder, picture, out = sys.argv[1:]
try:
    import hf_jepa
except ImportError:
    pass
else:
    raise SystemExit("hf_jepa could be imported")
pixels = AutoImageProcessor.from_pretrained(folder)(images=Image.open(picture), return_tensors="pt")["pixel_values"]
model = AutoModel.from_pretrained(folder)
with torch.no_grad():
    features = model(pixels).last_hidden_state
torch.save({"pixels": pixels, "features": features, "class": type(model).__name__}, out)
"""


@pytest.fixture
def model() -> IJepaForPreTraining:
    encoder = IJepaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        layer_norm_eps=1e-6,
        image_size=16,
        patch_size=4,
    )
    config = IJepaPreTrainingConfig(
        encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1, initialization="fan_in"
    )
    model = IJepaForPreTraining(config).eval()
    with torch.no_grad():  # so that the two encoders are told apart
        for parameter in model.target_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def release(model, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "curves.png")
    return save_release(
        model,
        tmp_path / "release",
        results=RESULTS,
        recipe={"learning_rate": 1e-3, "data": {"name": "someone/pictures"}},
        pictures=[tmp_path / "curves.png"],
    )


def test_plain_transformers_gets_exactly_the_target_encoders_features(model, release, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    done = run_script(PLAIN_USER, release, tmp_path / "picture.png", tmp_path / "out.pt")
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert out["class"] == "IJepaModel"
    assert torch.equal(out["features"], model.get_features(out["pixels"], which="target"))
    assert not torch.allclose(out["features"], model.get_features(out["pixels"], which="context"), atol=1e-3)


def test_processor_normalises_with_imagenet_statistics(release):
    processor = AutoImageProcessor.from_pretrained(release)
    pixels = processor(images=Image.new("RGB", (16, 16), (255, 0, 128)), return_tensors="pt")["pixel_values"]
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[0, :, 3, 5], torch.tensor(expected), rtol=0, atol=1e-5)


def test_composite_comes_back_whole(model, release):
    loaded = load_pretraining(release, subfolder="pretraining")
    assert loaded.config.initialization == "fan_in"
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with pytest.raises(ValueError, match="no model to train further. A release has an encoder at its root"):
        load_pretraining(release)


def test_what_lies_in_the_folder(release):
    files = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "config.json",
        "curves.png",
        "model.safetensors",
        "preprocessor_config.json",
        "pretraining/config.json",
        "pretraining/model.safetensors",
        "recipe.yaml",
        "results.json",
    }
    results = json.loads((release / "results.json").read_text())
    assert results["model"]["num_parameters"] == AutoModel.from_pretrained(release).num_parameters()
    assert results["model"]["model_type"] == "ijepa_pretraining"
    assert (release / "README.md").read_text() == render_card(results)
    assert yaml.safe_load((release / "recipe.yaml").read_text())["data"]["name"] == "someone/pictures"
    assert "![Loss by step](curves.png)" in (release / "README.md").read_text()


def test_context_encoder_can_be_the_root(model, tmp_path):
    folder = save_release(model, tmp_path / "release", results=RESULTS, which="context")
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder)(torch.ones(1, 3, 16, 16)).last_hidden_state
    assert torch.equal(features, model.get_features(torch.ones(1, 3, 16, 16), which="context"))


def test_saving_again_replaces_and_keeps_other_files(model, release):
    (release / "notes.txt").write_text("mine")
    with torch.no_grad():
        model.target_encoder.layernorm.bias.add_(1)
    save_release(model, release, results=RESULTS)
    assert torch.equal(AutoModel.from_pretrained(release).layernorm.bias, model.target_encoder.layernorm.bias)
    assert (release / "notes.txt").read_text() == "mine"


def test_a_failing_save_leaves_the_earlier_release(model, release, monkeypatch):
    before = {path: path.read_bytes() for path in release.rglob("*") if path.is_file()}

    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_release(model, release, results=RESULTS)
    assert {path: path.read_bytes() for path in release.rglob("*") if path.is_file()} == before


def test_missing_pictures_are_named_before_anything_is_written(model, tmp_path):
    with pytest.raises(ValueError, match=r"absent\.png"):
        save_release(model, tmp_path / "release", results=RESULTS, pictures=[tmp_path / "absent.png"])
    assert not (tmp_path / "release").exists()


def truncate(folder):
    weights = folder / "pretraining" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "training_args.bin").write_bytes(b"x"), "training_args.bin is a pickle"),
        (lambda folder: (folder / "pretraining" / "optimizer.pt").write_bytes(b"x"), "optimizer.pt is a pickle"),
        (lambda folder: (folder / "README.md").unlink(), "README.md is missing"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (truncate, "model.safetensors is damaged"),
        (lambda folder: (folder / "recipe.yaml").write_text("hub_token: hf_" + "a" * 34), "access token"),
    ],
)
def test_unfit_folders_are_not_published(release, harm, message):
    check_release(release)
    harm(release)
    with pytest.raises(ValueError, match="not ready to be published") as error:
        check_release(release)
    assert message in str(error.value)
