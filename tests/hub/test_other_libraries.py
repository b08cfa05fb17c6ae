"""Releases in the hands of other libraries: pipelines of transformers, and sentence-transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageClassification, IJepaConfig, TimmWrapperConfig, ViTConfig, pipeline

from hf_jepa import (
    IJepaForPreTraining,
    IJepaPreTrainingConfig,
    LeJepaForPreTraining,
    LeJepaPreTrainingConfig,
    VJepaConfig,
    VJepaForVideoClassification,
)
from hf_jepa.hub import save_release
from hf_jepa.hub.release import save_video_classifier

RESULTS = {"licence": "mit", "model": {"name": "x"}}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SIZES |= {"image_size": 16, "patch_size": 4}


def build(kind: str):
    if kind == "ijepa":
        options = {"predictor_hidden_size": 8, "predictor_num_hidden_layers": 1}
        return IJepaForPreTraining(IJepaPreTrainingConfig(encoder_config=IJepaConfig(**SIZES), **options)).eval()
    encoder = ViTConfig(**SIZES) if kind == "vit" else TimmWrapperConfig(architecture="resnet18")
    options = {"projector_hidden_size": 8, "projection_size": 4, "image_size": 16 if kind == "vit" else 32}
    return LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=encoder, **options)).eval()


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["ijepa", "vit", "timm"])
def test_image_feature_extraction(kind, picture, tmp_path):
    model = build(kind)
    run = pipeline("image-feature-extraction", model=str(save_release(model, tmp_path / "release", results=RESULTS)))
    found = torch.tensor(run(picture))
    pixels = run.image_processor(picture, return_tensors="pt")["pixel_values"]
    expected = model.get_features(pixels)
    if kind == "timm":
        found = found.flatten(2).transpose(1, 2)
    torch.testing.assert_close(found[:, -expected.shape[1] :], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["ijepa", "vit", "timm"])
def test_image_classification_of_a_fine_tuned_release(kind, picture, tmp_path):
    folder = save_release(build(kind), tmp_path / "release", results=RESULTS)
    names = {0: "cat", 1: "dog", 2: "bird"}
    tuned = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, id2label=names)
    tuned.save_pretrained(tmp_path / "tuned")
    run = pipeline("image-classification", model=str(tmp_path / "tuned"), image_processor=str(folder))
    found = {entry["label"] for entry in run(picture)}
    assert found == ({*names.values()} if kind != "timm" else {f"LABEL_{index}" for index in names})


def test_video_classification(tmp_path):
    config = VJepaConfig(
        patch_size=4, crop_size=16, frames_per_clip=4, hidden_size=36, num_hidden_layers=1, num_attention_heads=3,
        pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2, num_pooler_layers=1,
        pooler_num_attention_heads=3, id2label={0: "run", 1: "jump", 2: "sit"},
        label2id={"run": 0, "jump": 1, "sit": 2},
    )  # fmt: skip
    model = VJepaForVideoClassification(config).eval()
    folder = save_video_classifier(model, tmp_path / "release", results=RESULTS)
    run = pipeline("video-classification", model=str(folder))
    frames = torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8)
    scores = {entry["label"]: entry["score"] for entry in run(frames, top_k=3)}
    with torch.no_grad():
        expected = model(run.video_processor(frames, return_tensors="pt")["pixel_values_videos"]).logits.softmax(-1)[0]
    assert [scores[name] for name in ("run", "jump", "sit")] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["ijepa", "vit"])
def test_sentence_transformers_encode_images(kind, picture, tmp_path):
    model = build(kind)
    folder = save_release(model, tmp_path / "release", results=RESULTS)
    encoder = SentenceTransformer(str(folder), device="cpu")
    found = torch.tensor(encoder.encode([picture, picture.rotate(90)]))
    pixels = encoder[0].processor(images=picture, return_tensors="pt")["pixel_values"]
    expected = model.get_pooled_features(pixels) if kind == "vit" else model.get_features(pixels).mean(dim=1)
    torch.testing.assert_close(found[:1], expected, rtol=1e-4, atol=1e-5)
