"""Released at the size it was trained at: plain transformers gives the features that were trained, or nothing is."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoVideoProcessor,
    BeitConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Data2VecVisionConfig,
    Dinov2Config,
    IJepaConfig,
    ResNetConfig,
    SiglipVisionConfig,
    ViTConfig,
    VJEPA2Model,
)

from hf_jepa import (
    Data2VecVisionForPreTraining,
    IJepaForPreTraining,
    JepaTrainer,
    JepaTrainingArguments,
    LeJepaForPreTraining,
    LeJepaPreTrainingConfig,
    VJepa2ForPreTraining,
    VJepaConfig,
    VJepaForPreTraining,
    VJepaModel,
)
from hf_jepa.data import MaskCollator, MultiViewCollator, VideoMaskCollator
from hf_jepa.encoders import run_encoder
from hf_jepa.hub import load_pretraining, save_release
from hf_jepa.hub.release import note_trained_size
from hf_jepa.hub.sizes import check_releasable
from hf_jepa.masking import MultiBlock3DMaskGenerator, MultiBlockMaskGenerator

RESULTS = {"licence": "mit", "model": {"name": "tiny"}}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
CLIPS = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "pred_hidden_size": 12,
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 1,
    "crop_size": 16,
    "frames_per_clip": 4,
    "tubelet_size": 2,
    "patch_size": 4,
    "initializer_range": 0.5,
}


class Noise(Dataset):
    def __init__(self, name: str, *shape: int):
        self.name, self.shape = name, shape

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {self.name: torch.randn(self.shape, generator=torch.Generator().manual_seed(int(index)))}


def train(model, collator, data, folder, **trainer_options) -> JepaTrainer:
    args = JepaTrainingArguments(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=2, save_steps=1, use_cpu=True,
        disable_tqdm=True, report_to="none",
    )  # fmt: skip
    trainer = JepaTrainer(model=model, args=args, data_collator=collator, train_dataset=data, **trainer_options)
    trainer.train()
    return trainer


def continued_ijepa(tmp_path):
    torch.manual_seed(0)
    encoder = AutoModel.from_config(IJepaConfig(**SIZES, intermediate_size=16))
    encoder.save_pretrained(tmp_path / "encoder")
    options = {"predictor_hidden_size": 8, "predictor_num_hidden_layers": 1}
    return IJepaForPreTraining.from_encoder(str(tmp_path / "encoder"), **options)


def features(folder, pixels):
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(pixels).last_hidden_state


# 16x64 pixels are 4x16 patches, as many as 8x8.
@pytest.mark.parametrize("size", [(24, 24), (16, 24), (16, 64)])
def test_ijepa_continued_at_another_size(tmp_path, size):
    masks = MaskCollator(MultiBlockMaskGenerator(size, 4, mode="balanced", min_keep=2))
    trainer = train(continued_ijepa(tmp_path), masks, Noise("pixel_values", 3, *size), tmp_path / "run")
    model = trainer.model.eval()
    pixels = torch.randn(2, 3, *size)
    # A checkpoint knows the size too: `hf-jepa export` reads it there.
    for source in (model, load_pretraining(tmp_path / "run" / "checkpoint-1")):
        folder = save_release(source, tmp_path / "release", results=RESULTS)
        torch.testing.assert_close(features(folder, pixels), model.get_features(pixels), rtol=0, atol=1e-5)
        picture = np.zeros((50, 60, 3), dtype=np.uint8)
        made = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
        assert tuple(made.shape[-2:]) == size
        assert json.loads((folder / "config.json").read_text())["image_size"] in (size[0], list(size))
        with torch.no_grad():
            released = AutoModel.from_pretrained(folder).eval()
            interpolated = released(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(interpolated, model.get_features(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [24, (24, 32)])
@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(**SIZES, intermediate_size=16),
        Dinov2Config(**SIZES),
        BeitConfig(**SIZES, intermediate_size=16, use_relative_position_bias=True),
        IJepaConfig(**SIZES, intermediate_size=16),
        SiglipVisionConfig(**SIZES, intermediate_size=16),
        CLIPVisionConfig(**SIZES, intermediate_size=16),
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    ],
    ids=lambda config: getattr(config, "model_type", None),
)
def test_joint_embedding_models_over_encoders_of_another_size(tmp_path, config, size):
    options = {"projector_hidden_size": 8, "projection_size": 4, "embedding_size": 8}
    model = LeJepaForPreTraining.from_encoder(AutoModel.from_config(config), image_size=size, **options).eval()
    if not isinstance(size, int) and config.model_type in ("siglip_vision_model", "clip_vision_model"):
        with pytest.raises(ValueError, match=r"24x32 pixels.*config says 16x16"):
            note_trained_size(model, torch.zeros(2, 2, 3, *size))
        return
    folder = save_release(model, tmp_path / "release", results=RESULTS)
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    pixels = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    assert tuple(pixels.shape[-2:]) == ((size, size) if isinstance(size, int) else size)
    with torch.no_grad():
        trained = run_encoder(model.encoder, pixels).last_hidden_state
    torch.testing.assert_close(features(folder, pixels), trained, rtol=0, atol=1e-5)


def test_the_size_of_the_global_views_counts(tmp_path):
    model = LeJepaForPreTraining.from_encoder(
        AutoModel.from_config(ViTConfig(**SIZES, intermediate_size=16)), projector_hidden_size=8, projection_size=4
    )
    trainer = train(model, MultiViewCollator(), Noise("pixel_values", 2, 3, 24, 24), tmp_path / "run")
    folder = save_release(trainer.model, tmp_path / "release", results=RESULTS)
    assert AutoModel.from_pretrained(folder).config.image_size == 24
    assert "| 24 |" in (folder / "README.md").read_text()


def test_what_no_release_can_express_is_refused_before_the_first_step(tmp_path):
    encoder = AutoModel.from_config(SiglipVisionConfig(**SIZES, intermediate_size=16))
    model = LeJepaForPreTraining.from_encoder(encoder, projector_hidden_size=8, projection_size=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="24x32 pixels"):
        train(model, MultiViewCollator(), Noise("pixel_values", 2, 3, 24, 32), tmp_path / "run")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "trained_size")


def test_data2vec_at_another_size(tmp_path):
    encoder = AutoModel.from_config(Data2VecVisionConfig(**SIZES, intermediate_size=16))
    model = Data2VecVisionForPreTraining.from_encoder(encoder, target_layers=[1]).eval()
    note_trained_size(model, torch.zeros(2, 3, 24, 24))
    folder = save_release(model, tmp_path / "release", results=RESULTS)
    pixels = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        trained = model.target_encoder(pixels).last_hidden_state
    torch.testing.assert_close(features(folder, pixels), trained, rtol=0, atol=1e-5)


def video_collator(size) -> VideoMaskCollator:
    generator = MultiBlock3DMaskGenerator(
        size, 4, num_frames=2, tubelet_size=2, mode="balanced", num_blocks=2, spatial_scale=(0.3, 0.3),
        temporal_scale=(1.0, 1.0),
    )  # fmt: skip
    return VideoMaskCollator([generator])


def test_vjepa2_continued_at_another_size(tmp_path):
    donor = VJepaModel(VJepaConfig(**CLIPS)).export_in_tree()
    model = VJepa2ForPreTraining.from_encoder(donor)
    data = Noise("pixel_values_videos", 2, 3, 24, 24)
    trainer = train(model, video_collator((24, 24)), data, tmp_path / "run")
    folder = save_release(trainer.model, tmp_path / "release", results=RESULTS)
    plain = AutoModel.from_pretrained(folder).eval()
    assert isinstance(plain, VJEPA2Model)
    frames = torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8)
    clips = AutoVideoProcessor.from_pretrained(folder)(frames, return_tensors="pt")["pixel_values_videos"]
    assert tuple(clips.shape) == (1, 2, 3, 24, 24)
    with torch.no_grad():
        got = plain(clips, skip_predictor=True).last_hidden_state
    torch.testing.assert_close(got, trainer.model.get_features(clips), rtol=0, atol=1e-5)
    assert "| 24 | 2 |" in (folder / "README.md").read_text()


def test_clips_that_are_not_square(tmp_path):
    model = VJepa2ForPreTraining.from_encoder(VJepaModel(VJepaConfig(**CLIPS)).export_in_tree())
    data = Noise("pixel_values_videos", 2, 3, 16, 24)
    with pytest.raises(ValueError, match=r"16x24 pixels are not square.*`hf_jepa\.VJepaModel`"):
        train(model, video_collator((16, 24)), data, tmp_path / "run")
    model = VJepa2ForPreTraining.from_encoder(VJepaModel(VJepaConfig(**CLIPS)))
    trainer = train(model, video_collator((16, 24)), data, tmp_path / "run2")
    folder = save_release(trainer.model, tmp_path / "release", results=RESULTS)
    plain = AutoModel.from_pretrained(folder).eval()
    assert isinstance(plain, VJepaModel)
    frames = torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8)
    clips = AutoVideoProcessor.from_pretrained(folder)(frames, return_tensors="pt")["pixel_values_videos"]
    assert tuple(clips.shape) == (1, 2, 3, 16, 24)
    with torch.no_grad():
        got = plain(clips).last_hidden_state
    torch.testing.assert_close(got, trainer.model.get_features(clips), rtol=0, atol=1e-5)


def test_vjepa_1_takes_positions_from_the_clip(tmp_path):
    config = VJepaConfig(**CLIPS, position_embedding_type="sincos")
    model = VJepaForPreTraining.from_encoder(VJepaModel(config)).eval()
    clips = torch.randn(1, 2, 3, 24, 16)
    note_trained_size(model, clips)
    folder = save_release(model, tmp_path / "release", results=RESULTS)
    got = AutoModel.from_pretrained(folder).eval()(clips).last_hidden_state
    torch.testing.assert_close(got, model.get_features(clips), rtol=0, atol=1e-5)


def test_a_processor_of_another_size_is_made_one_of_the_size_trained_at(tmp_path):
    masks = MaskCollator(MultiBlockMaskGenerator(24, 4, mode="balanced", min_keep=2))
    model = continued_ijepa(tmp_path)
    processor = AutoImageProcessor.from_pretrained(save_release(model, tmp_path / "first", results=RESULTS))
    processor.image_mean, processor.image_std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    trainer = train(model, masks, Noise("pixel_values", 3, 24, 24), tmp_path / "run", processing_class=processor)
    folder = save_release(trainer.model, tmp_path / "release", results=RESULTS, processor=trainer.processing_class)
    released = AutoImageProcessor.from_pretrained(folder)
    assert released.crop_size.height == 24
    assert list(released.image_mean) == [0.1, 0.2, 0.3]
    assert list(released.image_std) == [0.4, 0.5, 0.6]


def test_encoders_of_stages_are_releasable_at_any_size():
    encoder = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    config = LeJepaPreTrainingConfig(encoder_config=encoder, image_size=64, projector_hidden_size=8)
    check_releasable(LeJepaForPreTraining(config), (64, 96))
