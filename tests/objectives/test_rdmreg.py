"""RDMReg against the official numbers, its memory, its module and its faults."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from hf_jepa.objectives import RDMReg, rdmreg, rgg_samples
from hf_jepa.objectives.rdmreg import singular_directions


def plain(z, targets, directions):
    """The formula, differentiated by autograd."""
    difference = (z @ directions.T).sort(dim=0).values - (targets @ directions.T).sort(dim=0).values
    return difference.square().mean()


def problem(n=13, width=6, num_directions=9, dtype=torch.float32):
    z = torch.randn(n, width, dtype=dtype).relu().requires_grad_()
    return z, torch.randn(n, width, dtype=dtype).relu(), F.normalize(torch.randn(num_directions, width, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_loss_and_gradients(golden_dir, dtype):
    golden = load_file(golden_dir / "rdmreg_swd.safetensors")
    suffix, tolerance = ("_f64", 1e-12) if dtype == torch.float64 else ("", 1e-6)
    z = torch.stack([golden["z1"], golden["z2"]]).to(dtype).requires_grad_()
    targets = torch.stack([golden["target1_unrectified"], golden["target2_unrectified"]]).to(dtype)
    directions = golden["projections"].to(dtype)
    loss = rdmreg(z, targets.relu(), directions)
    loss.backward()
    torch.testing.assert_close(loss.detach(), golden[f"reg_loss{suffix}"], rtol=tolerance, atol=tolerance)
    for gradient, view in zip(z.grad, (1, 2), strict=True):
        torch.testing.assert_close(gradient, golden[f"grad_reg_z{view}{suffix}"], rtol=tolerance, atol=tolerance)
    per_direction = [
        [rdmreg(view, target, direction[None]) for view, target in zip(z.detach(), targets.relu(), strict=True)]
        for direction in directions
    ]
    torch.testing.assert_close(
        torch.tensor(per_direction, dtype=dtype), golden[f"w2sq_per_direction{suffix}"], rtol=tolerance, atol=1e-6
    )
    total = 25 * F.mse_loss(z[0], z[1]) + 125 * loss
    torch.testing.assert_close(total.detach(), golden[f"total_loss{suffix}"], rtol=1e-6, atol=0)
    if dtype == torch.float32:
        unrectified = rdmreg(z, targets, directions).detach()
        torch.testing.assert_close(unrectified, golden["reg_loss_unrectified_target"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "first"), [("svd_and_random", 0), ("svd_bottom_half_eigen_and_random", 5)])
def test_official_singular_directions(golden_dir, name, first):
    golden = load_file(golden_dir / "rdmreg_swd.safetensors")
    z = torch.stack([golden["z1"], golden["z2"]])
    targets = torch.stack([golden["target1_unrectified"], golden["target2_unrectified"]]).relu()
    random = golden[f"torch_{name}/random_part"].expand(2, -1, -1)
    directions = torch.cat([singular_directions(z)[:, first:], random], dim=1)
    loss = rdmreg(z, targets, directions)
    torch.testing.assert_close(loss, golden[f"torch_{name}/reg_loss"], rtol=1e-5, atol=1e-6)


def test_ties(golden_dir):
    golden = load_file(golden_dir / "rdmreg_ties.safetensors")
    z = golden["z"].requires_grad_()
    targets, directions = golden["target_unrectified"].relu(), golden["projections"]
    loss = rdmreg(z, targets, directions)
    loss.backward()
    torch.testing.assert_close(loss.detach(), golden["loss"], rtol=1e-5, atol=0)
    groups = [[2, 5, 7], [3, 9, 10]]
    sums = torch.stack([z.grad[group].sum(dim=0) for group in groups])
    torch.testing.assert_close(sums, golden["grad_group_sum"], rtol=1e-5, atol=1e-7)
    untied = [row for row in range(12) if row not in sum(groups, [])]
    torch.testing.assert_close(z.grad[untied], golden["grad_untied_rows"], rtol=1e-5, atol=1e-7)
    zero = torch.zeros_like(z).requires_grad_()
    loss = rdmreg(zero, targets, directions)
    loss.backward()
    torch.testing.assert_close(loss.detach(), golden["loss_all_zero_z"], rtol=1e-5, atol=0)
    torch.testing.assert_close(zero.grad.sum(dim=0), golden["grad_sum_all_zero_z"], rtol=1e-5, atol=1e-7)


def test_published_example():
    i, j = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
    x = (1.2 * torch.sin(0.7 * i + 1.3 * j + 0.31 * i * j)).float().relu()
    targets = (1.5 * torch.sin(1.1 * i + 1.3 * j + 0.57 * i * j)).float().relu()
    directions = F.normalize(torch.cos(0.9 * (3 * torch.arange(4)[:, None] + torch.arange(3))), dim=0).T
    values = [rdmreg(x, targets, row[None]).item() for row in directions]
    assert values == pytest.approx([0.1035625, 0.0703428, 0.0426993], abs=1e-6)
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(16, 4), dim=1)
    torch.manual_seed(1)
    assert rdmreg(x, rgg_samples((8, 4), 1.0), directions).item() == pytest.approx(0.1418816, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 17])
def test_chunks_equal_the_plain_formula(monkeypatch, chunk):
    monkeypatch.setitem(sys.modules["hf_jepa.objectives.sliced_wasserstein"]._CHUNK_ELEMENTS, "cpu", chunk)
    z, targets, directions = problem(dtype=torch.float64)
    loss = rdmreg(z, targets, directions)
    (ours,) = torch.autograd.grad(3 * loss, z)
    (expected,) = torch.autograd.grad(3 * plain(z, targets, directions), z)
    torch.testing.assert_close(loss.detach(), plain(z, targets, directions).detach())
    torch.testing.assert_close(ours, expected)
    generic = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rdmreg(x, targets, directions), generic)


def test_half_precision_is_sorted_in_float32():
    z, targets, directions = problem(n=64)
    expected = rdmreg(z.half().float(), targets, directions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rdmreg(z.half(), targets, directions)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, expected)
    assert rdmreg(z.double(), targets, directions).dtype == torch.float64


def test_a_second_derivative_is_refused():
    z, targets, directions = problem()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(rdmreg(z, targets, directions), z, create_graph=True)


def test_module_draws_by_step_and_resumes():
    views = torch.randn(2, 32, 8).relu()
    objective, twin = RDMReg(num_projections=16), RDMReg(num_projections=16)
    values = [objective(views).item() for _ in range(3)]
    assert len(set(values)) == 3
    assert values == [twin(views).item() for _ in range(3)]
    resumed = RDMReg(num_projections=16)
    resumed.load_state_dict(objective.state_dict())
    assert resumed.global_step.dtype == torch.int64
    assert resumed.global_step.item() == 3
    assert resumed(views).item() == objective(views).item()
    step = objective.eval().global_step.item()
    assert objective(views).item() == objective(views).item()
    assert objective.global_step.item() == step


def test_module_follows_the_released_code():
    views = torch.randn(2, 12, 8, dtype=torch.float64).relu()
    objective = RDMReg(p=0.7, mu=-0.3, sigma="rgn", num_projections=16)
    objective.global_step.fill_(11)
    generator = torch.Generator().manual_seed(11)
    directions = F.normalize(torch.randn(16, 8, generator=generator), dim=1).double()
    targets = rgg_samples((2, 12, 8), 0.7, -0.3, "rgn", generator, dtype=torch.float64)
    assert not torch.equal(targets[0], targets[1])
    torch.testing.assert_close(objective(views), rdmreg(views, targets, directions))
    assert (rgg_samples((99,), 1.0, rectify=False) < 0).any()
    assert RDMReg(num_projections=16, rectify=False)(views) != RDMReg(num_projections=16)(views)


@pytest.mark.parametrize(("projection", "first"), [("svd_random", 0), ("svd_bottom_half_random", 4)])
def test_module_with_singular_directions(projection, first):
    views = torch.randn(2, 12, 8, dtype=torch.float64).relu().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    random = F.normalize(torch.randn(8, 8, generator=generator), dim=1).double().expand(2, -1, -1)
    directions = torch.cat([singular_directions(views.detach())[:, first:], random], dim=1)
    expected = rdmreg(views, rgg_samples((2, 12, 8), 1.0, generator=generator, dtype=torch.float64), directions)
    torch.testing.assert_close(RDMReg(num_projections=16, projection=projection)(views), expected)
    assert RDMReg(num_projections=3, projection=projection)(views).isfinite()


def test_collapse_costs_more_than_the_target_itself():
    objective = RDMReg(num_projections=64).eval()
    drawn = rgg_samples((64, 32), 1.0, generator=torch.Generator().manual_seed(9))
    assert objective(drawn) < 0.1 < 0.3 < objective(torch.zeros(64, 32))


def test_faults():
    z, targets, directions = problem()
    for wrong in (z.detach().round().long(), torch.ones(4, 6, dtype=torch.int32)):
        with pytest.raises(ValueError, match="floating point"):
            rdmreg(wrong, targets, directions)
    with pytest.raises(ValueError, match="at least 2 embeddings, got 1"):
        rdmreg(z[:1], targets[:1], directions)
    with pytest.raises(ValueError, match="at least 2 embeddings, got 1"):
        RDMReg(num_projections=4)(torch.ones(2, 1, 6))
    for empty in (torch.ones(0, 6), torch.ones(4, 0), torch.ones(6)):
        with pytest.raises(ValueError, match="none of them zero"):
            rdmreg(empty, targets, directions)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            rdmreg(z.detach().clone().fill_(value), targets, directions)
    with pytest.raises(ValueError, match="Target samples hold NaN"):
        rdmreg(z, targets / 0, directions)
    with pytest.raises(ValueError, match="unit rows"):
        rdmreg(z, targets, 2 * directions)
    with pytest.raises(ValueError, match="unit rows"):
        rdmreg(z, targets, directions * float("nan"))
    with pytest.raises(ValueError, match=r"shape \(num_directions, 6\)"):
        rdmreg(z, targets, directions[:, :5])
    with pytest.raises(ValueError, match="constant"):
        rdmreg(z, targets, directions.clone().requires_grad_())
    with pytest.raises(ValueError, match="detach"):
        rdmreg(z, z, directions)
    with pytest.raises(ValueError, match="12 target samples for 13"):
        rdmreg(z, targets[:12], directions)
    with pytest.raises(ValueError, match="do not fit"):
        rdmreg(z.expand(2, -1, -1), targets, directions)
    with pytest.raises(ValueError, match="other views"):
        rdmreg(z.expand(2, -1, -1), targets.expand(2, -1, -1), directions.expand(3, -1, -1))
    for arguments in ({"num_projections": 0}, {"projection": "qr"}, {"p": 0.0}, {"sigma": "none"}):
        with pytest.raises(ValueError, match="must be"):
            RDMReg(**arguments)
