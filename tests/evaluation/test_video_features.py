import pytest
import torch
from transformers import (
    IJepaConfig,
    IJepaModel,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEModel,
    VivitConfig,
    VivitModel,
)

from hf_jepa import (
    VJepaConfig,
    VJepaForPreTraining,
    VJepaForVideoClassification,
    VJepaModel,
    VJepaPreTrainingConfig,
)
from hf_jepa.evaluation import extract_features, pooled_features

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SIZES, "intermediate_size": 64, "image_size": 32, "patch_size": 16}
VJEPA = {
    **SIZES,
    "crop_size": 32,
    "frames_per_clip": 4,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}


class Clips(torch.utils.data.Dataset):
    def __init__(self, *shape: int):
        self.pixels = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values_videos": self.pixels[index], "draw": index, "label": index % 2}


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (VideoMAEModel(VideoMAEConfig(**VIT, num_frames=4)), 0),
        (TimesformerModel(TimesformerConfig(**VIT, num_frames=4)), 1),
        (VivitModel(VivitConfig(**SIZES, intermediate_size=64, image_size=32, num_frames=4)), 1),
    ],
    ids=lambda value: type(value).__name__,
)
@torch.no_grad()
def test_video_encoders_of_transformers(model, prefix):
    model.eval()
    clips = torch.randn(2, 4, 3, 32, 32)
    expected = model(clips).last_hidden_state[:, prefix:]
    torch.testing.assert_close(pooled_features(model, clips, "none"), expected)
    torch.testing.assert_close(pooled_features(model, clips), expected.mean(dim=1))
    still = clips[:, :1].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(pooled_features(model, clips[:, 0], "none"), pooled_features(model, still, "none"))


@torch.no_grad()
def test_our_video_models_and_in_tree_v_jepa_2():
    clips = torch.randn(2, 4, 3, 32, 32)
    encoder = VJepaModel(VJepaConfig(**VJEPA)).eval()
    expected = encoder.encoder([clips])[0]
    torch.testing.assert_close(pooled_features(encoder, clips, "none"), expected)
    in_tree = encoder.export_in_tree()
    torch.testing.assert_close(pooled_features(in_tree, clips, "none"), expected)
    with pytest.raises(ValueError, match=r"crop_size=32 .* 48x32 pixels wrong: load the folder with hf_jepa\.VJepa"):
        pooled_features(in_tree, torch.zeros(1, 4, 3, 48, 32))
    assert pooled_features(encoder, torch.zeros(1, 4, 3, 48, 32), "none").shape == (1, 12, 32)
    classifier = VJepaForVideoClassification(VJepaConfig(**VJEPA, num_pooler_layers=0)).eval()
    classifier.vjepa2.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(pooled_features(classifier, clips, "none"), expected)
    pretraining = VJepaForPreTraining(VJepaPreTrainingConfig(encoder_config=VJepaConfig(**VJEPA))).eval()
    pretraining.target_encoder.load_state_dict(encoder.encoder.state_dict())
    torch.testing.assert_close(pooled_features(pretraining, clips, "none"), expected)
    # An image is a still clip.
    still = encoder.encoder([clips[:, :1]])[0]
    torch.testing.assert_close(pooled_features(encoder, clips[:, 0], "none"), still)


@torch.no_grad()
def test_image_encoders_see_frames_one_by_one():
    model = IJepaModel(IJepaConfig(**VIT)).eval()
    clips = torch.randn(2, 3, 3, 32, 32)
    frames = [model(clips[:, frame]).last_hidden_state for frame in range(3)]
    torch.testing.assert_close(pooled_features(model, clips, "none"), torch.cat(frames, dim=1))


def test_segments_stand_in_one_row_and_views_apart():
    model = VJepaModel(VJepaConfig(**VJEPA)).eval()
    dataset = Clips(3, 2, 4, 3, 32, 32)
    tokens, labels = extract_features(model, dataset, batch_size=2, pool="none")
    assert tokens.shape == (5, 2, 3 * 8, 32)
    assert labels.tolist() == [0, 1, 0, 1, 0]
    with torch.no_grad():
        part = model.get_vision_features(dataset.pixels[3, 2, 1][None])[0]
    torch.testing.assert_close(tokens[3, 1, 16:], part)
    pooled, _ = extract_features(model, dataset, batch_size=2)
    torch.testing.assert_close(pooled, tokens.mean(dim=(1, 2)))
    single, _ = extract_features(model, Clips(4, 3, 32, 32), pool="none")
    assert single.shape == (5, 8, 32)


def test_bad_input_is_named():
    model = VJepaModel(VJepaConfig(**VJEPA)).eval()
    with pytest.raises(ValueError, match='Of clips there are features pool="mean" and "none", got \'last4\''):
        pooled_features(model, torch.zeros(1, 4, 3, 32, 32), "last4")
    with pytest.raises(ValueError, match=r"\(batch, segments, views, frames, \.\.\.\), got \(3, 32, 32\)"):
        pooled_features(model, torch.zeros(3, 32, 32))
