"""InfoNCE against the official numbers, in chunks, with a learned temperature, and its faults."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from hf_jepa.objectives import InfoNCE, contrast, info_nce, nt_xent


def plain(a, b, temperature):
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    labels = torch.arange(len(a))
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))


@pytest.mark.parametrize(("case", "temperature"), [("t0", 0.07), ("t1", 0.2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_loss_and_gradients(golden_dir, case, temperature, dtype):
    golden = load_file(golden_dir / "infonce.safetensors")
    suffix, tolerance = ("_f64", 1e-12) if dtype == torch.float64 else ("", 1e-5)
    a, b = (golden[name].to(dtype).clone().requires_grad_() for name in "ab")
    log_scale = torch.tensor(-math.log(temperature), dtype=dtype, requires_grad=True)
    loss = info_nce(a, b, torch.exp(-log_scale))
    loss.backward()
    found = {"loss": loss.detach(), "grad_a": a.grad, "grad_b": b.grad, "grad_log_scale": log_scale.grad}
    for name, value in found.items():
        torch.testing.assert_close(value, golden[f"{case}/{name}{suffix}"], rtol=tolerance, atol=tolerance / 10)
    torch.testing.assert_close(info_nce(a, b, temperature), loss)
    for direction, name in (("predicted_to_target", "a_to_b"), ("target_to_predicted", "b_to_a")):
        one = info_nce(a, b, temperature, direction)
        recorded = golden[f"{case}/loss_{name}_f64"].to(dtype)
        torch.testing.assert_close(one.detach(), recorded, rtol=tolerance, atol=0)


def test_official_nt_xent(golden_dir):
    golden = load_file(golden_dir / "infonce.safetensors")
    value = nt_xent(golden["a"].double(), golden["b"].double(), 0.5)
    assert value.item() == pytest.approx(golden["ntxent_t0.5_f64"].item(), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 35, 1 << 21])
@pytest.mark.parametrize("objective", [info_nce, nt_xent])
def test_chunks_do_not_change_value_or_gradient(monkeypatch, objective, chunk):
    a, b = torch.randn(2, 11, 5, dtype=torch.float64).requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    whole = objective(a, b, temperature)
    expected = torch.autograd.grad(whole, (a, b, temperature))
    monkeypatch.setattr(contrast, "_CHUNK_ELEMENTS", chunk)
    parts = objective(a, b, temperature)
    torch.testing.assert_close(parts, whole)
    for ours, reference in zip(torch.autograd.grad(parts, (a, b, temperature)), expected, strict=True):
        torch.testing.assert_close(ours, reference)
    if chunk == 35:
        inputs = [tensor.detach().requires_grad_() for tensor in (a, b, temperature)]
        assert torch.autograd.gradcheck(objective, inputs, fast_mode=True)


def test_equals_the_plain_formula_and_survives_low_temperature():
    a, b = torch.randn(2, 40, 16).unbind()
    torch.testing.assert_close(info_nce(a, b, 0.01), plain(a.double(), b.double(), 0.01).float(), rtol=1e-5, atol=0)
    # Logits of +-10^4: probabilities are 0 or 1, and nothing overflows.
    a.requires_grad_()
    loss = info_nce(a, b, 1e-4)
    loss.backward()
    assert loss.isfinite()
    assert a.grad.isfinite().all()
    assert info_nce(b, b, 1e-4).item() == 0


def test_half_precision_and_autocast():
    a, b = torch.randn(2, 16, 8).bfloat16().unbind()
    expected = plain(a.float(), b.float(), 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(a, b)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, expected, rtol=1e-5, atol=0)
    assert info_nce(a.half(), b.half()).isfinite()


def test_detached_target_gets_no_gradient():
    a, b = (torch.randn(6, 4).requires_grad_() for _ in range(2))
    info_nce(a, b.detach()).backward()
    (expected,) = torch.autograd.grad(plain(a, b.detach(), 0.07), a)
    torch.testing.assert_close(a.grad, expected, rtol=1e-4, atol=1e-6)
    assert b.grad is None


def test_module_learns_its_temperature_and_comes_back_from_the_limit():
    objective = InfoNCE(temperature=0.5)
    a = torch.randn(8, 4)
    b = torch.randn(8, 4)
    objective(a, a + 0.01 * b).backward()
    assert objective.logit_scale.grad < 0
    with torch.no_grad():
        objective.logit_scale.fill_(9.0)
    objective.zero_grad()
    loss = objective(a, b)
    assert objective.logit_scale.exp().item() == pytest.approx(100)
    torch.testing.assert_close(loss, plain(a, b, 0.01), rtol=1e-5, atol=0)
    loss.backward()
    # Unrelated pairs want a higher temperature, and the clamped parameter still hears of it.
    assert objective.logit_scale.grad > 0
    assert list(InfoNCE(learnable=False).state_dict()) == ["logit_scale"]
    assert not InfoNCE(learnable=False).logit_scale.requires_grad
    one_way = InfoNCE(temperature=0.2, direction="predicted_to_target")(a, b)
    torch.testing.assert_close(one_way, info_nce(a, b, 0.2, "predicted_to_target"))


def test_faults():
    a, b = torch.randn(2, 5, 4).unbind()
    for wrong in (b[:4], b[:, :3], b[None]):
        with pytest.raises(ValueError, match="one shape"):
            info_nce(a, wrong)
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        info_nce(a[:1], b[:1])
    for empty in (torch.ones(0, 4), torch.ones(4, 0)):
        with pytest.raises(ValueError, match="none of them zero"):
            nt_xent(empty, empty)
    with pytest.raises(ValueError, match="floating point"):
        info_nce(a.long(), b.long())
    with pytest.raises(ValueError, match="NaN or infinite"):
        info_nce(a / 0, b)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`temperature` must be positive"):
            info_nce(a, b, temperature)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        info_nce(a, b, torch.tensor(0.0))
    with pytest.raises(ValueError, match="one floating-point number"):
        info_nce(a, b, torch.ones(2))
    with pytest.raises(ValueError, match="`direction` must be"):
        info_nce(a, b, 0.07, "forward")
    with pytest.raises(ValueError, match="at least 1 / max_scale"):
        InfoNCE(temperature=0.001)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(info_nce(a.requires_grad_(), b), a, create_graph=True)


@pytest.mark.parametrize("direction", ["both", "predicted_to_target", "target_to_predicted"])
@pytest.mark.parametrize("chunk", [1, 1 << 21])
def test_pairs_of_one_target_are_no_negatives(monkeypatch, direction, chunk):
    monkeypatch.setattr(contrast, "_CHUNK_ELEMENTS", chunk)
    a, b = torch.randn(2, 5, 4, dtype=torch.float64).requires_grad_()
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([3, 1, 3, 2, 1])
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    same = (ids[:, None] == ids) & ~torch.eye(5, dtype=torch.bool)
    logits = logits.masked_fill(same, -torch.inf)
    labels = torch.arange(5)
    rows, columns = F.cross_entropy(logits, labels), F.cross_entropy(logits.T, labels)
    expected = {"both": (rows + columns) / 2, "predicted_to_target": rows, "target_to_predicted": columns}[direction]
    found = info_nce(a, b, temperature, direction, ids)
    torch.testing.assert_close(found, expected)
    inputs = (a, b, temperature)
    for ours, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, other)
    # Where all share one target nothing is left to tell apart.
    assert info_nce(a, b, temperature, direction, torch.zeros_like(ids)).item() == 0


def test_target_ids_of_another_shape_are_refused():
    a = torch.randn(3, 4)
    for ids in (torch.zeros(2, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ValueError, match="`target_ids` must be int64 of shape"):
            info_nce(a, a, target_ids=ids)
