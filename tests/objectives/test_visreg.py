"""VISReg and Weak-SIGReg against their formulas, and their gradients near collapse."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_jepa.objectives import SIGReg, VISReg, WeakSIGReg, visreg, weak_sigreg
from hf_jepa.objectives.sigreg import directions_of


def directions(count=7, width=5):
    return F.normalize(torch.randn(count, width, dtype=torch.float64), dim=1)


def visreg_formula(z, w):
    """One view, term by term, differentiated by autograd."""
    n = len(z)
    mean = z.mean(dim=0)
    std = (z - mean).square().mean(dim=0).sqrt() + 1e-6
    quantiles = torch.distributions.Normal(0, 1).icdf(torch.arange(1, n + 1, dtype=z.dtype) / (n + 1))
    ordered = ((z - mean) / std.detach() @ w.T).sort(dim=0).values
    shape = (ordered - quantiles[:, None]).square().mean()
    return mean.square().mean(), (std - 1).square().mean(), shape


def weak_formula(z, sketch):
    covariance = torch.cov((z @ sketch.T).T)
    return torch.linalg.matrix_norm(covariance - torch.eye(len(sketch), dtype=z.dtype))


def gradient_of(loss, z):
    return torch.autograd.grad(loss, z)[0]


def test_visreg_is_its_formula_per_view():
    z = (2 * torch.randn(3, 11, 5, dtype=torch.float64) + 1).requires_grad_()
    w = directions()
    terms = visreg(z, w)
    expected = [torch.stack(term).mean() for term in zip(*(visreg_formula(view, w) for view in z), strict=True)]
    torch.testing.assert_close(terms[1:], tuple(expected), rtol=1e-9, atol=0)
    torch.testing.assert_close(terms.loss, sum(expected), rtol=1e-9, atol=0)
    for found, wanted in zip(terms, [sum(expected), *expected], strict=True):
        torch.testing.assert_close(
            torch.autograd.grad(found, z, retain_graph=True)[0],
            torch.autograd.grad(wanted, z, retain_graph=True)[0],
            rtol=1e-8,
            atol=1e-12,
        )


def test_visreg_of_recorded_numbers():
    i, j = torch.arange(8.0)[:, None], torch.arange(4.0)
    x = 1.2 * torch.sin(0.7 * i + 1.3 * j + 0.31 * i * j)
    r, s = torch.arange(4.0)[:, None], torch.arange(3.0)
    a = F.normalize(torch.cos(0.9 * (3 * r + s)), dim=0)
    expected = torch.tensor([0.0235964, 0.0254134, 0.4097274])
    torch.testing.assert_close(torch.stack(visreg(x, a.T)[1:]), expected, rtol=1e-5, atol=1e-7)


def test_weak_sigreg_is_its_formula_per_view():
    z = torch.randn(2, 3, 11, 5, dtype=torch.float64, requires_grad=True)
    sketch = directions(3)
    value = weak_sigreg(z, sketch)
    expected = torch.stack([weak_formula(view, sketch) for view in z.flatten(0, 1)]).mean()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient_of(value, z), gradient_of(expected, z), rtol=1e-8, atol=1e-12)


def test_a_full_sketch_is_the_covariance_itself_and_white_embeddings_cost_nothing():
    z = torch.randn(50, 6, dtype=torch.float64)
    exact = weak_formula(z, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(WeakSIGReg(64)(z), exact, rtol=1e-6, atol=0)
    white = torch.linalg.qr(z - z.mean(dim=0)).Q * math.sqrt(49)
    for size in (3, 64):
        assert WeakSIGReg(size)(white) < 1e-5
        collapsed = WeakSIGReg(size)(torch.zeros(9, 6, dtype=torch.float64))
        assert float(collapsed) == pytest.approx(math.sqrt(min(size, 6)))


def test_what_opens_a_collapsing_batch():
    """VISReg's gradient does not fade with the embeddings' scale; those of SIGReg and Weak-SIGReg do, linearly."""
    cloud = torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = directions_of(0, 64, 16).double()

    def norm(loss, scale):
        z = (scale * cloud).requires_grad_()
        return gradient_of(loss(z), z).norm().item()

    def opening(z):
        return visreg(z, w).scale

    for scale in (1e-2, 1e-4):
        # By formula: d/dz (std - 1)^2 summed over a batch has norm 2 (1 - std) / sqrt(N D).
        assert norm(opening, scale) == pytest.approx(2 * (1 - scale) / math.sqrt(64 * 16), rel=0.02)
        assert norm(VISReg(64), scale) >= norm(opening, scale)
        z = (scale * cloud).requires_grad_()
        # Downhill is apart.
        assert (gradient_of(opening(z), z) * (z - z.mean(dim=0))).sum() < 0
    for fading in (SIGReg(64), WeakSIGReg()):
        assert norm(fading, 1e-4) == pytest.approx(norm(fading, 1e-2) / 100, rel=0.1)


@pytest.mark.parametrize("module", [VISReg(8), WeakSIGReg(3)])
def test_modules_draw_anew_in_training_only(module):
    z = torch.randn(2, 12, 5)
    module.eval()
    assert module(z) == module(z)
    module.train()
    first, second = module(z), module(z)
    assert first != second
    assert int(module.global_step) == 2
    resumed = type(module)(3 if isinstance(module, WeakSIGReg) else 8)
    resumed.load_state_dict({"global_step": torch.tensor(1)})
    assert resumed(z) == second


@pytest.mark.parametrize("module", [VISReg(8), WeakSIGReg(3)])
def test_half_precision_is_raised(module):
    z = torch.randn(12, 5).bfloat16()
    module.eval()
    with torch.autocast("cpu", torch.bfloat16):
        value = module(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, module(z.float()))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: VISReg(0), "num_slices"),
        (lambda: WeakSIGReg(0), "sketch_size"),
        (lambda: VISReg()(torch.zeros(1, 4)), "at least 2 embeddings"),
        (lambda: WeakSIGReg()(torch.zeros(1, 4)), "at least 2 embeddings"),
        (lambda: visreg(torch.zeros(4, 4), torch.eye(3)), "Directions must have shape"),
        (lambda: visreg(torch.zeros(4, 3), torch.eye(3).expand(2, 3, 3)), "share their directions"),
        (lambda: weak_sigreg(torch.zeros(4, 3), torch.eye(3).expand(2, 3, 3)), "share their sketch"),
        (lambda: VISReg()(torch.full((4, 3), math.nan)), "NaN"),
    ],
)
def test_faults(call, match):
    with pytest.raises(ValueError, match=match):
        call()
