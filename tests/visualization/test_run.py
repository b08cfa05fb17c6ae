"""`visualize` draws what any encoder that can be trained makes of a picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTImageProcessor,
)

from hf_jepa import LeJepaForPreTraining, LeJepaPreTrainingConfig
from hf_jepa.hub.processors import image_processor
from hf_jepa.token_layouts import token_grid
from hf_jepa.visualization import run

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def encoders():
    """Small encoders of every kind: with and without CLS, registers, of tokens and of maps, in-tree and timm."""
    vit = ViTConfig(**SIZES, image_size=32, patch_size=8)
    small = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    return {
        "joint embedding": lambda: LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=vit, image_size=32)),
        "registers": lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
            )
        ),
        "resnet": lambda: ResNetModel(ResNetConfig(**small, layer_type="basic")),
        "convnext": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])),
        "timm vit": lambda: TimmWrapperModel(
            TimmWrapperConfig(
                architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "patch_size": 8, "depth": 1}
            )
        ),
        "timm resnet": lambda: TimmWrapperModel(TimmWrapperConfig(architecture="resnet10t")),
    }


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (80, 96, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo with alpha.png")
    return tmp_path / "photo with alpha.png"


@pytest.mark.parametrize("name", sorted(encoders()))
def test_feature_maps_of_every_kind_of_encoder(name, photo, tmp_path):
    torch.manual_seed(0)
    model = encoders()[name]().eval()
    side = 32 if "vit" in name or name in ("registers", "joint embedding") else 96
    model.save_pretrained(tmp_path / "model")
    image_processor(side).save_pretrained(tmp_path / "model")
    path = run.visualize(str(tmp_path / "model"), [photo, photo], output=tmp_path / "pca.png")
    assert np.asarray(Image.open(path)).std() > 5


def test_what_has_no_masks_or_no_map_says_so(photo, tmp_path):
    model = encoders()["joint embedding"]()
    model.save_pretrained(tmp_path / "model")
    image_processor(32).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="for models that predict masked patches, not for LeJepaForPreTraining"):
        run.visualize(str(tmp_path / "model"), [photo], "masks", output=tmp_path / "x.png")
    encoders()["resnet"]().save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match="ResNetModel makes 1 tokens of 32x32 pixels"):
        run.visualize(str(tmp_path / "resnet"), [photo], output=tmp_path / "x.png")


def test_grids_of_images_that_are_not_square():
    assert token_grid(24, 32, 48, "x") == (4, 6)
    assert token_grid(24, 48, 32, "x") == (6, 4)
    with pytest.raises(ValueError, match="do not tile"):
        token_grid(23, 32, 48, "x")
