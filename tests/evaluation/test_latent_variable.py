"""The report on a latent variable tells help from leakage, on variables whose content is known."""

import math

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from hf_jepa import ConvEncoderConfig, LatentWorldModel, LatentWorldModelConfig
from hf_jepa.evaluation.latent_variable import (
    latent_variable_report,
    linear_r2,
    normalized_mutual_information,
    purity,
)


def build(kind="discrete", size=2, **changes):
    fields = {
        "encoder_config": ConvEncoderConfig(image_size=4, num_channels=1, hidden_sizes=[4], hidden_size=4),
        "action_dim": 1,
        "latent_variable": kind,
        "latent_variable_size": size,
        "num_codes": 2,
        "predictor_hidden_size": 8,
        "sigreg_weight": 0.1,
        "num_slices": 4,
        **changes,
    }
    return LatentWorldModel(LatentWorldModelConfig(**fields)).eval()


class _Moves(torch.nn.Module):
    """The next latent is this one, plus what the variable says."""

    is_markov = True

    def forward(self, latents, conditions):
        shift = torch.zeros_like(latents)
        shift[..., 0] = conditions[..., 1:2]
        return latents + shift


class _Paints(torch.nn.Module):
    """The next latent is the variable, whatever this one is."""

    is_markov = True

    def forward(self, latents, conditions):
        return conditions[..., None, 1:].expand_as(latents)


def forked(batch=64):
    """Latents that jump by +1 or -1 in their first channel at every step."""
    side = torch.randint(0, 2, (batch, 3))
    latents = torch.randn(batch, 1, 1, 4).repeat(1, 4, 1, 1)
    latents[:, 1:, 0, 0] += (2 * side - 1).float().cumsum(dim=1)
    return latents, torch.zeros(batch, 3, 1), side


def test_a_code_that_stands_for_the_fork():
    model = build()
    model.predictor = _Moves()
    with torch.no_grad():
        model.latent_variable.codes.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    latents, actions, side = forked()
    report = latent_variable_report(model, latents, actions, side, without=build("none"))
    assert report["error"] == pytest.approx(0.0, abs=1e-9)
    assert report["error_shuffled"] > 0.3
    assert report["error_without"] > 0
    assert report["purity"] == 1.0
    assert report["nmi"] == pytest.approx(1.0)
    assert report["perplexity"] == pytest.approx(2.0, abs=0.05)
    assert report["transfer_to_source"] > 0.5
    assert report["next_frame_r2"] < 0.3
    assert {"purity_untrained", "nmi_untrained"} <= report.keys()
    assert report["nmi_untrained"] < 0.9


def test_a_variable_that_carries_the_next_frame_is_found_out():
    model = build("sparse", size=4)
    model.predictor = _Paints()
    model.latent_variable.infer = lambda latents, after: after[:, :, 0]
    latents, actions, side = forked()
    report = latent_variable_report(model, latents, actions, side.unsqueeze(-1).float())
    assert report["error"] == pytest.approx(0.0, abs=1e-9)
    assert report["transfer_to_source"] == pytest.approx(0.0, abs=1e-6)
    assert report["next_frame_r2"] > 0.99
    assert report["active_dimensions"] == 4


def test_scores():
    codes, labels = torch.randint(0, 4, (200,)), torch.randint(0, 3, (200,))
    expected = normalized_mutual_info_score(labels.numpy(), codes.numpy())
    assert normalized_mutual_information(codes, labels) == pytest.approx(expected, abs=1e-6)
    assert normalized_mutual_information(torch.zeros(9, dtype=torch.int64), torch.arange(9)) == 0.0
    assert purity(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])) == 0.75
    features = torch.randn(400, 3)
    assert linear_r2(features, features @ torch.randn(3, 2)) > 0.999
    assert abs(linear_r2(features, torch.randn(400, 2))) < 0.1
    assert math.isfinite(linear_r2(torch.ones(20, 2), torch.randn(20, 1)))


def test_refuses():
    latents, actions, _ = forked(8)
    with pytest.raises(ValueError, match="no latent variable"):
        latent_variable_report(build("none"), latents, actions)
    with pytest.raises(ValueError, match="at least 4 clips"):
        latent_variable_report(build(), latents[:3], actions[:3])
    with pytest.raises(ValueError, match="at least 4 clips"):
        latent_variable_report(build(), latents, actions[:, :2])
    with pytest.raises(ValueError, match="at least 4 rows"):
        linear_r2(torch.zeros(3, 1), torch.zeros(3, 1))
