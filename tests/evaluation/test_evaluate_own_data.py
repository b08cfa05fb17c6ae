"""`hf-jepa evaluate` on what people have: class folders without splits, lists, names as labels, own classifiers."""

import json

import av
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import IJepaConfig, IJepaModel, ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from hf_jepa import VJepaConfig, VJepaForVideoClassification
from hf_jepa.cli import main
from hf_jepa.evaluation import evaluate_model

LEVELS = {"cat": 0, "dog": 90, "emu": 180}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZES |= {"image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos of three classes in a folder without splits, as parquet with names, and as a list; and an encoder."""
    folder, generator = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    paths, names = [], []
    for name, level in LEVELS.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = (generator.integers(0, 60, (20, 18, 3)) + level).astype(np.uint8)
            paths.append(f"photos/{name}/{number}.png")
            names.append(name)
            PILImage.fromarray(pixels).save(folder / paths[-1])
    features = Features({"image": Image(), "label": Value("string")})
    rows = Dataset.from_dict({"image": [str(folder / path) for path in paths], "label": names}, features=features)
    rows.to_parquet(str(folder / "names.parquet"))
    (folder / "list.csv").write_text("".join(f"{path} {name}\n" for path, name in zip(paths, names, strict=True)))
    torch.manual_seed(0)
    IJepaModel(IJepaConfig(**SIZES)).save_pretrained(folder / "encoder")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "encoder")
    return folder


def run(capsys, *command) -> tuple[int, str]:
    code = main(["evaluate", *map(str, command), "--device", "cpu", "--k", "3"])
    output = capsys.readouterr()
    return code, output.out + output.err


@pytest.mark.parametrize("name", ["photos", "names.parquet", "list.csv"])
def test_a_dataset_without_a_test_split(world, capsys, name):
    """It is refused with the ways out, and each way leads to a number that is not of rows that were learned."""
    encoder, data = world / "encoder", world / name
    code, said = run(capsys, encoder, "--dataset", data)
    assert code == 1
    assert "no split 'test', only 'train' (36 rows)" in said
    assert "--holdout 0.2" in said
    code, said = run(capsys, encoder, "--dataset", data, "--train-split", "train", "--test-split", "train")
    assert code == 1
    assert "share rows 0 to 35" in said
    code, said = run(capsys, encoder, "--dataset", data, "--train-split", "train[:24]", "--test-split", "train[24:]")
    assert code == 1
    assert "no row of train has" in said
    assert "'emu'" in said
    code, said = run(capsys, encoder, "--dataset", data, "--holdout", "0.25", "--output", world / "out.json")
    assert code == 0
    (entry,) = json.loads((world / "out.json").read_text())["evaluations"]
    assert (entry["split"], entry["num_examples"]) == ("25% of train, held out with seed 0", 9)
    assert entry["value"] > 0.8


def test_separate_datasets_with_other_classes_count_alike(world, tmp_path, capsys):
    """Test has two of three classes: numbered by itself, `emu` would be `dog`."""
    lines = [f"{world}/{line}" for line in (world / "list.csv").read_text().splitlines()]
    (tmp_path / "fit.csv").write_text("\n".join(line for n, line in enumerate(lines) if n % 3))
    (tmp_path / "score.csv").write_text(
        "\n".join(line for n, line in enumerate(lines) if n % 3 == 0 and "dog" not in line)
    )
    result = evaluate_model(
        world / "encoder", train_dataset=tmp_path / "fit.csv", test_dataset=tmp_path / "score.csv", k=3, progress=False
    )
    assert result["data"] == {"name": str(tmp_path / "score.csv"), "split": "all", "num_examples": 8}
    assert result["evaluations"][0]["value"] > 0.8


def test_noise_is_not_remembered(world, tmp_path):
    """k-NN with k=1 on rows that it has seen is always right."""
    generator = np.random.default_rng(1)
    for number in range(60):
        PILImage.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "noise.csv").write_text("".join(f"{number}.png,{number % 2}\n" for number in range(60)))
    result = evaluate_model(world / "encoder", tmp_path / "noise.csv", k=1, holdout=0.5, progress=False)
    assert 0.2 < result["evaluations"][0]["value"] < 0.8


def test_a_bad_flag_of_the_hold_out_is_named(world, capsys):
    code, said = run(
        capsys, world / "encoder", "--dataset", world / "photos", "--task", "exact-match", "--holdout", "0.2"
    )
    assert code == 1
    assert "--task exact-match fits nothing: leave out --holdout" in said


@pytest.fixture(scope="module")
def classifier(world):
    """Of images, right by construction: its classes are brightness, in another order than the folders'."""
    config = ViTConfig(**SIZES, id2label={0: "Emu", 1: "cat", 2: "dog"}, label2id={"Emu": 0, "cat": 1, "dog": 2})
    torch.manual_seed(0)
    model = ViTForImageClassification(config).eval()
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    inputs, targets = [], []
    for name in LEVELS:
        for number in range(12):
            photo = PILImage.open(world / "photos" / name / f"{number}.png")
            inputs.append(processor(photo, return_tensors="pt")["pixel_values"][0])
            targets.append({"Emu": 0, "cat": 1, "dog": 2}[name if name != "emu" else "Emu"])
    with torch.no_grad():
        states = model.vit(torch.stack(inputs)).last_hidden_state[:, 0]
        design = torch.cat([states, torch.ones(len(states), 1)], dim=1)
        solution = torch.linalg.lstsq(design, torch.nn.functional.one_hot(torch.tensor(targets)).float()).solution
        model.classifier.weight.copy_(solution[:-1].T)
        model.classifier.bias.copy_(solution[-1])
    model.save_pretrained(world / "classifier")
    processor.save_pretrained(world / "classifier")
    return world / "classifier"


def test_a_fine_tuned_classifier_of_images_is_scored_by_its_own_predictions(world, classifier, capsys):
    code, said = run(capsys, classifier, "--dataset", world / "photos", "--task", "classification")
    assert code == 0
    assert "classification  accuracy (own predictions): 1.0000" in said
    (world / "wolves.csv").write_text("photos/cat/0.png wolf\n")
    code, said = run(capsys, classifier, "--dataset", world / "wolves.csv", "--task", "classification")
    assert code == 1
    assert "classes that ViTForImageClassification does not know: 'wolf'" in said
    code, said = run(capsys, world / "encoder", "--dataset", world / "photos", "--task", "classification")
    assert code == 1
    assert "lacks weights of IJepaForImageClassification: classifier.bias, classifier.weight" in said


@pytest.mark.parametrize("protocol", [[], ["--segments", "2", "--views", "2"]])
def test_a_fine_tuned_classifier_of_videos(tmp_path, capsys, caplog, protocol):
    for name, level in LEVELS.items():
        (tmp_path / "clips" / "test" / name).mkdir(parents=True)
        for number in range(2):
            with av.open(str(tmp_path / "clips" / "test" / name / f"{number}.mp4"), "w") as container:
                stream = container.add_stream("mpeg4", rate=8)
                stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
                for _ in range(10):
                    pixels = np.full((32, 48, 3), level, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode())
    config = VJepaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, crop_size=32, frames_per_clip=4, num_labels=3,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, pooler_num_attention_heads=2,
    )  # fmt: skip
    model = VJepaForVideoClassification(config)
    with torch.no_grad():  # says "dog" to everything
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.5]))
    model.save_pretrained(tmp_path / "model")
    VJEPA2VideoProcessor(crop_size=32).save_pretrained(tmp_path / "model")
    command = ["--dataset", tmp_path / "clips", "--task", "classification", "--num-frames", "4", "--frame-step", "2"]
    with caplog.at_level("WARNING", logger="hf_jepa"):
        code, said = run(capsys, tmp_path / "model", *command, *protocol)
    assert code == 0
    assert "accuracy (own predictions): 0.3333" in said
    assert (
        "classes have no names; they are taken to be numbered as the dataset's: 0 is 'cat', 1 is 'dog'" in caplog.text
    )
