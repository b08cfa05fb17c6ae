"""The terms of the video losses against definitions written out."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hf_jepa.models.vjepa.objective_vjepa import (
    context_weights,
    normalize_levels,
    power_distance,
    variance_regularizer,
)


def test_context_weights_are_those_of_a_search_over_all_pairs():
    rows, columns = 3, 4
    order = torch.stack([torch.randperm(5 * rows * columns) for _ in range(3)])
    context, target = order[:, :30], order[:, 30:41]
    weights = context_weights(context, target, (rows, columns))

    def place(token: int) -> tuple[int, int, int]:
        return token // (rows * columns), token // columns % rows, token % columns

    for clip, index in itertools.product(range(3), range(30)):
        here = place(int(context[clip, index]))
        distance = min(math.dist(here, place(int(token))) for token in target[clip])
        assert float(weights[clip, index]) == pytest.approx(1 / math.sqrt(distance), rel=1e-6)
    # A token that is hidden too does not count endlessly.
    assert torch.equal(context_weights(target, target, (rows, columns)), torch.ones(3, 11))


def test_context_weights_under_autocast_are_exact():
    context, target = torch.arange(0, 2000, 3).unsqueeze(0), torch.arange(1, 2000, 7).unsqueeze(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = context_weights(context, target, (16, 16))
    assert torch.equal(weights, context_weights(context, target, (16, 16)))


def test_levels_are_normed_one_by_one():
    features = torch.randn(2, 5, 12) * torch.tensor([1.0, 10.0, 0.1]).repeat_interleave(4)
    expected = torch.cat([F.layer_norm(level, (4,)) for level in features.split(4, dim=-1)], dim=-1)
    torch.testing.assert_close(normalize_levels(features, 3), expected)
    assert not torch.allclose(normalize_levels(features, 1), expected, atol=0.1)


@pytest.mark.parametrize("exponent", [1, 1.5, 2.0])
def test_power_distance(exponent):
    predictions, targets = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = (predictions - targets).abs() ** exponent / exponent
    torch.testing.assert_close(power_distance(predictions, targets, exponent), expected)
    low = power_distance(predictions.bfloat16(), targets, exponent)
    assert low.dtype == torch.float32
    with pytest.raises(ValueError, match="teacher"):
        power_distance(predictions, targets[..., :2], exponent)


def test_variance_regularizer():
    predictions = [0.3 * torch.randn(2, 9, 4), 2.0 * torch.randn(2, 5, 4)]
    deviations = sum(
        torch.stack([torch.sqrt(clip.var(dim=0, unbiased=True) + 1e-4) for clip in mask]) for mask in predictions
    )
    expected = sum(max(0.0, 1 - float(s) / 2) for s in deviations.flatten()) / 8
    assert float(variance_regularizer(predictions)) == pytest.approx(expected, abs=1e-6)
    assert float(variance_regularizer([torch.zeros(2, 3, 4)])) == pytest.approx(1 - 1e-2)
