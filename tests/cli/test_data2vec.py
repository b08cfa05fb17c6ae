"""`hf-jepa` on data2vec: every command that takes a model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, Data2VecVisionConfig

from hf_jepa import Data2VecVisionForPreTraining, Data2VecVisionPreTrainingConfig
from hf_jepa.cli import main
from hf_jepa.hub import check_release
from hf_jepa.models.data2vec_vision.configuration_data2vec_vision import ENCODER_DEFAULTS


@pytest.fixture
def composite(tmp_path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = Data2VecVisionConfig(**ENCODER_DEFAULTS, **sizes, image_size=32, patch_size=4)
    model = Data2VecVisionForPreTraining(Data2VecVisionPreTrainingConfig(encoder_config=encoder, target_layers=[1]))
    with torch.no_grad():
        model.encoder.layernorm.bias.add_(1.0)
    model.save_pretrained(tmp_path / "checkpoint-7")
    return tmp_path / "checkpoint-7"


@pytest.fixture
def pictures(tmp_path) -> Path:
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


def test_convert_there_and_back(composite, tmp_path, capsys):
    file, folder, back = tmp_path / "checkpoint-7.pth", tmp_path / "out", tmp_path / "back.pth"
    assert main(["convert", "data2vec_vision", str(composite), str(file), "--reverse"]) == 0
    options = ["--target-layers", "1", "--which", "context", "--license", "mit"]
    assert main(["convert", "data2vec_vision", str(file), str(folder), *options]) == 0
    check_release(folder)
    exported = AutoModel.from_pretrained(folder)
    assert torch.equal(exported.layernorm.bias, torch.ones(16))
    assert "license: mit" in (folder / "README.md").read_text()
    loaded = Data2VecVisionForPreTraining.from_pretrained(folder / "pretraining")
    before = Data2VecVisionForPreTraining.from_pretrained(composite)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in before.state_dict().items())
    assert loaded.config.target_layers == [1]
    assert main(["convert", "data2vec_vision", str(folder), str(back), "--reverse"]) == 0
    assert back.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data2vec_vision", "x.pth", "out", "--num-attention-heads", "2"], "--num-attention-heads"),
        (["data2vec_vision", "x.pth", "out", "--image-size", "32"], "--image-size"),
        (["ijepa", "x.pth", "out", "--target-layers", "1"], "--target-layers"),
        (["data2vec_vision", "x.pth", "out"], "No checkpoint file"),
        (["data2vec_vision", "nowhere", "out", "--reverse"], "is no folder"),
    ],
)
def test_convert_failures_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hf-jepa: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_export_evaluate_and_visualize(composite, pictures, tmp_path):
    release, output = tmp_path / "release", tmp_path / "evaluation.json"
    assert main(["export", str(composite), str(release), "--license", "mit"]) == 0
    check_release(release)
    card = (release / "README.md").read_text()
    assert "data2vec learns image features" in card
    assert "Data2VecVisionModel" in card
    arguments = ["evaluate", str(release), "--dataset", str(pictures), "--device", "cpu", "--k", "3"]
    values = []
    for options in ([], ["--subfolder", "pretraining"]):
        assert main([*arguments, *options, "--output", str(output)]) == 0
        values.append(json.loads(output.read_text())["evaluations"][0]["value"])
    # The plain encoder and the composite give one set of features, without the class token.
    assert values[0] == values[1]
    picture = str(pictures / "test" / "0" / "0.png")
    for kind in ("pca", "masks", "similarity"):
        drawn = tmp_path / f"{kind}.png"
        options = ["--kind", kind, "--subfolder", "pretraining", "--output", str(drawn)]
        assert main(["visualize", str(release), picture, *options]) == 0
        with Image.open(drawn) as image:
            assert np.asarray(image.convert("RGB")).std() > 1
