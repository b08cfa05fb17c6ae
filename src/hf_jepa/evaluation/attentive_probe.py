from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .closed_form import ProbeResult, held_out_rows
from .knn import check_split


class _AttentivePool(nn.Module):
    """
    `num_probes` independent probes on shared tokens: layer norm, multi-head cross-attention of one learned query,
    linear.

    The query does not depend on the input, so query and key projections fold into one score vector per head, and the
    value projection can be applied after pooling: no token is ever projected, which makes a probe as cheap as two
    matrix products with the tokens.
    """

    def __init__(self, num_probes: int, width: int, num_heads: int, num_classes: int, generator: torch.Generator):
        super().__init__()
        self.num_probes, self.num_heads = num_probes, num_heads

        def normal(*shape: int, std: float) -> nn.ParameterList:
            value = torch.randn(*shape, generator=generator) * std
            return nn.ParameterList(value.clone() for _ in range(num_probes))

        # One initialisation for all probes: they differ in their learning rates alone.
        self.score = normal(num_heads, width, std=width**-0.5)
        self.value = normal(num_heads, width, width // num_heads, std=width**-0.5)
        self.weight = normal(width, num_classes, std=0.01)
        self.bias = nn.ParameterList(torch.zeros(1, num_classes) for _ in range(num_probes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch, N, D)` -> logits `(num_probes, batch, num_classes)`."""
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        batch, _, width = tokens.shape
        scores = tokens @ torch.cat(list(self.score)).T
        pooled = scores.softmax(dim=1).transpose(1, 2) @ tokens
        pooled = pooled.view(batch, self.num_probes, self.num_heads, width)
        values = torch.einsum("bphd,phde->pbhe", pooled, torch.stack(list(self.value))).flatten(2)
        return values @ torch.stack(list(self.weight)) + torch.stack(list(self.bias))


def attentive_probe(
    train_tokens: torch.Tensor,
    train_labels: torch.Tensor,
    test_tokens: torch.Tensor,
    test_labels: torch.Tensor,
    num_heads: int | None = None,
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2),
    weight_decay: float = 0.01,
    epochs: int = 20,
    batch_size: int = 256,
    held_out_fraction: float = 0.1,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> ProbeResult:
    """
    Attentive probe on frozen patch tokens: a learned query pools them by multi-head cross-attention, a linear layer
    classifies (as V-JEPA's probe, without its MLP). AdamW, cosine schedule to 0; one probe per learning rate, all
    trained in one pass.

    Args:
        train_tokens (`torch.FloatTensor` of shape `(n, N, D)`): From `extract_features(pool="none")`.
        train_labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 on.
        test_tokens (`torch.FloatTensor` of shape `(m, N, D)`): As `train_tokens`.
        test_labels (`torch.LongTensor` of shape `(m,)`): As `train_labels`.
        num_heads (`int`, *optional*): Heads; by default the largest divisor of `D` that leaves at least 16 per head,
            up to 16.
        learning_rates (`Sequence[float]`): The grid.
        weight_decay (`float`): Of matrices, not of the bias.
        epochs (`int`): Passes over the kept rows of train.
        batch_size (`int`): Rows per step, at most the kept rows.
        held_out_fraction (`float`): Share of train rows that the learning rate is picked on.
        seed (`int`): Seed of that split, the initialisation and the order of rows.
        device (`torch.device` or `str`, *optional*): Where to train; the tokens' device by default. Tokens are moved
            batch by batch.
        progress (`bool`): Show a progress bar.

    Returns:
        [`ProbeResult`]: Test accuracy of the probe that was best on the held-out rows.

    Raises:
        ValueError: If shapes do not fit, tokens are not finite, `num_heads` does not divide `D` or a number is out of
            range.
    """
    if train_tokens.ndim != 3 or test_tokens.ndim != 3:
        raise ValueError(
            f"attentive_probe needs tokens (n, N, D), got {tuple(train_tokens.shape)} and {tuple(test_tokens.shape)}: "
            'extract them with pool="none".'
        )
    check_split(train_tokens, train_labels, "train")
    check_split(test_tokens, test_labels, "test")
    width = train_tokens.shape[-1]
    if num_heads is None:
        num_heads = max(heads for heads in range(1, 17) if width % heads == 0 and (heads == 1 or width // heads >= 16))
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the width {width}.")
    if epochs < 1 or batch_size < 1 or not learning_rates:
        raise ValueError("attentive_probe needs epochs >= 1, batch_size >= 1 and a learning rate.")
    device = train_tokens.device if device is None else torch.device(device)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    kept, held_out = held_out_rows(len(train_labels), held_out_fraction, seed)
    generator = torch.Generator().manual_seed(seed)
    probes = _AttentivePool(len(learning_rates), width, num_heads, num_classes, generator).to(device)
    groups = []
    for index, learning_rate in enumerate(learning_rates):
        matrices = [probes.score[index], probes.value[index], probes.weight[index]]
        groups.append({"params": matrices, "lr": learning_rate, "weight_decay": weight_decay})
        groups.append({"params": [probes.bias[index]], "lr": learning_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    batch_size = min(batch_size, len(kept))
    steps_per_epoch = len(kept) // batch_size
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps_per_epoch)

    with torch.enable_grad():
        for _ in tqdm(range(epochs), desc="attentive probe", disable=not progress):
            order = kept[torch.randperm(len(kept), generator=generator)]
            for rows in order[: steps_per_epoch * batch_size].view(-1, batch_size):
                logits = probes(train_tokens[rows].to(device))
                labels = train_labels[rows].to(device).expand(len(logits), -1)
                # A sum over independent probes: each gets the gradient of its own mean loss.
                loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / batch_size
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()

    held_out_scores = _accuracies(probes, train_tokens, train_labels, held_out, batch_size, device)
    test_scores = _accuracies(probes, test_tokens, test_labels, torch.arange(len(test_labels)), batch_size, device)
    candidates = [
        {"learning_rate": learning_rate, "weight_decay": weight_decay, "held_out_accuracy": score}
        for learning_rate, score in zip(learning_rates, held_out_scores, strict=True)
    ]
    best = max(range(len(candidates)), key=lambda index: candidates[index]["held_out_accuracy"])
    return ProbeResult(test_scores[best], candidates[best], candidates)


@torch.no_grad()
def _accuracies(
    probes: _AttentivePool,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor,
    batch_size: int,
    device: torch.device,
) -> list[float]:
    right = torch.zeros(probes.num_probes, dtype=torch.float64)
    for chunk in rows.split(batch_size):
        predictions = probes(tokens[chunk].to(device)).argmax(dim=-1).cpu()
        right += (predictions == labels[chunk].cpu()).sum(dim=1).double()
    return (right / len(rows)).tolist()
