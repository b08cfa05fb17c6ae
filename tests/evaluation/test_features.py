import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    IJepaConfig,
    IJepaForImageClassification,
    IJepaModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.evaluation import evaluate_model, extract_features

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 1,
}


class Pictures(torch.utils.data.Dataset):
    def __init__(self, channels: int = 1, labelled: bool = True):
        generator = torch.Generator().manual_seed(0)
        self.pixel_values = torch.randn(10, channels, 16, 16, generator=generator)
        self.labelled = labelled

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        sample = {"pixel_values": self.pixel_values[index], "draw": index}
        return sample | {"label": index % 3} if self.labelled else sample


@torch.no_grad()
def states(model, pictures: Pictures):
    return model.eval()(pictures.pixel_values, output_hidden_states=True)


def test_ijepa_features_equal_the_forward_pass():
    model, pictures = IJepaModel(IJepaConfig(**SIZES)), Pictures()
    expected = states(model, pictures)
    tokens, labels = extract_features(model, pictures, batch_size=4, pool="none")
    torch.testing.assert_close(tokens, expected.last_hidden_state)
    assert tokens.shape == (10, 16, 16)
    assert labels.tolist() == [i % 3 for i in range(10)]
    pooled, _ = extract_features(model, pictures, batch_size=3)
    torch.testing.assert_close(pooled, expected.last_hidden_state.mean(dim=1))
    four, _ = extract_features(model, pictures, pool="last4")
    assert four.shape == (10, 64)
    torch.testing.assert_close(four[:, 48:], pooled)
    inner = torch.nn.functional.layer_norm(expected.hidden_states[2], (16,)).mean(dim=1)
    torch.testing.assert_close(four[:, 16:32], inner)


def test_head_models_use_their_backbone():
    model, pictures = IJepaForImageClassification(IJepaConfig(**SIZES)), Pictures(labelled=False)
    features, labels = extract_features(model, pictures)
    torch.testing.assert_close(features, states(model.ijepa, pictures).last_hidden_state.mean(dim=1))
    assert labels is None


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (ViTModel(ViTConfig(**SIZES)), 1),
        (Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3)), 4),
    ],
)
def test_special_tokens_are_left_out(model, prefix):
    pictures = Pictures()
    tokens, _ = extract_features(model, pictures, pool="none")
    torch.testing.assert_close(tokens, states(model, pictures).last_hidden_state[:, prefix:])
    assert tokens.shape[1] == 16
    assert extract_features(model, pictures, pool="last4")[0].shape == (10, 64)


def test_feature_maps_become_tokens():
    model = ResNetModel(ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1]))
    pictures = Pictures()
    tokens, _ = extract_features(model, pictures, pool="none")
    expected = states(model, pictures).last_hidden_state
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2))


def test_timm_wrapper():
    from transformers import TimmWrapperConfig, TimmWrapperModel

    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "depth": 4, "embed_dim": 24, "num_heads": 2}
    )
    model = TimmWrapperModel(config).eval()
    pictures = Pictures(3)
    pictures.pixel_values = torch.nn.functional.interpolate(pictures.pixel_values, 32)
    tokens, _ = extract_features(model, pictures, pool="none")
    with torch.no_grad():
        expected = model(pictures.pixel_values).last_hidden_state
    assert expected.shape[1] == 5
    torch.testing.assert_close(tokens, expected[:, 1:])
    assert extract_features(model, pictures, pool="last4")[0].shape == (10, 96)


def test_jepa_models_give_target_features():
    config = IJepaPreTrainingConfig(
        encoder_config=SIZES, predictor_hidden_size=8, predictor_num_hidden_layers=1, predictor_num_attention_heads=2
    )
    model, pictures = IJepaForPreTraining(config), Pictures()
    torch.nn.init.normal_(model.encoder.layernorm.bias)
    features, _ = extract_features(model, pictures)
    exported = model.export_encoder("target")
    torch.testing.assert_close(features, states(exported, pictures).last_hidden_state.mean(dim=1))
    four = extract_features(model, pictures, pool="last4")[0]
    torch.testing.assert_close(four, extract_features(exported, pictures, pool="last4")[0])


def test_pooled_is_the_models_own_vector():
    pictures = Pictures()
    vit = ViTModel(ViTConfig(**SIZES)).eval()
    pooled, _ = extract_features(vit, pictures, pool="pooled")
    torch.testing.assert_close(pooled, states(vit, pictures).last_hidden_state[:, 0], rtol=1e-4, atol=1e-6)
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    resnet = ResNetModel(config).eval()
    pooled, _ = extract_features(resnet, pictures, pool="pooled")
    torch.testing.assert_close(pooled, states(resnet, pictures).pooler_output.flatten(1), rtol=1e-4, atol=1e-6)


def test_mode_and_global_rng_are_left_alone():
    model = IJepaModel(IJepaConfig(**SIZES, hidden_dropout_prob=0.5)).train()
    state = torch.get_rng_state()
    first, _ = extract_features(model, Pictures())
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, extract_features(model, Pictures())[0])


def test_bf16_is_close_and_stored_in_float32():
    model = IJepaModel(IJepaConfig(**SIZES))
    full, _ = extract_features(model, Pictures())
    half, _ = extract_features(model, Pictures(), dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, rtol=0.1, atol=0.05)


def test_clear_errors(monkeypatch):
    model = IJepaModel(IJepaConfig(**SIZES | {"num_hidden_layers": 2}))
    with pytest.raises(ValueError, match="pool must be"):
        extract_features(model, Pictures(), pool="cls")
    with pytest.raises(ValueError, match="needs four layers"):
        extract_features(model, Pictures(), pool="last4")
    with pytest.raises(ValueError, match="known, non-zero length"):
        extract_features(model, iter([]))
    monkeypatch.setattr(Pictures, "__len__", lambda self: 10**12)
    with pytest.raises(ValueError, match="GiB are free"):
        extract_features(model, Pictures(), batch_size=2, pool="none")


@pytest.fixture
def bars(tmp_path):
    """Horizontal and vertical bars: any encoder of patches tells them apart."""
    features = Features({"image": Image(), "label": ClassLabel(names=["horizontal", "vertical"])})
    generator = np.random.default_rng(0)
    for split, count in (("train", 200), ("test", 40)):
        pictures = []
        for i in range(count):
            pixels = generator.integers(0, 60, (16, 16), dtype=np.uint8)
            pixels[8:10] = 220
            pictures.append(PILImage.fromarray(pixels if i % 2 == 0 else np.ascontiguousarray(pixels.T)))
        rows = Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(count)]}, features=features)
        rows.to_parquet(str(tmp_path / "data" / f"{split}.parquet"))
    return tmp_path / "data"


@pytest.fixture(params=["grey", "colour"])
def checkpoint(request, tmp_path):
    folder = tmp_path / "model"
    channels = 1 if request.param == "grey" else 3
    torch.manual_seed(0)
    model = IJepaModel(IJepaConfig(**SIZES | {"num_channels": channels}))
    torch.nn.init.normal_(model.embeddings.patch_embeddings.projection.weight, std=0.3)
    model.save_pretrained(folder)
    statistics = {"image_mean": [0.3] * channels, "image_std": [0.4] * channels}
    ViTImageProcessor(size={"height": 16, "width": 16}, **statistics).save_pretrained(folder)
    return folder


def test_evaluate_model_from_folder_to_entries(checkpoint, bars):
    for task, metrics in (
        ("knn", {"accuracy"}),
        ("linear", {"accuracy"}),
        ("ridge", {"accuracy"}),
        ("lowshot", {"accuracy_1%_labels", "accuracy_10%_labels"}),
    ):
        result = evaluate_model(checkpoint, bars, task, progress=False, command="x")
        assert result["model"]["model_type"] == "ijepa"
        assert {entry["metric"] for entry in result["evaluations"]} == metrics
        for entry in result["evaluations"]:
            assert 0.6 < entry["value"] <= 1
            assert entry["task"] == task
            assert (entry["split"], entry["num_examples"], entry["seed"]) == ("test", 40, 0)
    report = evaluate_model(checkpoint, bars, "collapse", max_test=30, progress=False)
    values = {entry["metric"]: entry["value"] for entry in report["evaluations"]}
    assert values["rankme"] > 1
    assert report["data"]["num_examples"] == 30
    assert all(isinstance(value, float) for value in values.values())


def test_evaluate_model_checks_data_before_the_model(bars, tmp_path):
    with pytest.raises(ValueError, match="label_column='category'"):
        evaluate_model(tmp_path / "no-model", bars, label_column="category")
    with pytest.raises(ValueError, match="There is no folder '.*no-model', and it is not the name of a repository"):
        evaluate_model(tmp_path / "no-model", bars)
    with pytest.raises(ValueError, match="task must be one of"):
        evaluate_model(tmp_path / "no-model", bars, "segmentation")


def test_a_checkpoint_with_missing_weights_is_refused(bars, tmp_path):
    model = IJepaModel(IJepaConfig(**SIZES))
    weights = {key: value for key, value in model.state_dict().items() if key != "layernorm.weight"}
    model.save_pretrained(tmp_path / "model", state_dict=weights)
    ViTImageProcessor().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"lacks weights of IJepaModel: layernorm\.weight"):
        evaluate_model(tmp_path / "model", bars)


def test_masked_autoencoder_sees_whole_images(bars, tmp_path):
    ViTMAEModel(ViTMAEConfig(**SIZES)).save_pretrained(tmp_path / "mae")
    statistics = {"image_mean": [0.3], "image_std": [0.4]}
    ViTImageProcessor(size={"height": 16, "width": 16}, **statistics).save_pretrained(tmp_path / "mae")
    first, second = (evaluate_model(tmp_path / "mae", bars, "collapse", progress=False) for _ in range(2))
    assert [entry["value"] for entry in first["evaluations"]] == [entry["value"] for entry in second["evaluations"]]
    with pytest.raises(ValueError, match="mask_ratio"):
        extract_features(ViTMAEModel(ViTMAEConfig(**SIZES)), Pictures())
    model = ViTMAEModel(ViTMAEConfig(**SIZES, mask_ratio=0.0))
    assert extract_features(model, Pictures(), pool="none")[0].shape == (10, 16, 16)
