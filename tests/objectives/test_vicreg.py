"""VICReg against the official numbers, its closed form over many views, and its faults."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.objectives import VICReg, multi_view_vicreg, vicreg

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
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vicreg(*z.half()).loss.dtype == torch.float32


@pytest.mark.parametrize("case", ["vicreg", "vicreg_wide"])
def test_other_code_bases_and_the_survey(case):
    golden = load_file(GOLDEN / f"{case}.safetensors")
    x, y = golden["x"].double(), golden["y"].double()
    for convention, recorded in (("official", "total_f64"), ("lightly", "lightly_loss"), ("solo", "solo_learn_loss")):
        terms = vicreg(x, y, convention=convention)
        torch.testing.assert_close(terms.loss, golden[recorded], rtol=1e-10, atol=0)
    torch.testing.assert_close(vicreg(x, y).loss, golden["stable_pretraining_loss"], rtol=1e-10, atol=0)
    terms = vicreg(x, y, 1, 1, 1, convention="eb_jepa")
    recorded = (golden["eb_jepa_loss_1_1_1"], golden["sim_f64"], golden["eb_jepa_var"], golden["eb_jepa_cov"])
    torch.testing.assert_close(tuple(terms), recorded, rtol=1e-10, atol=0)
    terms = vicreg(x, y, convention="survey")
    recorded = (golden["survey_sim"], golden["survey_var"], golden["cov_f64"])
    torch.testing.assert_close(tuple(terms[1:]), recorded, rtol=1e-10, atol=0)
    terms = vicreg(x, y, convention="pldm")
    recorded = (golden["sim_f64"], golden["std_f64"], golden["eb_jepa_cov"] / 2)
    torch.testing.assert_close(tuple(terms[1:]), recorded, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("n", "width"), [(6, 40), (40, 6), (2, 3), (5, 1)])
@pytest.mark.parametrize("convention", ["official", "eb_jepa"])
def test_gram_form_equals_the_covariance(n, width, convention):
    x = torch.randn(n, width, dtype=torch.float64, requires_grad=True)
    covariance = torch.cov(x.T, correction=1).reshape(width, width)
    squares = (covariance - torch.diag(covariance.diagonal())).square().sum()
    expected = 2 * squares / (width * max(width - 1, 1) if convention == "eb_jepa" else width)
    terms = vicreg(x, x, convention=convention)
    torch.testing.assert_close(terms.cov, expected)
    torch.testing.assert_close(torch.autograd.grad(terms.cov, x), torch.autograd.grad(expected, x))


def test_gram_form_in_float32_is_as_exact_as_the_covariance():
    z = torch.randn(2, 64, 512)
    z = z + 3 * torch.randn(2, 64, 1)
    torch.testing.assert_close(multi_view_vicreg(z).cov, multi_view_vicreg(z.double()).cov.float(), rtol=1e-6, atol=0)


def test_module():
    z = torch.randn(3, 7, 5)
    ours = VICReg(1.0, 2.0, 3.0, convention="solo")(z)
    torch.testing.assert_close(tuple(ours), tuple(multi_view_vicreg(z, 1.0, 2.0, 3.0, "solo")))
    assert not VICReg().state_dict()


def test_faults():
    with pytest.raises(ValueError, match="at least 2 embeddings"):
        vicreg(torch.randn(1, 4), torch.randn(1, 4))
    with pytest.raises(ValueError, match="one shape"):
        vicreg(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        multi_view_vicreg(torch.randn(1, 4, 4))
    with pytest.raises(ValueError, match="views at least 2"):
        multi_view_vicreg(torch.randn(4, 4))
    with pytest.raises(ValueError, match="floating point"):
        vicreg(torch.ones(3, 4).long(), torch.ones(3, 4).long())
    for empty in (torch.ones(0, 4), torch.ones(4, 0)):
        with pytest.raises(ValueError, match="none of them zero"):
            vicreg(empty, empty)
    with pytest.raises(ValueError, match="NaN or infinite"):
        vicreg(torch.ones(3, 4) / 0, torch.ones(3, 4))
    for build in (VICReg, lambda convention: vicreg(torch.ones(3, 4), torch.ones(3, 4), convention=convention)):
        with pytest.raises(ValueError, match="`convention` must be one of"):
            build(convention="paper")
