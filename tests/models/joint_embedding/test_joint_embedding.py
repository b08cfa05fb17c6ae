"""What the four joint-embedding models share: encoders, views, heads, loading, faults."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, TimmWrapperConfig

import hf_jepa
from hf_jepa import LeJepaForPreTraining, LeJepaPreTrainingConfig, RectifiedLpJepaPreTrainingConfig
from hf_jepa.encoders import pooled_output, run_encoder
from hf_jepa.objectives import RDMReg, VISReg, WeakSIGReg, vicreg
from hf_jepa.programs.counting import enable_checkpointing
from tests.tiny_models import TINY_VIT

from .conftest import ENCODERS, HEADS, build


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", HEADS)
def test_every_encoder_trains_reloads_and_exports(name, encoder, views, local_views, tmp_path):
    model = build(name, encoder).train()
    output = model(views) if name == "SimSiam" else model(views, local_views)
    output.loss.backward()
    # DDP waits for every trainable parameter.
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.encoder.training
    assert all(value.ndim == 0 for value in output.loss_components.values())
    assert output.projections.shape == (2 if name == "SimSiam" else 5, 4, model.config.projection_size)

    model.eval().save_pretrained(tmp_path / "whole")
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "whole")
    assert type(loaded) is type(model)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "whole"), type(model))
    torch.testing.assert_close(loaded(views).loss, model(views).loss, rtol=1e-6, atol=1e-7)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert loaded.config.pooled_size == model.config.pooled_size == 16

    images = views[:, 0]
    model.export_encoder().save_pretrained(tmp_path / "encoder")
    plain = AutoModel.from_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        torch.testing.assert_close(
            pooled_output(plain, run_encoder(plain, images), images, model.config.pooling),
            model.get_pooled_features(images),
            rtol=1e-6,
            atol=1e-7,
        )
    features = model.get_features(images)
    assert features.shape[0] == 4
    assert features.shape[2] == 16
    assert torch.equal(features, model.get_features(images, which="context"))
    if encoder != "timm_convnet":
        assert features.shape[1] == 16
    assert model.energy(views).shape == (4,)


def test_pooling_is_resolved_and_saved():
    found = {encoder: build("VICReg", encoder).config.pooling for encoder in ENCODERS}
    assert found == {
        "vit": "cls",
        "resnet": "pooler",
        "convnext": "pooler",
        "timm_vit": "pooler",
        "timm_convnet": "pooler",
    }
    images = torch.randn(2, 3, 32, 32)
    model = build("VICReg", "vit", pooling="mean").eval()
    hidden = model.encoder(images).last_hidden_state
    torch.testing.assert_close(model.get_pooled_features(images), hidden[:, 1:].mean(dim=1))
    model = build("VICReg", "convnext", pooling="mean").eval()
    hidden = model.encoder(images).last_hidden_state
    torch.testing.assert_close(model.get_pooled_features(images), hidden.mean(dim=(2, 3)))
    model = build("VICReg", "vit", pooling="pooler").train()
    model(torch.randn(4, 2, 3, 32, 32)).loss.backward()
    assert model.encoder.pooler.dense.weight.grad.abs().sum() > 0


def test_views_of_a_size_take_one_pass_unless_statistics_are_per_view(views, local_views):
    for name, encoder, expected in (("LeJepa", "resnet", 2), ("VICReg", "vit", 2), ("VICReg", "resnet", 5)):
        model = build(name, encoder).train()
        passes = []
        model.encoder.register_forward_hook(lambda module, inputs, output, passes=passes: passes.append(1))
        model(views, local_views)
        assert len(passes) == expected, name


def test_batch_norm_statistics_are_joint_or_per_view(views):
    # A second view of another contrast, which per-view statistics take away.
    contrasted = torch.stack([views[:, 0], views[:, 0] * 3], dim=1)
    for batch_norm, same in (("joint", False), ("per_view", True)):
        model = build("SimSiam", "resnet", batch_norm=batch_norm).train()
        first, second = model(contrasted).projections
        assert torch.allclose(first, second, atol=0.05) == same, batch_norm


def test_losses_are_what_the_papers_say(views):
    model = build("RectifiedLpJepa").train()
    output = model(views)
    first, second = output.projections
    assert first.min() == 0
    assert 0 < output.loss_components["active_fraction"] < 1
    terms = output.loss_components
    torch.testing.assert_close(terms["invariance_loss"], (first - second).square().mean().detach())
    torch.testing.assert_close(output.loss.detach(), 25 * terms["invariance_loss"] + 125 * terms["rdmreg_loss"])
    assert build("RectifiedLpJepa", rectify=False).eval()(views).projections.min() < 0

    model = build("VICReg").train()
    output = model(views)
    expected = vicreg(*output.projections)
    torch.testing.assert_close(output.loss, expected.loss)
    assert torch.equal(output.loss_components["cov_loss"], expected.cov.detach())
    solo = build("VICReg", convention="solo")
    torch.testing.assert_close(solo(views).loss, vicreg(*solo(views).projections, convention="solo").loss)

    model = build("SimSiam").train()
    output = model(views)
    lengths = torch.nn.functional.normalize(output.projections.detach(), dim=2)
    torch.testing.assert_close(output.loss_components["normalized_std"], lengths.std(1, correction=0).mean())
    assert not any(target.requires_grad for target in output.targets)
    assert torch.equal(output.targets[0], output.projections[1].detach())


@pytest.mark.parametrize("name", HEADS)
def test_energy_is_the_invariance_of_each_image(name, views):
    model = build(name).eval()
    terms = model(views).loss_components
    expected = terms.get("invariance_loss", terms.get("prediction_loss"))
    torch.testing.assert_close(model.energy(views).mean(), expected)
    same = views[:, :1].expand(-1, 2, -1, -1, -1)
    if name != "SimSiam":
        assert model.energy(same).max() < 1e-10


def test_projectors_are_the_originals():
    def layers(head):
        return [type(layer).__name__ for layer in head]

    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert layers(build("LeJepa").projector) == [*hidden, *hidden, "Linear"]
    assert build("LeJepa").projector[-1].bias is not None
    assert layers(build("RectifiedLpJepa").projector) == [*hidden, *hidden, "Linear", "ReLU"]
    assert build("VICReg").projector[-1].bias is None
    simsiam = build("SimSiam")
    assert layers(simsiam.projector) == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    assert layers(simsiam.predictor) == [*hidden, "Linear"]
    assert simsiam.projector[0].bias is None
    assert simsiam.projector[-1].weight is None
    assert not simsiam.projector[-2].bias.requires_grad
    # torch's default, not transformers' 0.02.
    std = build("LeJepa", projector_hidden_size=512).projector[3].weight.std()
    torch.testing.assert_close(std, torch.tensor((3 * 512) ** -0.5), rtol=0.02, atol=0)


@pytest.mark.parametrize("channels", [1, 12])
def test_a_timm_encoder_of_another_size_and_channels(channels):
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args={"depth": 1, "embed_dim": 24, "in_chans": channels}
    )
    model = LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=config, image_size=48)).eval()
    assert model.get_features(torch.randn(2, channels, 48, 48)).shape == (2, 9, 24)
    with pytest.raises(ValueError, match=r"takes no images of \(50, 50\) pixels: .* divisible by patch size"):
        model.get_features(torch.randn(2, channels, 50, 50))
    with pytest.raises(ValueError, match=r"takes no images of \(40, 40\) pixels"):
        LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=config, image_size=40))


def test_a_timm_encoder_keeps_timms_own_initialisation():
    import timm

    torch.manual_seed(1)
    config = TimmWrapperConfig(architecture="resnet10t", model_args={"channels": [64, 64, 64, 64]})
    model = LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=config, image_size=32))
    fresh = timm.create_model("resnet10t", num_classes=0, channels=[64, 64, 64, 64]).state_dict()
    ours = model.encoder.timm_model.state_dict()
    # Kaiming by fan-out, and a last batch norm of each block that starts at zero: the wrapper alone has neither.
    key = next(key for key in ours if key.endswith("conv2.weight"))
    torch.testing.assert_close(ours[key].std(), fresh[key].std(), rtol=0.05, atol=0)
    assert fresh[key].std() > 0.04
    assert any(fresh[key].abs().sum() == 0 for key in fresh if key.endswith("weight"))
    assert all((ours[key].abs().sum() == 0) == (fresh[key].abs().sum() == 0) for key in fresh)


def test_from_encoder_continues_a_released_encoder(views, tmp_path):
    model = build("LeJepa", "timm_convnet").eval()
    model.export_encoder().save_pretrained(tmp_path)
    again = hf_jepa.VICRegForPreTraining.from_encoder(str(tmp_path), image_size=32, **HEADS["VICReg"]).eval()
    torch.testing.assert_close(again.get_features(views[:, 0]), model.get_features(views[:, 0]))
    before = {name: value.clone() for name, value in again.state_dict().items()}
    again.update_target(0.5)
    again.sync_target()
    assert not again.has_target_encoder
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())


def test_half_precision_autocast_and_checkpointing_change_little(views):
    model = build("RectifiedLpJepa", "timm_vit").train()
    plain = model(views)
    model.rdmreg.global_step.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(views)
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, plain.loss, rtol=0.05, atol=0)
    model.rdmreg.global_step.zero_()
    enable_checkpointing(model)
    assert model.encoder.timm_model.grad_checkpointing
    again = model(views)
    torch.testing.assert_close(again.loss, plain.loss)
    again.loss.backward()
    assert model.encoder.timm_model.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_rectified_lpjepas_directions_are_the_configs(views):
    model = build("RectifiedLpJepa", projection="svd_random", num_projections=9)
    model.eval()
    output = model(views)
    expected = RDMReg(num_projections=9, projection="svd_random").eval()(output.projections.detach())
    torch.testing.assert_close(output.loss_components["rdmreg_loss"], expected)
    with pytest.raises(Exception, match="projection"):
        build("RectifiedLpJepa", projection="svd")


@pytest.mark.parametrize(("regularizer", "objective"), [("visreg", VISReg), ("weak_sigreg", WeakSIGReg)])
def test_lejepa_takes_another_regularizer(views, tmp_path, regularizer, objective):
    model = build("LeJepa", regularizer=regularizer, regularizer_weight=0.3, num_slices=8).train()
    output = model(views)
    terms = output.loss_components
    assert terms.keys() == {"invariance_loss", f"{regularizer}_loss"}
    value = objective(8)(output.projections.detach())
    torch.testing.assert_close(terms[f"{regularizer}_loss"], value)
    torch.testing.assert_close(output.loss.detach(), 0.7 * terms["invariance_loss"] + 0.3 * value)
    assert model.batch_warning(2) is None
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert int(getattr(loaded, regularizer).global_step) == 1


def test_sigreg_directions_follow_the_step_and_its_count_is_saved(views, tmp_path):
    model = build().train()
    model(views)
    model(views)
    assert int(model.sigreg.global_step) == 2
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path).train()
    assert int(loaded.sigreg.global_step) == 2
    torch.testing.assert_close(loaded(views).loss, model(views).loss, rtol=1e-5, atol=1e-6)
    model.eval()
    model(views)
    assert int(model.sigreg.global_step) == 3


@pytest.mark.parametrize(
    ("kwargs", "batch_size", "warns"),
    [
        ({}, 256, False),
        ({}, 16, True),
        ({"regularizer_weight": 0.0}, 4096, True),
        ({"reduction": "sum", "projection_size": 64}, 256, True),
        ({"combination": "additive", "scale_by_batch": False, "sigreg_form": "paper"}, 4096, True),
        ({"flatten_views": True}, 24, False),
        ({"centre": "pairs"}, 64, True),
        ({"regularizer_weight": 1.0}, 16, False),
    ],
)
def test_the_lambda_rule_warns_of_small_batches(kwargs, batch_size, warns):
    warning = build(**kwargs).batch_warning(batch_size)
    assert (warning is not None) == warns
    if warns:
        assert "collapse" in warning
    assert build("VICReg").batch_warning(batch_size) is None


@pytest.mark.parametrize("encoder", ["vit", "timm_vit"])
def test_features_are_the_same_in_training_mode_without_batch_norm_and_dropout(encoder, views):
    """Bit for bit: logs, which are of features in eval mode, keep their numbers."""
    model, images = build("LeJepa", encoder), views[:, 0]
    assert torch.equal(model.train().get_features(images), model.eval().get_features(images))


def test_faults(views, local_views):
    model = build()
    with pytest.raises(ValueError, match="at least 2 of an image, got 1"):
        model(views[:, :1])
    with pytest.raises(ValueError, match=r"batch of at least 2 images, got 1"):
        model(views[:1])
    with pytest.raises(ValueError, match="stack the views"):
        model(views[:, 0])
    with pytest.raises(ValueError, match="differ in batch or channels"):
        model(views, local_views[:3])
    simsiam = build("SimSiam")
    with pytest.raises(ValueError, match="needs 2 of an image, got 3"):
        simsiam(torch.cat([views, views[:, :1]], dim=1))
    with pytest.raises(ValueError, match="takes no `local_pixel_values`"):
        simsiam(views, local_views)
    with pytest.raises(ValueError, match="defined for two views, got 3"):
        build("VICReg", convention="solo")(torch.cat([views, views[:, :1]], dim=1))
    with pytest.raises(ValueError, match='"target" or "context"'):
        model.get_features(views[:, 0], which="teacher")


def test_encoders_without_a_pooled_output_are_refused():
    tokens_only = AutoConfig.for_model("ijepa", **TINY_VIT)
    maps = TimmWrapperConfig(architecture="resnet10t", model_args={"features_only": True})
    for config, pooling in ((ENCODERS["resnet"](), "cls"), (maps, "auto"), (tokens_only, "cls")):
        with pytest.raises(ValueError, match="no usable pooled output"):
            LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=config, image_size=32, pooling=pooling))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("regularizer_weight", -0.1),
        ("regularizer_weight", 1.5),
        ("projection_size", 0),
        ("num_slices", 0),
        ("centre", "none"),
        ("pooling", "max"),
        ("embedding_size", 0),
    ],
)
def test_bad_configs_are_refused(field, value):
    with pytest.raises(Exception, match=field):
        LeJepaPreTrainingConfig(**{field: value})


def test_bad_targets_are_refused_when_the_model_is_built():
    config = RectifiedLpJepaPreTrainingConfig(
        encoder_config=ENCODERS["vit"](), image_size=32, p=-1.0, **HEADS["RectifiedLpJepa"]
    )
    with pytest.raises(ValueError, match="p"):
        hf_jepa.RectifiedLpJepaForPreTraining(config)


def test_loading_is_never_partial(tmp_path):
    from safetensors.torch import load_file, save_file

    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("sigreg.global_step")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"sigreg\.global_step"):
        LeJepaForPreTraining.from_pretrained(tmp_path)
