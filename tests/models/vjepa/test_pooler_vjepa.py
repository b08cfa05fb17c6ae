"""The attentive poolers against the official probes."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

from hf_jepa.models.vjepa.pooler_vjepa import VJepaAttentivePooler, init_attentive_pooler

GOLDEN = Path(__file__).parents[2] / "golden"
# (case, depth in the official count, group of the file, where self-attention acts)
CASES = [
    ("vjepa_attentive_probe", 1, "classifier", "query"),
    ("vjepa_attentive_probe", 3, "classifier", "query"),
    ("vjepa2_attentive_probe", 1, "classifiers.0", "tokens"),
    ("vjepa2_attentive_probe", 4, "classifiers.0", "tokens"),
]


class Probe(nn.Module):
    """Pooler and linear layer, as the official `AttentiveClassifier`."""

    def __init__(self, pooler: VJepaAttentivePooler, num_classes: int):
        super().__init__()
        self.pooler = pooler
        self.classifier = nn.Linear(pooler.query_tokens.shape[-1], num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pooler(tokens)[:, 0])


def our_keys(key: str) -> list[str]:
    """Our names of an official key: one, two (`kv`) or three (`qkv`), stacked along the rows of the official."""
    names = {
        "module.": "",
        "linear.": "classifier.",
        "cross_attention_block": "cross_attention_layer",
        "pooler.blocks": "pooler.self_attention_layers",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "xattn.kv": "cross_attn.{kv}_proj",
        "xattn.q": "cross_attn.q_proj",
        "xattn.proj": "cross_attn.out_proj",
        "attn.qkv": "self_attn.{qkv}_proj",
        ".attn.proj": ".self_attn.out_proj",
    }
    for official, ours in names.items():
        key = key.replace(official, ours)
    for group in ("qkv", "kv"):
        if f"{{{group}}}" in key:
            return [key.replace(f"{{{group}}}", letter) for letter in group]
    return [key]


def load_probe(case: str, depth: int, group: str, self_attention_on: str) -> tuple[Probe, dict[str, torch.Tensor]]:
    config = json.loads((GOLDEN / f"{case}.json").read_text())["config"]
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    pooler = VJepaAttentivePooler(
        config["embed_dim"], config["num_heads"], depth - 1, self_attention_on, mlp_ratio=config["mlp_ratio"]
    )
    probe, prefix, weights = Probe(pooler, config["num_classes"]), f"depth{depth}/{group}/", {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            names = our_keys(key.removeprefix(prefix))
            weights |= dict(zip(names, value.chunk(len(names)), strict=True))
    probe.load_state_dict(weights)
    return probe, tensors


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * float(reference.detach().abs().max()))


@pytest.mark.parametrize(("case", "depth", "group", "self_attention_on"), CASES)
def test_official_probe(case, depth, group, self_attention_on):
    probe, official = load_probe(case, depth, group, self_attention_on)
    expected = f"depth{depth}/expected/"
    close(probe.pooler(official["input/tokens"]), official[expected + "pooled"])
    logits = probe(official["input/tokens"])
    close(logits, official[expected + "logits"])
    loss = F.cross_entropy(logits, official["input/labels"])
    assert float(loss.detach()) == pytest.approx(float(official[expected + "loss"]), abs=2e-6)
    loss.backward()
    prefix = f"depth{depth}/grad/"
    gradients = [key for key in official if key.startswith(prefix)]
    assert len(gradients) >= 4
    for key in gradients:
        ours = [probe.get_parameter(name).grad for name in our_keys(key.removeprefix(prefix))]
        close(torch.cat(ours), official[key], 5e-5)
    # The stored projection that nothing uses must not break DDP, which waits for every trainable gradient.
    assert all(parameter.grad is not None for parameter in probe.parameters() if parameter.requires_grad)


def test_in_tree_pooler_with_its_own_eps_and_heads():
    config = VJEPA2Config(hidden_size=24, num_attention_heads=4, num_pooler_layers=2)
    config._attn_implementation = "sdpa"
    theirs = VJEPA2AttentivePooler(config)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = VJepaAttentivePooler(24, 4, 2, layer_norm_eps=config.layer_norm_eps)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, 9, 24)
    close(ours(tokens)[:, 0], theirs(tokens))


def test_more_queries_each_read_on_their_own():
    pooler = VJepaAttentivePooler(24, 4, 1, num_queries=3)
    init_attentive_pooler(pooler, std=0.3)
    tokens = torch.randn(2, 9, 24)
    pooled = pooler(tokens)
    assert pooled.shape == (2, 3, 24)
    single = VJepaAttentivePooler(24, 4, 1)
    weights = pooler.state_dict()
    single.load_state_dict(weights | {"query_tokens": weights["query_tokens"][:, 1:2]})
    close(single(tokens)[:, 0], pooled[:, 1])


@pytest.mark.parametrize(
    ("case", "depth", "self_attention_on"),
    [("vjepa_init_statistics", 3, "query"), ("vjepa2_init_statistics", 4, "tokens")],
)
def test_official_initialisation(case, depth, self_attention_on):
    recorded = json.loads((GOLDEN / f"{case}.json").read_text())
    statistics = load_file(GOLDEN / f"{case}.safetensors")["statistics/classifier"]
    width = recorded["config"]["embed_dim"]
    probe = Probe(VJepaAttentivePooler(width, 4, depth - 1, self_attention_on), 10)
    init_attentive_pooler(probe.pooler)
    for key, (mean, std, *_, numel) in zip(recorded["keys"]["classifier"], statistics.tolist(), strict=True):
        ours = torch.cat([probe.get_parameter(name).detach().flatten() for name in our_keys(key)])
        assert ours.numel() == numel, key
        if std == 0:
            assert (ours == mean).all(), key
        else:
            # Twice, because both sides are samples.
            assert float(ours.std()) == pytest.approx(std, rel=2 * 5 / (2 * numel) ** 0.5), key


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="16 attention heads do not divide the width 36"):
        VJepaAttentivePooler(36)
    with pytest.raises(ValueError, match="width 24, but got tokens of width 32"):
        VJepaAttentivePooler(24, 4)(torch.zeros(1, 5, 32))
    with pytest.raises(ValueError, match='must be "tokens" or "query"'):
        VJepaAttentivePooler(24, 4, self_attention_on="keys")
    with pytest.raises(ValueError, match="num_queries >= 1"):
        VJepaAttentivePooler(24, 4, num_queries=0)
