"""Variance hinge, alignment and uniformity against recorded numbers, and their faults."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from hf_jepa.objectives import alignment, contrast, uniformity, variance_hinge


@pytest.fixture
def golden(golden_dir):
    return {name: tensor.double() for name, tensor in load_file(golden_dir / "repr_metrics.safetensors").items()}


def test_recorded_alignment_and_uniformity(golden):
    for case in ("gaussian", "lowrank", "offset", "collapsed"):
        recorded = golden[f"{case}/uniformity_t2_f64"].item()
        assert uniformity(golden[f"{case}/z"]).item() == pytest.approx(recorded, rel=1e-7, abs=1e-14)
        assert uniformity(golden[f"{case}/z"].float()).item() == pytest.approx(recorded, rel=1e-6, abs=1e-6)
    x, y = golden["gaussian/z"], golden["pair/b"]
    assert uniformity(y).item() == pytest.approx(golden["pair/uniformity_b_t2_f64"].item(), rel=1e-12)
    for alpha in (1, 2):
        assert alignment(x, y, alpha).item() == pytest.approx(golden[f"pair/alignment_alpha{alpha}_f64"].item())
    for t in (1, 2):
        hypersphere = alignment(x, y) + 0.5 * (uniformity(x, t) + uniformity(y, t))
        assert hypersphere.item() == pytest.approx(golden[f"pair/lightly_hypersphere_t{t}_f64"].item(), rel=1e-12)


def test_recorded_variance_hinge(golden_dir):
    golden = load_file(golden_dir / "vicreg.safetensors")
    x, y = golden["x"].double().requires_grad_(), golden["y"].double()
    hinge = 0.5 * (variance_hinge(x) + variance_hinge(y))
    torch.testing.assert_close(hinge.detach(), golden["std_f64"], rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(hinge, x)
    torch.testing.assert_close(gradient, golden["grad_x_std_f64"], rtol=1e-9, atol=1e-12)


def test_hinge_rises_as_the_scale_falls():
    z = torch.randn(64, 8)
    values = [variance_hinge(scale * z).item() for scale in (2, 0.5, 0.1, 0)]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == pytest.approx(0.99)
    assert variance_hinge(z * 0, gamma=2.0, eps=1.0).item() == pytest.approx(1.0)


@pytest.mark.parametrize("chunk", [1, 1 << 21])
def test_uniformity_equals_its_formula(monkeypatch, chunk):
    monkeypatch.setattr(contrast, "_CHUNK_ELEMENTS", chunk)
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    formula = torch.pdist(F.normalize(x, dim=1)).square().mul(-3).exp().mean().log()
    torch.testing.assert_close(uniformity(x, 3), formula)
    torch.testing.assert_close(torch.autograd.grad(uniformity(x, 3), x), torch.autograd.grad(formula, x))
    far = torch.eye(3)
    # exp(-2 t) is 0 in float32; its logarithm is not lost.
    assert uniformity(far, 200).item() == pytest.approx(-400)


def test_alignment_of_equal_pairs_has_a_finite_gradient():
    x = torch.randn(5, 3)
    y = x.clone().requires_grad_()
    alignment(x, y, 1).backward()
    assert y.grad.isfinite().all()
    assert alignment(x, 3 * x).item() == pytest.approx(0, abs=1e-12)


def test_half_precision_and_autocast():
    x = torch.randn(16, 8).bfloat16()
    for objective in (variance_hinge, uniformity, lambda z: alignment(z, -z)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = objective(x)
        assert inside.dtype == torch.float32
        torch.testing.assert_close(inside, objective(x.float()))


def test_faults():
    x = torch.randn(4, 3)
    for objective in (variance_hinge, uniformity):
        with pytest.raises(ValueError, match="at least 2 embeddings, got 1"):
            objective(x[:1])
        with pytest.raises(ValueError, match=r"shape \(n, width\)"):
            objective(x[None])
    for objective in (variance_hinge, uniformity, lambda z: alignment(z, z)):
        with pytest.raises(ValueError, match="floating point"):
            objective(x.long())
        with pytest.raises(ValueError, match="NaN or infinite"):
            objective(x / 0)
        for empty in (torch.ones(0, 3), torch.ones(3, 0)):
            with pytest.raises(ValueError, match="none of them zero"):
                objective(empty)
    with pytest.raises(ValueError, match="one shape"):
        alignment(x, x[:3])
    for alpha in (0.5, float("nan")):
        with pytest.raises(ValueError, match="`alpha`"):
            alignment(x, x, alpha)
    for t in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="`t` must be"):
            uniformity(x, t)
    for arguments in ({"gamma": 0}, {"eps": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            variance_hinge(x, **arguments)
