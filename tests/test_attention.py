"""The attention for bfloat16 on CPUs, for those who ask for it."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaModel

from hf_jepa import attention
from hf_jepa.attention import cpu_bf16_attention_forward

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
        ours, weights = cpu_bf16_attention_forward(MODULE, *inputs, None)
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
            cpu_bf16_attention_forward(MODULE, *heads(40, 40), None)
        assert any(shape[-2:] == (40, 40) for shape in saved) is is_kept


def test_scale_and_dropout(monkeypatch):
    monkeypatch.setattr(attention, "_CACHED_SCORES", 1)
    inputs = heads(40, 40)
    ours, _ = cpu_bf16_attention_forward(MODULE, *inputs, None, scaling=0.5)
    reference = F.scaled_dot_product_attention(*(tensor.float() for tensor in inputs), scale=0.5).transpose(1, 2)
    torch.testing.assert_close(ours.float(), reference, atol=0.03, rtol=0.03)
    dropped, _ = cpu_bf16_attention_forward(MODULE.train(), *inputs, None, scaling=0.5, dropout=0.5)
    assert (dropped.float() - reference).abs().max() > 0.1


CAUSAL = torch.nn.Identity()  # transformers takes a module that does not say as causal
MASK = torch.arange(9) < 3


@pytest.mark.parametrize(
    ("module", "dtype", "mask", "options"),
    [
        (MODULE, torch.float32, None, {}),
        (MODULE, torch.bfloat16, MASK.expand(1, 1, 9, 9), {}),
        (CAUSAL, torch.bfloat16, None, {}),
        (MODULE, torch.bfloat16, None, {"is_causal": True}),
        (MODULE, torch.bfloat16, None, {"position_bias": torch.randn(1, 4, 9, 9, dtype=torch.bfloat16)}),
    ],
    ids=["float32", "mask", "causal module", "causal call", "position bias"],
)
def test_everything_else_is_sdpa(module, dtype, mask, options):
    inputs = heads(9, 9, dtype)
    ours, _ = cpu_bf16_attention_forward(module, *inputs, mask, **options)
    expected, _ = attention.sdpa_attention_forward(module, *inputs, mask, **options)
    assert torch.equal(ours, expected)
    everything = F.scaled_dot_product_attention(*inputs).transpose(1, 2)
    assert torch.allclose(ours, everything, atol=0.03, rtol=0.03) is (dtype == torch.float32)
    with pytest.raises(ValueError, match="softcap"):
        cpu_bf16_attention_forward(module, *inputs, mask, softcap=1.0)


def test_a_decoder_with_shared_keys_stays_causal():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 11}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    model = LlamaModel._from_config(config, attn_implementation="cpu_bf16", dtype=torch.bfloat16).eval()
    for ids in (torch.arange(8)[None], torch.tensor([[3]])):
        states = []
        for implementation in ("cpu_bf16", "sdpa"):
            model.set_attn_implementation(implementation)
            states.append(model(ids).last_hidden_state)
        assert torch.equal(*states)


def test_on_another_device_it_says_that_it_is_sdpa(monkeypatch):
    said = []
    monkeypatch.setattr(attention.logger, "warning_once", said.append)
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *args, **options: ("sdpa", None))
    queries = torch.empty(1, 2, 3, 4, dtype=torch.bfloat16, device="meta")
    assert cpu_bf16_attention_forward(MODULE, queries, queries, queries, None)[0] == "sdpa"
    assert not said

    class OnGpu(torch.Tensor):
        device = torch.device("cuda")

    queries = torch.empty(1, 2, 3, 4, dtype=torch.bfloat16).as_subclass(OnGpu)
    assert cpu_bf16_attention_forward(MODULE, queries, queries, queries, None)[0] == "sdpa"
    (message,) = said
    assert 'on cuda it is "sdpa"' in message
