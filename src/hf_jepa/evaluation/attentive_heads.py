"""V-JEPA's attentive probes: many heads over a grid, trained side by side on shared frozen tokens."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data.seeding import forked_rng
from ..models.vjepa.pooler_vjepa import SelfAttentionOn, VJepaAttentivePooler, init_attentive_pooler
from .closed_form import ProbeResult, held_out_rows
from .knn import check_split

# V-JEPA 1's single head (released code; weight decay 0.001 on ImageNet), as arguments of `train_attentive_heads`.
VJEPA1_PROBE: dict[str, Any] = {
    "num_self_attention_layers": 0,
    "self_attention_on": "query",
    "learning_rates": (1e-3,),
    "weight_decays": (0.01,),
    "batch_size": 256,
    "max_grad_norm": 1.0,
}


class _Head(nn.Module):
    """Pooler and linear layer, as `VJepaForVideoClassification` has them."""

    def __init__(self, pooler: VJepaAttentivePooler, num_classes: int):
        super().__init__()
        self.pooler = pooler
        # torch's default initialisation, as in the released code.
        self.classifier = nn.Linear(pooler.query_tokens.shape[-1], num_classes)


def pool_shared_tokens(poolers: Sequence[VJepaAttentivePooler], tokens: torch.Tensor) -> list[torch.Tensor]:
    """
    What each of several poolers makes of the same tokens, when the cross-attention is their first block.

    A query does not depend on the input, so its product with the key projection is one vector per attention head, and
    values can be projected after pooling: no token is projected, and all poolers share two products with the tokens.
    The norm's scale and shift fold into those vectors; what is constant over tokens (shift, key bias) drops out of the
    softmax. The result is that of each pooler alone, up to rounding.

    Args:
        poolers (`Sequence[VJepaAttentivePooler]`): of one size, with no self-attention on tokens.
        tokens (`torch.FloatTensor` of shape `(batch, tokens, width)`).

    Returns:
        `list` of `torch.FloatTensor` of shape `(batch, num_queries, width)`, one per pooler.
    """
    layers = [pooler.cross_attention_layer for pooler in poolers]
    batch, _, width = tokens.shape
    normed = F.layer_norm(tokens, (width,), eps=layers[0].layer_norm1.eps)
    num_heads = layers[0].cross_attn.num_heads
    vectors = []
    for pooler, layer in zip(poolers, layers, strict=True):
        queries = layer.cross_attn.q_proj(pooler.query_tokens[0]).unflatten(-1, (num_heads, -1))
        keys = layer.cross_attn.k_proj.weight.unflatten(0, (num_heads, -1)) * layer.layer_norm1.weight
        vectors.append(torch.einsum("qhe,hed->qhd", queries * queries.shape[-1] ** -0.5, keys).flatten(0, 1))
    weights = (torch.cat(vectors) @ normed.transpose(1, 2)).softmax(dim=-1)
    pooled = (weights @ normed).unflatten(1, (len(layers), -1, num_heads))

    results = []
    for pooler, layer, mean in zip(poolers, layers, pooled.unbind(1), strict=True):
        mean = mean * layer.layer_norm1.weight + layer.layer_norm1.bias
        values = layer.cross_attn.v_proj.weight.unflatten(0, (num_heads, -1))
        read = torch.einsum("bqhd,hed->bqhe", mean, values).flatten(2) + layer.cross_attn.v_proj.bias
        states = pooler.query_tokens + read
        states = states + layer.mlp(layer.layer_norm2(states))
        for block in pooler.self_attention_layers:
            states = block(states)
        results.append(states)
    return results


def _shares_tokens(heads: Sequence[_Head]) -> bool:
    pooler = heads[0].pooler
    return pooler.self_attention_on == "query" or not len(pooler.self_attention_layers)


def _logits(heads: Sequence[_Head], tokens: torch.Tensor) -> list[torch.Tensor]:
    """`(batch, N, D)` -> logits `(batch, num_classes)` of each head."""
    if _shares_tokens(heads):
        pooled = pool_shared_tokens([head.pooler for head in heads], tokens)
    else:
        pooled = [head.pooler(tokens) for head in heads]
    return [head.classifier(states[:, 0]) for head, states in zip(heads, pooled, strict=True)]


def _backward(heads: Sequence[_Head], tokens: torch.Tensor, labels: torch.Tensor) -> None:
    """Accumulates in each head the gradient of its own mean loss."""
    # Self-attention over all tokens shares no work between heads and fills the processor with one: all heads in one
    # batched call would only hold 20 times the activations (and `torch.func.vmap` takes fused attention apart).
    groups = [heads] if _shares_tokens(heads) else [[head] for head in heads]
    for group in groups:
        sum(F.cross_entropy(logits, labels) for logits in _logits(group, tokens)).backward()


def train_attentive_heads(
    train_tokens: torch.Tensor,
    train_labels: torch.Tensor,
    test_tokens: torch.Tensor,
    test_labels: torch.Tensor,
    num_attention_heads: int | None = None,
    num_self_attention_layers: int = 3,
    self_attention_on: SelfAttentionOn = "tokens",
    learning_rates: Sequence[float] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4),
    weight_decays: Sequence[float] = (0.01, 0.1, 0.4, 0.8),
    epochs: int = 20,
    batch_size: int = 64,
    max_grad_norm: float | None = None,
    held_out_fraction: float = 0.1,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> ProbeResult:
    """
    V-JEPA 2's attentive probe (arXiv 2506.09985 and released code): an attentive pooler and a linear layer on frozen
    tokens of images or clips, one head for each learning rate and weight decay of a grid, all trained in one pass over
    the same batches. AdamW on every parameter, cosine schedule to 0. For V-JEPA 1's single head give
    `**VJEPA1_PROBE`.

    One thing differs from the released code: the best head is picked on rows held out of train, never on test.

    Args:
        train_tokens (`torch.FloatTensor` of shape `(n, N, D)`): From `extract_features(pool="none")`; the tokens of
            several segments of a clip stand in one row.
        train_labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 on.
        test_tokens (`torch.FloatTensor` of shape `(m, N, D)` or `(m, views, N, D)`): With views, the softmax is
            averaged over them.
        test_labels (`torch.LongTensor` of shape `(m,)`): As `train_labels`.
        num_attention_heads (`int`, *optional*): Of the pooler; by default the published 16, or, where that does not
            divide `D`, the largest smaller number that does.
        num_self_attention_layers (`int`): 3 in V-JEPA 2's probes, 0 in V-JEPA 1's. Heads without, or with those of
            V-JEPA 1, share nearly all work.
        self_attention_on (`"tokens"` or `"query"`): Where those layers act, see
            [`~hf_jepa.models.vjepa.VJepaAttentivePooler`].
        learning_rates (`Sequence[float]`): The grid.
        weight_decays (`Sequence[float]`): The grid's other side.
        epochs (`int`): Passes over the kept rows of train.
        batch_size (`int`): Rows per step, at most the kept rows.
        max_grad_norm (`float`, *optional*): Clip the gradient of each head to this norm.
        held_out_fraction (`float`): Share of train rows that the head is picked on.
        seed (`int`): Seed of that split, the initialisation and the order of rows.
        device (`torch.device` or `str`, *optional*): Where to train; the tokens' device by default. Tokens are moved
            batch by batch.
        progress (`bool`): Show a progress bar.

    Returns:
        [`ProbeResult`]: Test accuracy of the head that was best on the held-out rows.

    Raises:
        ValueError: If shapes do not fit, tokens are not finite, `num_attention_heads` does not divide `D` or a number
            is out of range.
    """
    _check_tokens(train_tokens, train_labels, test_tokens, test_labels)
    if epochs < 1 or batch_size < 1 or not learning_rates or not weight_decays:
        raise ValueError("train_attentive_heads needs epochs >= 1, batch_size >= 1 and a grid.")
    width = train_tokens.shape[-1]
    if num_attention_heads is None:
        num_attention_heads = max(count for count in range(1, 17) if width % count == 0)
    device = train_tokens.device if device is None else torch.device(device)
    kept, held_out = held_out_rows(len(train_labels), held_out_fraction, seed)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    grid = [(learning_rate, decay) for learning_rate in learning_rates for decay in weight_decays]
    with forked_rng(seed):
        pooler = VJepaAttentivePooler(width, num_attention_heads, num_self_attention_layers, self_attention_on)
        init_attentive_pooler(pooler)
        first = _Head(pooler, num_classes).to(device)
    # One initialisation for all heads: they differ in their settings alone.
    heads = [copy.deepcopy(first) for _ in grid]
    groups = [
        {
            "params": [parameter for parameter in head.parameters() if parameter.requires_grad],
            "lr": lr,
            "weight_decay": wd,
        }
        for head, (lr, wd) in zip(heads, grid, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    batch_size = min(batch_size, len(kept))
    steps_per_epoch = len(kept) // batch_size
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps_per_epoch)
    generator = torch.Generator().manual_seed(seed)

    with torch.enable_grad():
        for _ in tqdm(range(epochs), desc="attentive heads", disable=not progress):
            order = kept[torch.randperm(len(kept), generator=generator)]
            for rows in order[: steps_per_epoch * batch_size].view(-1, batch_size):
                optimizer.zero_grad()
                _backward(heads, train_tokens[rows].to(device), train_labels[rows].to(device))
                if max_grad_norm is not None:
                    for head in heads:
                        nn.utils.clip_grad_norm_(head.parameters(), max_grad_norm)
                optimizer.step()
                scheduler.step()

    held_out_scores = _accuracies(heads, train_tokens, train_labels, held_out, batch_size, device)
    candidates = [
        {"learning_rate": learning_rate, "weight_decay": decay, "held_out_accuracy": score}
        for (learning_rate, decay), score in zip(grid, held_out_scores, strict=True)
    ]
    best = max(range(len(candidates)), key=lambda index: candidates[index]["held_out_accuracy"])
    test_rows = torch.arange(len(test_labels))
    (accuracy,) = _accuracies(heads[best : best + 1], test_tokens, test_labels, test_rows, batch_size, device)
    return ProbeResult(accuracy, candidates[best], candidates)


def _check_tokens(
    train_tokens: torch.Tensor, train_labels: torch.Tensor, test_tokens: torch.Tensor, test_labels: torch.Tensor
) -> None:
    if train_tokens.ndim != 3 or test_tokens.ndim not in (3, 4):
        raise ValueError(
            "train_attentive_heads needs train tokens (n, N, D) and test tokens (m, N, D) or (m, views, N, D), got "
            f'{tuple(train_tokens.shape)} and {tuple(test_tokens.shape)}: extract them with pool="none".'
        )
    if train_tokens.shape[-1] != test_tokens.shape[-1]:
        raise ValueError(
            f"train tokens have width {train_tokens.shape[-1]}, test tokens have width {test_tokens.shape[-1]}: "
            "they must come from one encoder."
        )
    check_split(train_tokens, train_labels, "train")
    check_split(test_tokens, test_labels, "test")


@torch.no_grad()
def _accuracies(
    heads: Sequence[_Head],
    tokens: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor,
    batch_size: int,
    device: torch.device,
) -> list[float]:
    right = torch.zeros(len(heads), dtype=torch.float64)
    for chunk in rows.split(batch_size):
        batch = tokens[chunk].to(device)
        views = batch.shape[1] if batch.ndim == 4 else 1
        logits = torch.stack(_logits(heads, batch.view(-1, *batch.shape[-2:])))
        probabilities = logits.softmax(dim=-1).unflatten(1, (-1, views)).mean(dim=2)
        # A head that diverged would otherwise be right wherever the class is 0.
        hits = (probabilities.argmax(dim=-1).cpu() == labels[chunk].cpu()) & ~probabilities.isnan().any(dim=-1).cpu()
        right += hits.sum(dim=1).double()
    return (right / len(rows)).tolist()
