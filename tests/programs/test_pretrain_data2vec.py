"""The image pretraining program with `family: data2vec_vision`."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoModel, AutoModelForPreTraining, Data2VecVisionModel

from hf_jepa.programs.recipes import parse_recipe


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("hf_jepa.programs.pretrain_image")


@pytest.fixture
def content(tmp_path) -> dict:
    (tmp_path / "images").mkdir()
    for seed, split in enumerate(("train", "validation")):
        noise = np.random.default_rng(seed).integers(0, 256, (24, 16, 16), dtype=np.uint8)
        rows = {"image": [PILImage.fromarray(pixels) for pixels in noise], "label": [index % 3 for index in range(24)]}
        dataset = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("int64")}))
        dataset.to_parquet(str(tmp_path / "images" / f"{split}.parquet"))
    return {
        "model": {
            "family": "data2vec_vision",
            "image_size": 16,
            "patch_size": 4,
            "num_channels": 1,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_args": "{layer_scale_init_value: 0.5, drop_path_rate: 0.0}",
            "method": "{target_layers: 1, smooth_l1_beta: 1.0}",
        },
        "data": {
            "dataset": str(tmp_path / "images"),
            "probe_split": "validation",
            "image_mean": [0.5],
            "image_std": [0.5],
            "color_jitter_probability": 1.0,
        },
        "masks": {"min_block": 2, "num_masked": 9},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }


def write(content: dict, folder: Path) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "recipe.yaml")


def test_a_run_ends_in_a_release(program, content, tmp_path):
    program.main([write(content, tmp_path)])
    release = tmp_path / "run" / "release"
    assert type(AutoModel.from_pretrained(release)) is Data2VecVisionModel
    config = AutoModelForPreTraining.from_pretrained(release / "pretraining").config
    assert config.target_layers == [1]
    assert config.smooth_l1_beta == 1.0
    assert config.encoder_config.layer_scale_init_value == 0.5
    assert config.encoder_config.layer_norm_eps == 1e-6
    results = json.loads((release / "results.json").read_text())
    assert [entry["task"] for entry in results["evaluations"]] == ["knn", "ridge"]
    for picture in ("curves", "masks", "feature_pca", "prediction_similarity"):
        with PILImage.open(release / f"{picture}.png") as image:
            assert np.asarray(image.convert("RGB")).std() > 1
    # And on from there.
    content["model"] |= {"from_encoder": str(release), "image_size": 16}
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "encoder_args"):
        del content["model"][name]
    arguments = parse_recipe((program.ModelArguments,), [write({"model": content["model"]}, tmp_path)])
    assert program.build_model(arguments[0]).config.encoder_config.hidden_size == 16


def test_the_collator_masks_as_asked_in_either_mode(program, content, tmp_path):
    for mode in ("balanced", "reference"):
        content["masks"]["mask_mode"] = mode
        parts = (program.ModelArguments, program.DataArguments, program.MaskArguments, program.JepaTrainingArguments)
        trainer = program.build_trainer(*parse_recipe(parts, [write(content, tmp_path)]))
        batch = next(iter(trainer.get_train_dataloader()))
        assert set(batch) == {"pixel_values", "target_mask"}
        assert batch["pixel_values"].shape == (8, 1, 16, 16)
        assert trainer.data_collator.mask_generator.mode == mode
        assert batch["target_mask"][0].shape[1] == 9 if mode == "balanced" else batch["target_mask"][0].shape[1] <= 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "Own sizes need"),
        ({"size": "base"}, "Give one of `size`"),
        ({"num_attention_heads": None}, "Own sizes need"),
        ({"encoder_args": "{layer_skale: 1}"}, "layer_skale"),
        ({"method": "{target_layer: 1}"}, "target_layer"),
    ],
)
def test_recipes_that_make_no_sense(program, content, tmp_path, change, message):
    content["model"] = {name: value for name, value in (content["model"] | change).items() if value is not None}
    arguments = parse_recipe((program.ModelArguments,), [write({"model": content["model"]}, tmp_path)])
    with pytest.raises(ValueError, match=message):
        program.build_model(arguments[0])
