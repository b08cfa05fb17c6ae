"""The attention that pretraining uses by default."""

import pytest
import torch
import torch.nn.functional as F

from hf_jepa import attention
from hf_jepa.attention import measured_attention_forward

MODULE = torch.nn.Identity()
MODULE.is_causal = False


def heads(queries: int, keys: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    # As models have them: heads transposed out of the tokens' features.
    return [
        torch.randn(3, tokens, 4, 16, dtype=dtype).transpose(1, 2).requires_grad_() for tokens in (queries, keys, keys)
    ]


@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (40, 40), (13, 40)])
@pytest.mark.parametrize("cached_scores", [2**19, 500, 1])
def test_bf16_on_cpu_agrees_with_float32(monkeypatch, queries, keys, cached_scores):
    monkeypatch.setattr(attention, "_CACHED_SCORES", cached_scores)
    inputs = heads(queries, keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, weights = measured_attention_forward(MODULE, *inputs, None)
    assert weights is None
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    reference = F.scaled_dot_product_attention(*exact).transpose(1, 2)
    torch.testing.assert_close(ours.float(), reference, atol=0.03, rtol=0.03)
    direction = torch.randn_like(reference)
    gradients = torch.autograd.grad(ours, inputs, direction.to(torch.bfloat16))
    for gradient, expected in zip(gradients, torch.autograd.grad(reference, exact, direction), strict=True):
        torch.testing.assert_close(gradient.float(), expected, atol=0.05, rtol=0.05)


def test_head_by_head_is_exact_in_its_gradient(monkeypatch):
    monkeypatch.setattr(attention, "_CACHED_SCORES", 70)
    inputs = [torch.randn(5, n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 7, 7)]
    assert torch.autograd.gradcheck(lambda *tensors: attention._HeadByHeadAttention.apply(*tensors, 0.3), inputs)
    output = attention._HeadByHeadAttention.apply(*inputs, 0.3)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*inputs, scale=0.3))


def test_many_scores_are_not_kept_for_the_backward_pass(monkeypatch):
    saved = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape)
        return tensor

    for cached_scores, is_kept in ((2**19, True), (500, False)):
        monkeypatch.setattr(attention, "_CACHED_SCORES", cached_scores)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            measured_attention_forward(MODULE, *heads(40, 40), None)
        assert any(shape[-2:] == (40, 40) for shape in saved) is is_kept


def test_scale_and_dropout(monkeypatch):
    monkeypatch.setattr(attention, "_CACHED_SCORES", 1)
    inputs = heads(40, 40)
    ours, _ = measured_attention_forward(MODULE, *inputs, None, scaling=0.5)
    reference = F.scaled_dot_product_attention(*(tensor.float() for tensor in inputs), scale=0.5).transpose(1, 2)
    torch.testing.assert_close(ours.float(), reference, atol=0.03, rtol=0.03)
    dropped, _ = measured_attention_forward(MODULE.train(), *inputs, None, scaling=0.5, dropout=0.5)
    assert (dropped.float() - reference).abs().max() > 0.1


def test_other_types_and_masks_take_the_fused_kernel():
    inputs = heads(9, 9, torch.float32)
    ours, _ = measured_attention_forward(MODULE, *inputs, None)
    assert torch.equal(ours, F.scaled_dot_product_attention(*inputs).transpose(1, 2))
    inputs, mask = heads(9, 9), torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[..., :3] = True
    ours, _ = measured_attention_forward(MODULE, *inputs, mask)
    reference = F.scaled_dot_product_attention(*(tensor.float() for tensor in inputs), attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(ours.float(), reference, atol=0.03, rtol=0.03)
