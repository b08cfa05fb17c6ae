"""The target of RDMReg: moments, sparsity and draws against the recorded numbers and torch's own distributions."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.objectives import (
    expected_active_fraction,
    location_for_active_fraction,
    rectified_moments,
    rgg_samples,
    sigma_for,
)
from hf_jepa.objectives.generalized_gaussian import from_noise


@pytest.fixture
def golden(golden_dir):
    return load_file(golden_dir / "rdmreg_rgg.safetensors")


def test_scales_moments_and_active_fraction_match_the_recorded_numbers(golden):
    shapes, locations = golden["p"].tolist(), golden["mu"].tolist()
    for i, p in enumerate(shapes):
        assert sigma_for(p) == pytest.approx(golden["sigma_GN"][i].item(), rel=1e-12)
    for (i, p), (j, mu) in itertools.product(enumerate(shapes), enumerate(locations)):
        assert sigma_for(p, mu, "rgn") == pytest.approx(golden["sigma_RGN"][i, j].item(), rel=1e-9)
        for k, rule in enumerate(("gn", "rgn")):
            recorded = [golden[name][k, i, j].item() for name in ("mean", "var", "active")]
            ours = [*rectified_moments(p, mu, rule), expected_active_fraction(p, mu, rule)]
            assert ours == pytest.approx(recorded, rel=0, abs=1e-9)


@pytest.mark.parametrize(("p", "mu", "rule"), [(1.0, -0.5, "gn"), (2.0, 0.5, "rgn"), (0.5, -1.0, "gn"), (4.0, 0, 0.7)])
def test_samples_have_the_stated_moments_and_sparsity(p, mu, rule):
    n = 400_000
    samples = rgg_samples((n,), p, mu, rule, torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, variance = rectified_moments(p, mu, rule)
    assert samples.mean().item() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    error = (samples - mean).square().var().item() ** 0.5
    assert samples.var().item() == pytest.approx(variance, abs=4 * error / n**0.5)
    active = expected_active_fraction(p, mu, rule)
    assert (samples > 0).double().mean().item() == pytest.approx(active, abs=4 * (active * (1 - active) / n) ** 0.5)


def test_quantiles_of_samples_match_the_recorded_ones(golden):
    n, levels = 100_000, golden["quantile_levels"]
    for i, p in enumerate(golden["p"].tolist()):
        samples = rgg_samples((n,), p, 0.5, "gn", rectify=False, dtype=torch.float64)
        below = (samples[:, None] < golden["quantile_unrectified"][0, i, 2]).double().mean(dim=0)
        assert ((below - levels).abs() < 5 * (levels * (1 - levels) / n).sqrt()).all()


def test_unit_variance_and_extreme_parameters():
    for p, mu in itertools.product((0.2, 0.7, 1.0, 3.0, 20.0), (-4.0, -0.3, 0.0, 2.0, 50.0)):
        assert rectified_moments(p, mu, "rgn")[1] == pytest.approx(1, rel=1e-9)
    # Far from the kink nothing is cut: the moments are those of X.
    assert rectified_moments(2.0, 30.0, 2.0) == pytest.approx((30.0, 4.0), rel=1e-12)
    assert sigma_for(0.02) > 0
    assert expected_active_fraction(20.0, 1e300) == 1
    assert expected_active_fraction(20.0, -1e300) == 0


@pytest.mark.parametrize("rule", ["gn", "rgn", 1.3])
def test_location_inverts_the_active_fraction(rule):
    for p, fraction in itertools.product((0.5, 1.0, 2.0, 5.0), (1e-6, 0.05, 0.5, 0.73, 0.999)):
        mu = location_for_active_fraction(fraction, p, rule)
        assert expected_active_fraction(p, mu, rule) == pytest.approx(fraction, rel=1e-9)
    assert location_for_active_fraction(0.5, 1.0, rule) == 0
    # Laplace: P(X > 0) = exp(mu / sigma) / 2 for mu < 0.
    assert location_for_active_fraction(0.05, 1.0, 1.0) == pytest.approx(torch.tensor(0.1).log().item(), rel=1e-6)


def test_draws_are_those_of_the_released_sampler(golden):
    torch.manual_seed(5)
    laplace = torch.distributions.Laplace(-0.5, 0.7).sample((7, 3))
    torch.manual_seed(5)
    assert torch.equal(rgg_samples((7, 3), 1.0, -0.5, 0.7, rectify=False), laplace)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(rgg_samples((7, 3), 1.0, -0.5, 0.7, generator), laplace.relu())
    torch.manual_seed(5)
    signs = 2 * torch.empty(7, 3).bernoulli_(0.5) - 1
    gamma = torch.distributions.Gamma(1 / 1.5, 1.0).sample((7, 3))
    generator.manual_seed(5)
    expected = from_noise(signs, gamma, 1.5, 0.2, sigma_for(1.5))
    assert torch.equal(rgg_samples((7, 3), 1.5, 0.2, "gn", generator, rectify=False), expected)
    p, mu, sigma = golden["noise_p_mu_sigma"].tolist()
    assert torch.equal(from_noise(golden["noise_sign"], golden["noise_gamma"], p, mu, sigma), golden["noise_x"])


@pytest.mark.parametrize(
    ("p", "mu", "expected"),
    [
        (1.0, 0.0, [-0.0053139, 0.5436429, -1.2246099, -0.9415656, -0.3439253, 0.2207515]),
        (2.0, 0.0, [1.5409961, -0.2934289, -2.1787894, 0.5684313, -1.0845224, -1.3985955]),
        (0.5, -1.0, [-1.4594735, -1.8213289, -0.9070663, -1.3340342, -1.0363456, -1.3057597]),
    ],
)
def test_published_draws(p, mu, expected):
    samples = rgg_samples((2, 3), p, mu, "gn", torch.Generator().manual_seed(0), rectify=False)
    torch.testing.assert_close(samples.flatten(), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [0.0, -1.0, float("nan"), float("inf")])
def test_shape_that_is_not_positive(p):
    for function in (sigma_for, rectified_moments, expected_active_fraction):
        with pytest.raises(ValueError, match="`p` must be positive"):
            function(p)
    with pytest.raises(ValueError, match="`p` must be positive"):
        rgg_samples((2,), p)
    with pytest.raises(ValueError, match="`p` must be positive"):
        location_for_active_fraction(0.3, p, "rgn")


def test_other_faults():
    for sigma in ("sigma_GN", 0.0, -1.0, float("nan"), True):
        with pytest.raises(ValueError, match="sigma must be"):
            sigma_for(1.0, 0.0, sigma)
    with pytest.raises(ValueError, match="`mu` must be finite"):
        sigma_for(1.0, float("nan"))
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            location_for_active_fraction(fraction, 1.0)
    with pytest.raises(ValueError, match="float32 or float64"):
        rgg_samples((2,), 1.0, dtype=torch.float16)
