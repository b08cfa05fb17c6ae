"""The MAE baseline of the image pretraining program."""

import importlib
import json

import numpy as np
import pytest
import torch
import transformers
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoModel, AutoModelForPreTraining, ViTMAEConfig, ViTModel

from hf_jepa.evaluation import pooled_features
from hf_jepa.hub.release import load_pretraining
from hf_jepa.programs.recipes import parse_recipe


@pytest.fixture
def mae():
    return importlib.import_module("hf_jepa.programs.mae_baseline")


@pytest.fixture
def program():
    return importlib.import_module("hf_jepa.programs.pretrain_image")


@pytest.fixture
def model(mae):
    config = ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_channels=1,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        layer_norm_eps=1e-6,
    )
    return mae.ViTMAEForPreTraining(config).eval()


@pytest.fixture
def recipe(tmp_path) -> list[str]:
    features = Features({"image": Image(), "label": Value("int64")})
    (tmp_path / "images").mkdir()
    for seed, split in enumerate(("train", "validation")):
        noise = np.random.default_rng(seed).integers(0, 256, (24, 16, 16), dtype=np.uint8)
        rows = {"image": [PILImage.fromarray(pixels) for pixels in noise], "label": [index % 3 for index in range(24)]}
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "images" / f"{split}.parquet"))
    content = {
        "family": "vit_mae",
        "image_size": 16,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "predictor_hidden_size": 8,
        "predictor_num_hidden_layers": 1,
        "predictor_num_attention_heads": 2,
        "method": "{mask_ratio: 0.5, norm_pix_loss: true}",
        "dataset": str(tmp_path / "images"),
        "probe_split": "validation",
        "image_mean": [0.5],
        "image_std": [0.5],
        "output_dir": str(tmp_path / "run"),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return [str(tmp_path / "recipe.yaml")]


def test_the_loss_is_the_in_tree_models(model, tmp_path):
    model.save_pretrained(tmp_path)
    plain = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path).eval()
    pixels, noise = torch.randn(3, 1, 16, 16), torch.rand(3, 16)
    output = model(pixels, noise)
    assert torch.equal(output.loss, plain(pixels, noise=noise).loss)
    assert output.loss_components["reconstruction_loss"] == output.loss
    assert output.loss != model(pixels, noise.flip(1)).loss


def test_masked_places_are_told_apart(model):
    # In-tree tables are zero until a checkpoint is loaded.
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert not table.requires_grad
        assert torch.equal(table[0, 0], torch.zeros_like(table[0, 0]))
        distances = torch.cdist(table[0], table[0]) + 10 * torch.eye(17)
        assert distances.min() > 0.1
    assert model.decoder.mask_token.abs().max() > 0


def test_features_and_export_are_of_whole_images_in_order(model):
    pixels = torch.randn(3, 1, 16, 16)
    encoder = model.export_encoder()
    assert type(encoder) is ViTModel
    tokens = model.get_features(pixels)
    assert tokens.shape == (3, 16, 16)
    torch.testing.assert_close(encoder(pixels).last_hidden_state[:, 1:], tokens)
    # Against the in-tree encoder itself, told to keep every patch, in order.
    model.config.mask_ratio = 0.0
    expected = model.vit(pixels, noise=torch.arange(16.0).expand(3, -1)).last_hidden_state[:, 1:]
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(pooled_features(model, pixels), expected.mean(dim=1))


def test_noise_follows_seed_and_draw_alone(mae):
    def noise(draws: list[int], seed: int = 0) -> torch.Tensor:
        samples = [{"pixel_values": torch.zeros(1, 16, 16), "draw": draw} for draw in draws]
        return mae.NoiseCollator(16, seed)(samples)["noise"]

    assert torch.equal(noise([5, 6, 7])[1:], noise([6, 7]))
    assert not torch.equal(noise([5]), noise([6]))
    assert not torch.equal(noise([5]), noise([5], seed=1))
    assert 0 <= noise([5]).min() < noise([5]).max() < 1


def test_a_recipe_becomes_a_release(program, recipe, tmp_path):
    program.main([*recipe, "--save_strategy", "no"])
    release = tmp_path / "run" / "release"
    encoder = AutoModel.from_pretrained(release)
    assert type(encoder) is ViTModel
    composite = AutoModelForPreTraining.from_pretrained(release / "pretraining")
    assert type(composite) is transformers.ViTMAEForPreTraining
    assert composite.config.mask_ratio == 0.5
    assert composite.config.decoder_intermediate_size == 32
    load_pretraining(release / "pretraining")
    pixels = torch.randn(2, 1, 16, 16)
    composite.config.mask_ratio = 0.0
    expected = composite.vit(pixels, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    torch.testing.assert_close(encoder(pixels).last_hidden_state, expected)
    results = json.loads((release / "results.json").read_text())
    assert {entry["task"] for entry in results["evaluations"]} == {"knn", "ridge"}
    card = (release / "README.md").read_text()
    assert "not a JEPA" in card
    assert "target encoder" not in card
    assert (release / "feature_pca.png").is_file()


def test_training_resumes_bit_for_bit(program, recipe, tmp_path):
    types = (program.ModelArguments, program.DataArguments, program.MaskArguments, program.JepaTrainingArguments)
    whole = program.build_trainer(*parse_recipe(types, [*recipe, "--save_strategy", "steps"]))
    whole.train()
    resumed = program.build_trainer(*parse_recipe(types, [*recipe, "--save_strategy", "no"]))
    with torch.no_grad():
        resumed.model.decoder.mask_token.add_(1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.model.state_dict().items())
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    assert len({entry["loss"] for entry in logs}) == 4
    assert not any("ema_momentum" in entry for entry in logs)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "{mask_ration: 0.5}"], "mask_ration"),
        (["--size", "tiny"], "from scratch"),
        (["--from_encoder", "somewhere", "--licence", "mit"], "from scratch"),
    ],
)
def test_bad_recipes_are_named(program, recipe, flags, message):
    with pytest.raises(ValueError, match=message):
        program.main([*recipe, *flags])
