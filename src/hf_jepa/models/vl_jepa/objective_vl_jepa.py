"""What VL-JEPA minimises: a distance of predicted and target embeddings, and what keeps them from collapsing."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from ...objectives.distributed import batch_sizes, gather_batch
from ...objectives.inputs import at_least_float32
from ...regularized import regularize
from .configuration_vl_jepa import VLJepaConfig


@dataclass
class VLJepaOutput(ModelOutput):
    """
    What [`VLJepaModel`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): what is minimised; with targets and `return_loss`.
        loss_components (`dict[str, torch.FloatTensor]`): its unweighted terms, detached scalars: `prediction_loss`,
            and the regularizer by name.
        counts (`dict[str, torch.FloatTensor]`): of InfoNCE, scalars over all processes: `duplicates`, examples whose
            target text occurs more than once, and `effective_negatives`, of an average example.
        pred_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`): predicted embeddings, not normalised.
        target_embeds (`torch.FloatTensor` of the same shape): what they are compared with.
        online_target_embeds (`torch.FloatTensor` of the same shape): with `target="ema"`, the trained Y-encoder's.
        target_hash (`torch.LongTensor` of shape `(batch,)`): one number per target text.
        logits_per_pair (`torch.FloatTensor` of shape `(batch, batch)`): with `return_logits`, cosine of prediction
            (row) and target (column) over temperature, of this process.
        logit_scale (`torch.FloatTensor` of shape `()`): 1 / temperature.
    """

    loss: torch.FloatTensor | None = None
    loss_components: dict[str, torch.FloatTensor] | None = None
    counts: dict[str, torch.FloatTensor] | None = None
    pred_embeds: torch.FloatTensor | None = None
    target_embeds: torch.FloatTensor | None = None
    online_target_embeds: torch.FloatTensor | None = None
    target_hash: torch.LongTensor | None = None
    logits_per_pair: torch.FloatTensor | None = None
    logit_scale: torch.FloatTensor | None = None


def embedding_distance(predicted: torch.Tensor, target: torch.Tensor, loss: str) -> torch.Tensor:
    """
    Distance of each pair, in float32 at least.

    Args:
        predicted, target (`torch.FloatTensor` of shape `(pairs, width)`).
        loss (`str`): `"cosine"`: 1 - cosine; `"l1"`, `"l2"`: mean absolute, mean squared difference over the width.

    Returns:
        `torch.FloatTensor` of shape `(pairs,)`.
    """
    predicted, target = at_least_float32(predicted), at_least_float32(target)
    if loss == "cosine":
        return 1 - F.cosine_similarity(predicted, target, dim=1)
    difference = predicted - target
    return (difference.abs() if loss == "l1" else difference.square()).mean(dim=1)


def vl_jepa_loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    config: VLJepaConfig,
    contrast: nn.Module | None = None,
    regularizer: nn.Module | None = None,
    online_target: torch.Tensor | None = None,
    target_hash: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    The loss of a batch of embeddings. InfoNCE and the regularizers compare the pairs of all processes, with gradient
    to each; value and gradient under DDP are those of one process on the joint batch.

    Args:
        predicted (`torch.FloatTensor` of shape `(pairs, width)`).
        target (`torch.FloatTensor` of shape `(pairs, width)`): what it is compared with.
        config ([`VLJepaConfig`]).
        contrast ([`~hf_jepa.objectives.InfoNCE`], *optional*): for `loss="infonce"`; holds the temperature.
        regularizer (`nn.Module`, *optional*): of [`~hf_jepa.regularized.build_regularizer`].
        online_target (`torch.FloatTensor` of shape `(pairs, width)`, *optional*): for `target="ema"`, the trained
            Y-encoder's embeddings, which learn from the predictions while predictions learn from `target`.
        target_hash (`torch.LongTensor` of shape `(pairs,)`, *optional*): examples with one number have one target
            text and, with `mask_duplicates`, are no negatives of each other.

    Returns:
        The loss, a scalar; its unweighted terms by name, detached; and counts: `duplicates`, examples of all processes
        whose target occurs more than once, and `effective_negatives`, pairs left in an average denominator.

    Raises:
        `ValueError`: for widths that differ, and InfoNCE with fewer than two pairs over all processes.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"Predictions {tuple(predicted.shape)} and targets {tuple(target.shape)} differ in shape: one target per "
            "query, of the shared space's width, is needed."
        )
    if not config.mask_duplicates:
        target_hash = None

    def compare(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if config.loss == "infonce":
            return contrast(predicted, target, target_hash)
        return embedding_distance(predicted, target, config.loss).mean()

    if online_target is None:
        loss = compare(predicted, target)
    else:
        loss = 0.5 * (compare(predicted, target.detach()) + compare(predicted.detach(), online_target))
    terms = {"prediction_loss": loss.detach()}
    if config.regularizer != "none":
        trained = target if online_target is None else online_target
        views = [predicted, *([trained] if trained.requires_grad else [])]
        value, name = regularize(at_least_float32(torch.stack(views)), config, regularizer)
        terms[name] = value.detach()
        loss = loss + config.regularizer_weight * value
    counts = negative_counts(len(predicted), target_hash, predicted.device) if config.loss == "infonce" else {}
    return loss, terms, counts


@torch.no_grad()
def negative_counts(num_pairs: int, target_hash: torch.Tensor | None, device: torch.device) -> dict[str, torch.Tensor]:
    """`duplicates` and `effective_negatives` of [`vl_jepa_loss`], scalars of float32; nothing waits for the device."""
    if target_hash is None:
        total = sum(batch_sizes(num_pairs))
        zero = torch.zeros((), device=device)
        return {"duplicates": zero, "effective_negatives": zero + (total - 1)}
    every = gather_batch(target_hash).sort().values
    copies = torch.searchsorted(every, every, right=True) - torch.searchsorted(every, every)
    return {
        "duplicates": (copies > 1).sum().float(),
        "effective_negatives": len(every) - copies.float().mean(),
    }
