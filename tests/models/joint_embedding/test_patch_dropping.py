"""`patch_drop_rate` of timm's ViTs: patches are dropped in training alone, and never from features."""

import pytest
import torch
from transformers import AutoModel, TimmWrapperConfig, ViTConfig

from hf_jepa import LeJepaForPreTraining, LeJepaPreTrainingConfig

from .conftest import ENCODERS, HEADS

# Prefix tokens, and how the encoder stands for an image.
LAYOUTS = [
    (1, {}, "cls"),
    (1, {}, "mean"),
    (1, {}, "pooler"),
    (3, {"reg_tokens": 2}, "mean"),
    (0, {"class_token": False, "global_pool": "avg"}, "pooler"),
]


def build(pooling: str = "auto", **options) -> LeJepaForPreTraining:
    config = ENCODERS["timm_vit"]()
    config.model_args |= {"patch_drop_rate": 0.3, **options}
    return LeJepaForPreTraining(
        LeJepaPreTrainingConfig(encoder_config=config, image_size=32, pooling=pooling, **HEADS["LeJepa"])
    )


@pytest.mark.parametrize(("prefix", "options", "pooling"), LAYOUTS)
def test_patches_are_dropped_in_training_alone(prefix, options, pooling, views, local_views, tmp_path):
    model = build(pooling, **options).train()
    tokens = []
    model.encoder.timm_model.blocks[0].register_forward_hook(lambda *call: tokens.append(call[2].shape[1]))
    output = model(views, local_views)
    output.loss.backward()
    # 70% of 16 and of 4 patches, rounded down.
    assert tokens == [prefix + 11, prefix + 2]
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not torch.equal(model(views).projections, model(views).projections)

    # Features are of whole images, in order, in a run too: its collapse guard compares positions.
    images = views[:, 0]
    features, pooled = model.get_features(images), model.get_pooled_features(images)
    assert model.encoder.timm_model.patch_drop.training
    model.eval()
    torch.testing.assert_close(features, model.get_features(images))
    torch.testing.assert_close(pooled, model.get_pooled_features(images))
    assert features.shape == (4, 16, 16)
    assert torch.equal(model(views).projections, model(views).projections)

    model.export_encoder().save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path)
    assert plain.config.model_args["patch_drop_rate"] == 0.3
    with torch.no_grad():
        states = plain(images).last_hidden_state
    torch.testing.assert_close(states[:, prefix:], features)


def test_the_mean_is_over_the_kept_patches(views):
    model = build("mean").train()
    states = []
    model.encoder.register_forward_hook(lambda *call: states.append(call[2].last_hidden_state))
    pooled = model(views).context_features
    torch.testing.assert_close(pooled[:, 0], states[0][:, 1:].mean(dim=1))


@pytest.mark.parametrize("architecture", ["resnet10t", "convnext_atto", "beit_base_patch16_224"])
def test_architectures_without_the_option_are_refused(architecture):
    config = TimmWrapperConfig(architecture=architecture, model_args={"patch_drop_rate": 0.3})
    with pytest.raises(ValueError, match=rf"no '{architecture}'.*'patch_drop_rate': 0.3.*leave out"):
        LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=config, image_size=32))


def test_rates_out_of_range_are_refused():
    with pytest.raises(ValueError, match="a value out of range"):
        build(patch_drop_rate=1.0)


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(patch_drop_rate=0.3),
        TimmWrapperConfig(architecture="vit_tiny_patch16_224", patch_drop_rate=0.3),
    ],
    ids=["in-tree", "beside model_args"],
)
def test_where_nothing_would_read_it_the_way_is_told(config):
    with pytest.raises(Exception, match=r'TimmWrapperConfig\(architecture=.*model_args=\{"patch_drop_rate": 0.3\}'):
        LeJepaPreTrainingConfig(encoder_config=config)
