"""The processors of releases: the aspect stays, and there are as many statistics as channels."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor, AutoModel, AutoVideoProcessor, IJepaConfig, TimmWrapperConfig

from hf_jepa import (
    IJepaForPreTraining,
    IJepaPreTrainingConfig,
    LeJepaForPreTraining,
    LeJepaPreTrainingConfig,
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VJepaConfig,
)
from hf_jepa.hub import save_release
from hf_jepa.hub.processors import default_video_processor, image_processor

RESULTS = {"licence": "mit", "model": {"name": "tiny"}}


def ijepa(channels: int) -> IJepaForPreTraining:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = IJepaConfig(**sizes, image_size=16, patch_size=4, num_channels=channels)
    options = {"predictor_hidden_size": 8, "predictor_num_hidden_layers": 1}
    return IJepaForPreTraining(IJepaPreTrainingConfig(encoder_config=encoder, **options)).eval()


def lejepa(channels: int) -> LeJepaForPreTraining:
    encoder = TimmWrapperConfig(architecture="resnet18", model_args={"in_chans": channels})
    options = {"image_size": 32, "projector_hidden_size": 8, "projection_size": 4}
    return LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=encoder, **options)).eval()


def vjepa2(channels: int) -> VJepa2ForPreTraining:
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 1, "pred_hidden_size": 12}
    sizes |= {"pred_num_hidden_layers": 1, "pred_num_attention_heads": 1, "patch_size": 4}
    encoder = VJepaConfig(**sizes, in_chans=channels, crop_size=16, frames_per_clip=4, tubelet_size=1)
    return VJepa2ForPreTraining(VJepa2PreTrainingConfig(encoder_config=encoder)).eval()


@pytest.fixture
def disc() -> Image.Image:
    """A round thing in the middle of a wide picture."""
    picture = Image.new("RGB", (96, 48))
    ImageDraw.Draw(picture).ellipse((36, 12, 59, 35), fill=(255, 255, 255))
    return picture


def test_square_sizes_keep_the_aspect(disc, tmp_path):
    image_processor(24, 3, [0, 0, 0], [1, 1, 1]).save_pretrained(tmp_path)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(disc, return_tensors="pt")["pixel_values"][0, 0] > 0.5
    assert tuple(pixels.shape) == (24, 24)
    assert pixels.any(dim=0).sum() == pixels.any(dim=1).sum() == 12


def test_other_sizes_are_filled_with_the_whole_picture(disc):
    processor = image_processor((24, 48), 3, [0, 0, 0], [1, 1, 1])
    pixels = processor(disc, return_tensors="pt")["pixel_values"][0, 0] > 0.5
    assert tuple(pixels.shape) == (24, 48)
    assert pixels.any(dim=0).sum() == pixels.any(dim=1).sum() == 12


def test_frames_that_are_not_square(tmp_path):
    default_video_processor((16, 24)).save_pretrained(tmp_path)
    frames = torch.full((4, 3, 32, 48), 255, dtype=torch.uint8)
    clips = AutoVideoProcessor.from_pretrained(tmp_path)(frames, return_tensors="pt")["pixel_values_videos"]
    assert tuple(clips.shape) == (1, 4, 3, 16, 24)
    torch.testing.assert_close(clips[0, 0, :, 3, 3], torch.tensor([2.2489, 2.4286, 2.64]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGB"])
def test_pictures_of_every_mode_become_colours(mode):
    picture = Image.new("RGB", (20, 20), (10, 10, 10)).convert(mode)
    assert image_processor(16)(picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("channels", [1, 12])
@pytest.mark.parametrize("build", [ijepa, lejepa, vjepa2])
def test_releases_of_other_channels_can_be_used(build, channels, tmp_path):
    model = build(channels)
    folder = save_release(model, tmp_path / "release", results=RESULTS)
    plain = AutoModel.from_pretrained(folder).eval()
    bands = np.random.default_rng(0).integers(0, 256, (channels, 40, 40), dtype=np.uint8)
    if build is vjepa2:
        processor = AutoVideoProcessor.from_pretrained(folder)
        batch = processor(torch.from_numpy(np.stack([bands] * 4)), return_tensors="pt")
        assert batch["pixel_values_videos"].shape == (1, 4, channels, 16, 16)
    else:
        processor = AutoImageProcessor.from_pretrained(folder)
        batch = processor(bands, return_tensors="pt")
        assert batch["pixel_values"].shape[:2] == (1, channels)
    assert len(processor.image_mean) == len(processor.image_std) == channels
    with torch.no_grad():
        assert plain(**batch).last_hidden_state.isfinite().all()
    card = (folder / "README.md").read_text()
    name = {1: "grey", 12: "12 channels"}[channels]
    assert name in card
    assert ('convert("L")' in card) == (channels == 1 and build is not vjepa2)


def test_statistics_of_other_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`image_mean` has 3 values, but the model takes 1 channels"):
        image_processor(16, 1, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"statistics of 3 channels, the model takes 12"):
        save_release(ijepa(12), tmp_path / "release", results=RESULTS, processor=image_processor(16))
    assert not (tmp_path / "release").exists()
