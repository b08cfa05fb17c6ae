"""SIGReg against the official numbers, its known constants, its precision and memory, and its faults."""

import contextlib
import copy
import math

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.objectives import SIGReg, collapse_ratio, epps_pulley, random_directions, sigreg
from hf_jepa.objectives.characteristic import _plain_sums, characteristic_sums
from hf_jepa.objectives.sigreg import _grid, logger

CASES = ("gaussian", "collapsed", "zero", "heavytail", "shifted")


def unit_rows(num_slices, width, seed=0, dtype=torch.float32):
    directions = random_directions(num_slices, width, torch.Generator().manual_seed(seed)).to(dtype)
    return directions / directions.norm(dim=1, keepdim=True)


def value_and_gradient(function, embeddings):
    embeddings = embeddings.clone().requires_grad_()
    value = function(embeddings)
    return value.detach(), torch.autograd.grad(value, embeddings)[0]


@pytest.mark.parametrize(("name", "grid"), [("default", {}), ("nondefault", {"t_max": 5.0, "num_points": 33})])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "suffix", "rtol", "atol"),
    # `_f64` is the official module cast up, with float32-rounded buffers; `_f64exact` has them recomputed.
    [
        (torch.float32, "", 2e-5, 1e-6),
        (torch.float64, "_f64", 2e-6, 1e-8),
        (torch.float64, "_f64exact", 1e-10, 1e-14),
    ],
)
def test_official_statistic_and_gradient(golden_dir, name, grid, case, dtype, suffix, rtol, atol):
    golden = load_file(golden_dir / f"sigreg_{name}.safetensors")
    z, directions = golden[f"{case}/z"].to(dtype), golden[f"{case}/directions"].to(dtype)
    value, gradient = value_and_gradient(lambda z: sigreg(z, directions, **grid), z)
    close = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(epps_pulley(z, directions, **grid), golden[f"{case}/statistic{suffix}"], **close)
    torch.testing.assert_close(value, golden[f"{case}/sigreg{suffix}"], **close)
    torch.testing.assert_close(gradient, golden[f"{case}/grad_z{suffix}"], **close)


@pytest.mark.parametrize(("name", "grid"), [("default", {}), ("nondefault", {"t_max": 5.0, "num_points": 33})])
def test_official_sum_and_clipping_follow_from_the_statistic(golden_dir, name, grid):
    golden = load_file(golden_dir / f"sigreg_{name}.safetensors")
    z, directions = golden["gaussian/z"], golden["gaussian/directions"]
    torch.testing.assert_close(epps_pulley(z, directions, **grid).sum(), golden["gaussian/sigreg_sum"])

    def clipped(z):
        statistic = epps_pulley(z, directions, **grid)
        return statistic.where(statistic >= golden["gaussian/clip_value"], 0.0).mean()

    value, gradient = value_and_gradient(clipped, z)
    torch.testing.assert_close(value, golden["gaussian/sigreg_clipped"])
    torch.testing.assert_close(gradient, golden["gaussian/grad_z_clipped"], rtol=1e-5, atol=1e-7)


def test_minimal_md_is_per_view(golden_dir):
    golden = load_file(golden_dir / "sigreg_minimal.safetensors")
    proj, directions = golden["proj"], golden["directions"]
    value, gradient = value_and_gradient(lambda z: sigreg(z, directions), proj)
    torch.testing.assert_close(value, golden["sigreg"])
    torch.testing.assert_close(gradient, golden["grad_proj"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(epps_pulley(proj, directions), golden["statistic_per_view"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sigreg(proj, directions, flatten_views=True), golden["sigreg_if_views_were_flattened"])
    value, gradient = value_and_gradient(lambda z: sigreg(z, directions.double()), proj.double())
    torch.testing.assert_close(value, golden["sigreg_f64exact"], rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, golden["grad_proj_f64exact"], rtol=1e-10, atol=1e-14)


def test_eb_jepa_is_the_symmetric_grid_without_the_factor_n(golden_dir):
    golden = load_file(golden_dir / "sigreg_eb_jepa.safetensors")
    default = {"form": "paper", "t_max": 3, "num_points": 10, "scale_by_batch": False}
    views = torch.stack([golden["z1"], golden["z2"]])
    for grid, name in ((default, "default"), ({"form": "paper", "scale_by_batch": False}, "alternative")):
        expected = torch.stack([golden[f"statistic1_{name}"], golden[f"statistic2_{name}"]])
        torch.testing.assert_close(epps_pulley(views, golden["directions"], **grid), expected, rtol=1e-5, atol=1e-8)
    value = sigreg(views, golden["directions"], **default)
    torch.testing.assert_close(value, golden["bcs_loss"])

    def loss(views):
        return (views[0] - views[1]).square().mean() + 10 * sigreg(views, golden["directions"], **default)

    value, gradient = value_and_gradient(loss, views)
    torch.testing.assert_close(value, golden["loss"])
    torch.testing.assert_close(gradient, torch.stack([golden["grad_z1"], golden["grad_z2"]]), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("code", ["minimal", "lightly", "stable_pretraining"])
def test_lejepa_totals_of_three_code_bases(golden_dir, code):
    golden = load_file(golden_dir / f"lejepa_{code}.safetensors")
    directions = golden["directions"]
    weight, convex = {"minimal": (0.02, True), "lightly": (0.05, True), "stable_pretraining": (0.02, False)}[code]
    flatten = code == "stable_pretraining"
    torch.testing.assert_close(sigreg(golden["proj"], directions, flatten_views=flatten), golden["sigreg_loss"])

    def total(z):
        invariance = (z - z[: None if code == "minimal" else 2].mean(0)).square().mean()
        return (1 - weight * convex) * invariance + weight * sigreg(z, directions, flatten_views=flatten)

    value, gradient = value_and_gradient(total, golden["proj"])
    torch.testing.assert_close(value, golden["lejepa_loss" if code == "minimal" else "loss"])
    torch.testing.assert_close(gradient, golden["grad_total"], rtol=1e-5, atol=1e-8)


def table_inputs():
    i, j = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
    x = 1.2 * torch.sin(0.7 * i + 1.3 * j + 0.31 * i * j)
    y = x + 0.1 * torch.sin(0.4 * i + 1.3 * j + 0.9 * i * j)
    r, s = torch.arange(4, dtype=torch.float64)[:, None], torch.arange(3, dtype=torch.float64)
    columns = torch.cos(0.9 * (3 * r + s))
    return x, y, (columns / columns.norm(dim=0)).T


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 3e-7), (torch.float64, 1e-7)])
def test_numbers_without_a_random_generator(dtype, atol):
    x, y, directions = (tensor.to(dtype) for tensor in table_inputs())
    both = torch.stack([x, y])
    torch.testing.assert_close(
        epps_pulley(x, directions), torch.tensor([0.3989446, 0.3369081, 0.2980431]).to(dtype), rtol=0, atol=atol
    )
    _, gradient = value_and_gradient(lambda x: sigreg(x, directions), x)
    torch.testing.assert_close(
        gradient[0], torch.tensor([-0.0411968, 0.0084653, 0.0258902, -0.0552786]).to(dtype), rtol=0, atol=atol
    )
    eb_jepa = {"form": "paper", "t_max": 3, "num_points": 10, "scale_by_batch": False}
    for value, expected in (
        (sigreg(x, directions), 0.3446319),
        (gradient.norm(), 0.6425428),
        (sigreg(y, directions), 0.4037098),
        (sigreg(both, directions), 0.3741709),
        (sigreg(both, directions, flatten_views=True), 0.7436110),
        (sigreg(x, directions, form="paper"), 0.3557967),
        (sigreg(x, directions, **eb_jepa), 0.0428920),
    ):
        assert value.item() == pytest.approx(expected, abs=atol)
    v = torch.linspace(-2, 2, 9, dtype=dtype)
    columns = torch.stack([v, 2 * v, v + 1, 0 * v], dim=1)
    expected = torch.tensor([1.034786, 6.247851, 3.241876, 3.618428]).to(dtype)
    torch.testing.assert_close(epps_pulley(columns, torch.eye(4, dtype=dtype)), expected, rtol=0, atol=2e-6)


def test_survey_form_is_its_formula():
    x, _, directions = table_inputs()
    t = 2.5 * torch.arange(9, dtype=torch.float64) / 8
    function = torch.exp(1j * t[:, None, None] * (x @ directions.T)).mean(1)
    expected = (function - torch.exp(-t.square() / 2)[:, None]).abs().square().sum(0)
    torch.testing.assert_close(epps_pulley(x, directions, 2.5, 9, "survey"), expected)
    scaled = epps_pulley(x, directions, 2.5, 9, "survey", scale_by_batch=True)
    torch.testing.assert_close(scaled, 8 * expected)


def test_package_weights_and_constants():
    expected = [0.3684658, 0.3495384, 0.3201286, 0.2830648, 0.2416458, 0.1991610, 0.1584752, 0.1217447]
    expected += [0.0902964, 0.0646581, 0.0447000, 0.0298348, 0.0192252, 0.0119605, 0.0071839, 0.0020829]
    assert _grid("package", None, None)[2] == pytest.approx(expected, abs=1e-7)
    # Expected statistic of an i.i.d. normal batch of any size and width; the term at t = 0 is zero.
    levels = {(1, 17): 0.38459, (3, 5): 1.04968, (3, 17): 1.05246, (3, 41): 1.05263, (5, 17): 1.05942}
    for (t_max, num_points), level in levels.items():
        first, step, weights = _grid("package", t_max, num_points)
        targets = [math.exp(-0.5 * (first + k * step) ** 2) for k in range(num_points - 1)]
        assert sum(w * (1 - p * p) for w, p in zip(weights, targets, strict=True)) == pytest.approx(level, abs=6e-6)
    zeros = torch.zeros(7, 3, dtype=torch.float64)
    for t_max, level in ((3, 0.40205), (5, 0.40892)):
        assert sigreg(zeros, torch.eye(3).double(), t_max, 17).item() / 7 == pytest.approx(level, abs=6e-6)
    # Half of the paper's symmetric grid.
    x, _, directions = table_inputs()
    torch.testing.assert_close(sigreg(x, directions, form="paper"), sigreg(x, directions, 5.0, 9))


def test_directions_and_values_of_the_package():
    drawn = random_directions(3, 4, torch.Generator().manual_seed(0))
    rows = [[0.886280, -0.192623, -0.808978], [0.326925, -0.711939, -0.519294]]
    rows += [[0.231979, 0.550126, -0.267058], [-0.231977, -0.391664, 0.067590]]
    torch.testing.assert_close(drawn.T, torch.tensor(rows), rtol=0, atol=1e-6)
    torch.manual_seed(0)
    embeddings, module = torch.randn(512, 64), SIGReg(256)
    values = [module(embeddings).item() for _ in range(3)]
    assert values == pytest.approx([1.160550, 1.065192, 1.293377], abs=2e-6)
    generator = torch.Generator().manual_seed(1)
    assert sigreg(embeddings, num_slices=256, generator=generator).item() == values[1]


def test_step_is_saved_and_counts_training_only():
    embeddings, module = torch.randn(2, 16, 5), SIGReg(8, form="paper", flatten_views=True)
    values = [module(embeddings) for _ in range(4)]
    assert module.global_step.dtype == torch.int64
    assert module.global_step.shape == ()
    resumed = SIGReg(8, form="paper", flatten_views=True)
    resumed(embeddings)
    resumed.load_state_dict({"global_step": torch.tensor(2)})
    assert torch.equal(resumed(embeddings), values[2])
    assert torch.equal(copy.deepcopy(resumed)(embeddings), values[3])
    resumed.eval()
    with torch.no_grad():
        assert torch.equal(resumed(embeddings), values[3])
        assert torch.equal(resumed(embeddings), values[3])
    assert resumed.state_dict()["global_step"] == 3
    expected = sigreg(embeddings, num_slices=8, generator=torch.Generator().manual_seed(3), form="paper")
    flattened = sigreg(embeddings.flatten(0, 1), unit_rows(8, 5, seed=3), form="paper")
    torch.testing.assert_close(values[3], flattened)
    assert not torch.allclose(values[3], expected)


@pytest.mark.parametrize("knots", [(0.1875, 0.1875, 16), (1 / 3, 2 / 3, 5), (0.7, 0.2, 1)])
def test_recurrence_equals_the_formula_over_many_blocks(knots):
    u = torch.randn(2, 150, 300, dtype=torch.float64)
    upstream = torch.randn(2, 2, knots[2], 300, dtype=torch.float64)
    results = [
        value_and_gradient(lambda u, f=f: (f(u, *knots) * upstream).sum(), u)
        for f in (characteristic_sums, _plain_sums)
    ]
    torch.testing.assert_close(characteristic_sums(u, *knots), _plain_sums(u, *knots), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", ["package", "paper"])
def test_first_and_second_derivatives(form):
    z = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    directions = unit_rows(4, 3, dtype=torch.float64)

    def function(z):
        return sigreg(z, directions, num_points=6, form=form)

    assert torch.autograd.gradcheck(function, z)
    assert torch.autograd.gradgradcheck(function, z)
    (expected,) = torch.autograd.grad(function(z), z)
    torch.testing.assert_close(torch.func.grad(function)(z.detach()), expected)


@pytest.mark.parametrize(("n", "width", "num_slices"), [(256, 64, 256), (96, 300, 200)])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.1, 0.0), (1.0, 0.5)])
def test_float32_is_as_exact_as_the_formula(n, width, num_slices, scale, shift):
    z, directions = scale * torch.randn(n, width) + shift, unit_rows(num_slices, width)
    truth, exact = value_and_gradient(lambda z: sigreg(z, directions.double()), z.double())
    t = torch.linspace(0, 3, 17)
    weights = 0.375 * torch.exp(-t.square() / 2)
    weights[-1] /= 2

    def formula(z):
        angles = (z @ directions.T).unsqueeze(-1) * t
        error = (angles.cos().mean(0) - torch.exp(-t.square() / 2)).square() + angles.sin().mean(0).square()
        return (error @ weights * len(z)).mean()

    value, gradient = value_and_gradient(lambda z: sigreg(z, directions), z)
    _, plain = value_and_gradient(formula, z)
    assert abs(value.double() / truth - 1) < 2e-7
    assert (gradient - exact).norm() < 1.3 * (plain - exact).norm()
    assert (gradient - exact).abs().max() < 1e-7


def test_half_precision_and_autocast_compute_in_float32():
    z, directions = torch.randn(64, 16).bfloat16(), unit_rows(32, 16)
    expected, gradient = value_and_gradient(lambda z: sigreg(z, directions), z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for inputs in (z, z.half(), z.float()):
            value = sigreg(inputs, directions)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
            module = SIGReg(32)(inputs)
            torch.testing.assert_close(module, expected, rtol=1e-6, atol=0)
    half = value_and_gradient(lambda z: sigreg(z, directions), z)[1]
    torch.testing.assert_close(half, gradient.bfloat16())


def test_nothing_of_the_grid_times_the_projections_is_kept_for_backward():
    z, directions = torch.randn(512, 32, requires_grad=True), unit_rows(256, 32)
    saved = 0

    def pack(tensor):
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sigreg(z, directions)
    assert saved < 1.6 * 512 * 256


def test_nothing_reads_values_off_the_cpu(monkeypatch):
    # Meta tensors have no values: whatever would make an accelerator wait raises here. Torch has no autocast for them.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    z = torch.randn(2, 16, 4, device="meta", requires_grad=True)
    (SIGReg(8)(z) + sigreg(z, torch.empty(8, 4, device="meta"), flatten_views=True)).backward()
    assert z.grad.shape == z.shape


@pytest.mark.parametrize(
    ("scales", "std", "condition"), [(torch.logspace(0, -1, 8), 0.95, 1.5), (torch.full((8,), 1e-3), 0.9, 5.0)]
)
def test_free_points_spread_to_a_round_cloud(scales, std, condition):
    z = (torch.randn(128, 8) * scales).requires_grad_()
    optimizer, module = torch.optim.SGD([z], lr=1.0, momentum=0.9), SIGReg(64)
    start = module(z.detach()).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = module(z)
        loss.backward()
        optimizer.step()
    assert loss < 0.5 < start
    assert (z.std(0) > std).all()
    eigenvalues = torch.linalg.eigvalsh(z.detach().T.cov())
    assert eigenvalues[-1] / eigenvalues[0] < condition


def test_lambda_rule():
    table = {0.05: 10.4, 0.02: 4.0, 0.005: 0.99, 0.001: 0.20, 0.0004: 0.08}
    for weight, ratio in table.items():
        assert collapse_ratio(weight, 128) == pytest.approx(ratio, rel=0.02)
    assert collapse_ratio(0.02, 256) == pytest.approx(8, rel=0.02)
    assert collapse_ratio(0.5, 128, convex=False) == pytest.approx(0.5 * 128 * 1.54604, rel=1e-5)
    assert collapse_ratio(1.0, 128) == math.inf
    eb_jepa = {"form": "paper", "t_max": 3, "num_points": 10, "scale_by_batch": False, "convex": False}
    assert collapse_ratio(10.0, 128, **eb_jepa) == collapse_ratio(10.0, 4096, **eb_jepa) > 10


@pytest.mark.parametrize(
    "arguments",
    [{}, {"form": "paper"}, {"form": "survey"}, {"flatten_views": True}, {"t_max": 2.0, "scale_by_batch": False}],
)
def test_lambda_rule_is_where_a_small_cloud_neither_grows_nor_shrinks(arguments):
    views = 1e-3 * torch.randn(3, 1, 10, 4, dtype=torch.float64).expand(-1, -1, -1, -1).squeeze(1)
    views = views - views.mean((0, 1))
    views = views - views.mean(1, keepdim=True)
    centre = views.mean(0)
    directions = torch.eye(4, dtype=torch.float64)  # an orthonormal set averages exactly as all directions do
    grid = {name: value for name, value in arguments.items() if name != "flatten_views"}
    n = 30 if arguments.get("flatten_views") else 10
    _, push = value_and_gradient(lambda z: sigreg(z, directions, **arguments), views)
    _, pull = value_and_gradient(lambda z: (z - z.mean(0)).square().mean(), views)
    weight = 0.1
    pushed = weight * (push * views).sum() / views.square().sum()
    pulled = (1 - weight) * (pull * views).sum() / (views - centre).square().sum()
    assert -(pushed / pulled).item() == pytest.approx(collapse_ratio(weight, n, **grid), rel=1e-4)


def test_vanishing_gradient_is_said(monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning_once", said.append)
    directions = unit_rows(8, 4)
    sigreg(torch.randn(16, 4), directions)
    sigreg(1e-3 * torch.randn(16, 4), directions)
    assert not said
    sigreg(1e-6 * torch.randn(2, 16, 4), directions)
    assert "gradient" in said[0]
    SIGReg(8)(5 + 1e-6 * torch.randn(16, 4))
    assert len(said) == 2


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.ones(4, 3, dtype=torch.int64), "int64"),
        (torch.randn(1, 3), "at least 2"),
        (torch.randn(2, 1, 3), "at least 2"),
        (torch.randn(0, 3), "zero"),
        (torch.randn(4, 0), "zero"),
        (torch.randn(3), "shape"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "NaN"),
        (torch.tensor([[1.0, -float("inf")], [0.0, 1.0]]), "infinit"),
    ],
)
def test_bad_embeddings(embeddings, message):
    width = max(1, embeddings.shape[-1])
    with pytest.raises(ValueError, match=message):
        sigreg(embeddings, unit_rows(4, width))
    with pytest.raises(ValueError, match=message):
        SIGReg(4)(embeddings)


def test_bad_arguments():
    z = torch.randn(4, 3)
    for directions, message in (
        (2 * torch.eye(3), "unit"),
        (torch.full((2, 3), float("nan")), "unit"),
        (torch.eye(4), r"\(num_directions, 3\)"),
        (torch.eye(3)[0], r"\(num_directions, 3\)"),
        (torch.eye(3).expand(2, 3, 3), r"\(S, D\)"),
        (torch.eye(3, dtype=torch.int64), "floating"),
        (None, "generator"),
    ):
        with pytest.raises(ValueError, match=message):
            sigreg(z, directions)
    for arguments, message in (
        ({"form": "lejepa"}, "lejepa"),
        ({"t_max": 0.0}, "t_max"),
        ({"t_max": math.nan}, "t_max"),
        ({"num_points": 1}, "num_points"),
    ):
        for function in (lambda a: sigreg(z, torch.eye(3), **a), lambda a: SIGReg(4, **a)):
            with pytest.raises(ValueError, match=message):
                function(arguments)
    with pytest.raises(ValueError, match="num_slices"):
        SIGReg(0)
    for weight, batch_size, convex in ((-0.1, 8, True), (1.1, 8, True), (math.nan, 8, False), (0.1, 1, True)):
        with pytest.raises(ValueError, match="at least"):
            collapse_ratio(weight, batch_size, convex=convex)
