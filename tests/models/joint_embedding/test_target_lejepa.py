"""LeJEPA's averaged network, `target="ema"`: the centre, what trains, what is averaged, saved and released."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining

from hf_jepa import LeJepaForPreTraining, LeJepaPreTrainingConfig
from hf_jepa.encoders import pooled_output, run_encoder
from hf_jepa.models.joint_embedding import JointEmbeddingPreTrainedModel
from hf_jepa.models.joint_embedding.modeling_lejepa import view_distance
from hf_jepa.objectives import SIGReg, collapse_ratio, sigreg

from .conftest import ENCODERS, build

AVERAGED = ("encoder", "embedding", "projector")
EMA = {"target": "ema", "centre": "global_views"}


def parts(model: JointEmbeddingPreTrainedModel) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
    return [(getattr(model, f"target_{name}"), getattr(model, name)) for name in AVERAGED]


def averaged(encoder: str = "vit", **kwargs) -> JointEmbeddingPreTrainedModel:
    """A model whose averaged network is another than the trained one."""
    model = build("LeJepa", encoder, **{**EMA, **kwargs})
    with torch.no_grad():
        for parameter in (p for target, _ in parts(model) for p in target.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def by_hand(model: JointEmbeddingPreTrainedModel, views: torch.Tensor, training: bool) -> torch.Tensor:
    """What a copy of the averaged network, by itself, makes of the global views: (views, batch, width)."""
    encoder, embedding, projector = (copy.deepcopy(target).train(training) for target, _ in parts(model))

    def pool(images: torch.Tensor) -> torch.Tensor:
        return pooled_output(encoder, run_encoder(encoder, images), images, model.config.pooling)

    by_view = views.transpose(0, 1)
    with torch.no_grad():
        if model.config.batch_norm == "per_view":
            return torch.stack([projector(embedding(pool(view))) for view in by_view])
        return projector(embedding(pool(by_view.flatten(0, 1)))).unflatten(0, by_view.shape[:2])


@pytest.mark.parametrize(
    ("encoder", "batch_norm", "training"),
    [
        ("vit", "joint", True),
        ("timm_vit", "joint", False),
        ("resnet", "joint", True),
        ("resnet", "per_view", True),
        ("timm_convnet", "joint", False),
    ],
)
def test_the_centre_is_what_the_averaged_network_makes_of_global_views(
    encoder, batch_norm, training, views, local_views
):
    model = averaged(encoder, batch_norm=batch_norm).train(training)
    centre = by_hand(model, views, training).mean(dim=0)
    for target, _ in parts(model):
        # Even where somebody has turned them on.
        target.requires_grad_(True)
    output = model(views, local_views)
    output.projections.retain_grad()
    output.loss.backward()

    projections = output.projections.detach().requires_grad_()
    invariance = (projections - centre).square().mean()
    regularizer = SIGReg(16).eval()(projections)
    loss = 0.98 * invariance + 0.02 * regularizer
    loss.backward()
    torch.testing.assert_close(output.loss_components["invariance_loss"], invariance.detach())
    torch.testing.assert_close(output.loss_components["sigreg_loss"], regularizer.detach())
    torch.testing.assert_close(output.loss, loss.detach())
    torch.testing.assert_close(output.projections.grad, projections.grad)
    assert [name for name, p in model.named_parameters() if name.startswith("target_") and p.grad is not None] == []
    trained = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("target_")]
    assert trained
    assert all(p.grad is not None for p in trained)
    # It is not the trained network's own centre.
    own = view_distance(output.projections.detach(), "global_views", 2).mean()
    assert not torch.isclose(own, invariance.detach(), rtol=1e-4)


def test_the_default_has_no_averaged_network_and_is_unchanged(views, local_views):
    config = LeJepaPreTrainingConfig().to_dict()
    assert config.pop("target") == "shared"
    # Of a version that knew no such field.
    assert LeJepaPreTrainingConfig.from_dict(config).target == "shared"
    torch.manual_seed(3)
    model = build(centre="global_views").train()
    assert not model.has_target_encoder
    assert {name.split(".")[0] for name in model.state_dict()} == {*AVERAGED, "sigreg"}
    output = model(views, local_views)
    output.projections.retain_grad()
    output.loss.backward()
    projections = output.projections.detach().requires_grad_()
    invariance = (projections[:2].mean(dim=0) - projections).square().mean(dim=(0, 2)).mean()
    loss = 0.98 * invariance + 0.02 * SIGReg(16).eval()(projections)
    # The centre has a gradient.
    loss.backward()
    assert torch.equal(output.loss, loss)
    assert torch.equal(output.projections.grad, projections.grad)
    # The averaged copy draws nothing before the trained network.
    torch.manual_seed(3)
    other = build(**EMA)
    assert all(torch.equal(other.get_parameter(name), value) for name, value in model.named_parameters())


@pytest.mark.parametrize("encoder", ["vit", "timm_vit", "timm_convnet"])
def test_the_averaged_network_starts_as_a_copy_and_follows(encoder, views):
    model = build("LeJepa", encoder, **EMA).train()
    assert model.has_target_encoder
    for target, source in parts(model):
        state = source.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
        assert not any(p.requires_grad for p in target.parameters())
        assert {id(p) for p in target.parameters()}.isdisjoint(map(id, source.parameters()))
    with torch.no_grad():
        for parameter in (p for _, source in parts(model) for p in source.parameters()):
            parameter.add_(torch.randn_like(parameter))
    before = [[p.clone() for p in target.parameters()] for target, _ in parts(model)]
    model.update_target(0.9)
    for (target, source), old in zip(parts(model), before, strict=True):
        for parameter, trained, was in zip(target.parameters(), source.parameters(), old, strict=True):
            torch.testing.assert_close(parameter, 0.9 * was + 0.1 * trained)
    model.sync_target()
    for target, source in parts(model):
        state = source.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("batch_norm", ["joint", "per_view"])
def test_a_copy_gives_the_centre_of_the_trained_network(batch_norm, views, local_views):
    """At the start, and with momentum 0, the loss is the plain one, where no local views share batch norms."""
    model = build("LeJepa", "timm_convnet", batch_norm=batch_norm, **EMA).train()
    output = model(views, local_views if batch_norm == "per_view" else None)
    plain = view_distance(output.projections.detach(), "global_views", 2).mean()
    torch.testing.assert_close(output.loss_components["invariance_loss"], plain)


def test_batch_norms_of_the_averaged_network_keep_statistics_of_their_own(views, local_views):
    model = averaged("resnet").train()
    norms = [
        pair
        for target, source in parts(model)
        for pair in zip(target.modules(), source.modules(), strict=True)
        if isinstance(pair[0], torch.nn.modules.batchnorm._BatchNorm)
    ]
    assert len(norms) > 2
    assert all(own.training for own, _ in norms)
    model(views, local_views)
    seen = [own.running_mean.clone() for own, _ in norms]
    assert all(int(own.num_batches_tracked) == 1 for own, _ in norms)
    model.update_target(0.5)
    assert all(torch.equal(own.running_mean, mean) for (own, _), mean in zip(norms, seen, strict=True))
    assert not any(torch.equal(own.running_mean, other.running_mean) for own, other in norms)
    model.eval()
    assert not any(own.training for own, _ in norms)
    model(views, local_views)
    assert all(torch.equal(own.running_mean, mean) for (own, _), mean in zip(norms, seen, strict=True))


def test_nothing_is_dropped_in_the_averaged_network(views):
    config = ENCODERS["timm_vit"]()
    config.model_args |= {"patch_drop_rate": 0.5, "drop_path_rate": 0.5, "proj_drop_rate": 0.5, "depth": 2}
    model = LeJepaForPreTraining(
        LeJepaPreTrainingConfig(encoder_config=config, image_size=32, projection_size=4, num_slices=8, **EMA)
    ).train()
    seen = []
    model.target_encoder.timm_model.blocks[0].register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    first, second = model(views).projections, model(views).projections
    assert not torch.equal(first, second)
    assert seen == [17, 17]
    features = [model.get_features(views[:, 0]) for _ in range(2)]
    assert torch.equal(*features)


@pytest.mark.parametrize("encoder", ["resnet", "timm_vit"])
def test_both_encoders_are_saved_read_and_released(encoder, views, local_views, tmp_path):
    model = averaged(encoder).train()
    model(views, local_views)
    model.eval().save_pretrained(tmp_path / "whole")
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "whole").eval()
    assert loaded.config.target == "ema"
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    torch.testing.assert_close(loaded(views).loss, model(views).loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.energy(views).mean(), model(views).loss_components["invariance_loss"])

    images, pooled = views[:, 0], {}
    for which in ("target", "context"):
        model.export_encoder(which).save_pretrained(tmp_path / which)
        plain = AutoModel.from_pretrained(tmp_path / which)
        with torch.no_grad():
            pooled[which] = pooled_output(plain, run_encoder(plain, images), images, model.config.pooling)
        close = {"rtol": 1e-6, "atol": 1e-7}
        torch.testing.assert_close(pooled[which], model.get_pooled_features(images, which), **close)
        assert model.get_features(images, which).shape == (4, 16, 16)
    assert not torch.allclose(pooled["target"], pooled["context"])
    assert not torch.allclose(model.get_features(images, "target"), model.get_features(images, "context"))
    assert torch.equal(model.get_features(images), model.get_features(images, "target"))
    assert torch.equal(model.get_pooled_features(images), model.get_pooled_features(images, "target"))

    again = LeJepaForPreTraining.from_encoder(str(tmp_path / "target"), image_size=32, num_slices=8, **EMA).eval()
    for which in ("target", "context"):
        torch.testing.assert_close(again.get_pooled_features(images, which), pooled["target"], **close)


@pytest.mark.parametrize("centre", ["all_views", "pairs"])
def test_an_averaged_network_needs_the_global_views_centre(centre):
    with pytest.raises(Exception, match=f'centre=\'{centre}\': set centre="global_views", or target="shared"'):
        build(target="ema", centre=centre)
    with pytest.raises(ValueError, match=f"not '{centre}'"):
        view_distance(torch.randn(3, 4, 2), centre, 2, targets=torch.randn(2, 4, 2))


@pytest.mark.parametrize("target", ["frozen", "stop_gradient", None])
def test_unknown_targets_are_refused(target):
    with pytest.raises(Exception, match="target"):
        build(target=target, centre="global_views")


def test_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match="EMA target needs float32 weights"):
        build(**EMA).to(torch.bfloat16).update_target(0.9)


NUM_IMAGES, WIDTH = 10, 4


def embeddings(num_views: int, seed: int = 0) -> torch.Tensor:
    """Nearly collapsed ones of (views, images, width), with mean zero over the images."""
    drawn = torch.randn(num_views, NUM_IMAGES, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    return 1e-3 * (drawn - drawn.mean(dim=1, keepdim=True))


def gradient(views: torch.Tensor, ratio: float, centre: str, targets: torch.Tensor | None = None) -> torch.Tensor:
    """Of the convex loss in which SIGReg weighs as much as the rule calls `ratio`; two views are global."""
    force = collapse_ratio(0.5, NUM_IMAGES)
    weight = ratio / (force + ratio)
    assert collapse_ratio(weight, NUM_IMAGES) == pytest.approx(ratio)
    views = views.clone().requires_grad_()
    invariance = view_distance(views, centre, 2, targets=targets).mean()
    # An orthonormal set averages exactly as all directions do.
    loss = (1 - weight) * invariance + weight * sigreg(views, torch.eye(WIDTH, dtype=views.dtype))
    return torch.autograd.grad(loss, views)[0]


def test_the_lambda_rule_is_that_of_a_centre_without_gradient_too():
    """Two views, of a network that its average is a copy of: all that there is differs within the images."""
    half = embeddings(1)
    views = torch.cat([half, -half])
    for ratio, grows in ((0.95, False), (1.05, True)):
        found = gradient(views, ratio, "global_views", targets=views)
        torch.testing.assert_close(found, gradient(views, ratio, "all_views"))
        assert ((found * views).sum() < 0) == grows
    # What views share is not pulled.
    views = half.expand(2, -1, -1)
    assert (gradient(views, 0.1, "global_views", targets=views) * views).sum() < 0


@pytest.mark.parametrize(
    ("num_views", "momentum", "start"),
    [(2, 0.5, "copy"), (2, 0.99, "opposite"), (8, 0.99, "copy"), (8, 0.5, "opposite")],
)
def test_the_lambda_rule_keeps_a_slow_centre_from_collapse(num_views, momentum, start):
    views = embeddings(num_views)
    targets = views[:2] if start == "copy" else -views[:2]
    shared, apart = [], []
    for _ in range(200):
        middle = views.mean(dim=0)
        shared.append(middle.norm().item())
        apart.append((views - middle).norm().item())
        if shared[-1] > 5 * shared[0]:
            break
        views = views - 0.1 * views.numel() * gradient(views, 1.1, "global_views", targets)
        targets = momentum * targets + (1 - momentum) * views[:2]
    assert shared[-1] > 5 * shared[0]
    assert apart[-1] > apart[0]


def test_a_shared_global_centre_needs_more_where_there_are_local_views():
    """And says so: of 8 views with 2 global ones, the rule's ratio is safe from 4 on."""
    views = torch.cat([3 * embeddings(1).expand(2, -1, -1), -embeddings(1).expand(6, -1, -1)])
    share = view_distance(views, "global_views", 2).mean() / views.square().mean()
    assert share == pytest.approx(4)
    for ratio, grows in ((1.1, False), (3.9, False), (4.1, True)):
        assert ((gradient(views, ratio, "global_views") * views).sum() < 0) == grows
    assert "1 is safe (with local views: views / global views)" in build(centre="global_views").batch_warning(16)
    for fields in ({}, EMA):
        assert "1 is safe. Raise" in build(**fields).batch_warning(16)
