"""VICReg against the official numbers, its closed form over many views, and its faults."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.objectives import multi_view_vicreg, vicreg

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("case", ["vicreg", "vicreg_wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_terms_and_gradients(case, dtype):
    golden = load_file(GOLDEN / f"{case}.safetensors")
    suffix, tolerance = ("_f64", 1e-10) if dtype == torch.float64 else ("", 2e-5)
    x, y = (golden[name].to(dtype).requires_grad_() for name in "xy")
    terms = vicreg(x, y)
    for name, value in zip(("total", "sim", "std", "cov"), terms, strict=True):
        reference = golden[f"{name}{suffix}"].to(dtype)
        torch.testing.assert_close(value.detach(), reference, rtol=tolerance, atol=tolerance)
        for leaf, letter in ((x, "x"), (y, "y")):
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
            torch.testing.assert_close(
                gradient, golden[f"grad_{letter}_{name}{suffix}"].to(dtype), rtol=tolerance, atol=tolerance
            )


def test_weights_and_the_published_example():
    k = torch.arange(24, dtype=torch.float64).view(6, 4)
    terms = vicreg(torch.sin(0.7 * k), torch.cos(0.3 * k))
    assert [round(float(value), 8) for value in terms] == [26.43020933, 0.77068404, 0.23363493, 1.32223508]
    other = vicreg(torch.sin(0.7 * k), torch.cos(0.3 * k), sim_weight=1, std_weight=2, cov_weight=3)
    assert float(other.loss) == pytest.approx(0.77068404 + 2 * 0.23363493 + 3 * 1.32223508, abs=1e-7)


def test_many_views_equal_the_mean_over_pairs():
    z = torch.randn(4, 7, 5, dtype=torch.float64)
    pairs = [vicreg(z[i], z[j]) for i, j in itertools.permutations(range(4), 2)]
    for ours, expected in zip(multi_view_vicreg(z), zip(*pairs, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(expected).mean())


def test_autocast_does_not_round_the_covariance():
    z = torch.randn(2, 16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = multi_view_vicreg(z)
    torch.testing.assert_close(inside.cov, multi_view_vicreg(z).cov, rtol=1e-6, atol=0)


def test_faults():
    with pytest.raises(ValueError, match="at least 2 embeddings"):
        vicreg(torch.randn(1, 4), torch.randn(1, 4))
    with pytest.raises(ValueError, match="one shape"):
        vicreg(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        multi_view_vicreg(torch.randn(1, 4, 4))
