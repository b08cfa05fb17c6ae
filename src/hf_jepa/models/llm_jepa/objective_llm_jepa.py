"""What LLM-JEPA minimises besides the next-token loss: distances of pairs, and a regularizer of their embeddings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from ...objectives import info_nce
from ...objectives.distributed import batch_sizes
from ...objectives.inputs import at_least_float32
from ...regularized import regularize
from .configuration_llm_jepa import LLMJepaConfig


@dataclass
class LLMJepaOutput(ModelOutput):
    """
    What [`~hf_jepa.LLMJepaForCausalLM`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): what is minimised.
        loss_components (`dict[str, torch.FloatTensor]`): its unweighted terms, detached scalars: `lm_loss`,
            `jepa_loss`, and the regularizer by name.
        logits (`torch.FloatTensor` of shape `(labels, vocabulary)`): with `return_logits` only; one row per label.
        shift_labels (`torch.LongTensor` of shape `(labels,)`): what those rows should predict.
        text_embeddings (`torch.FloatTensor` of shape `(pairs, width)`): Enc(Text).
        predicted_embeddings (`torch.FloatTensor` of shape `(pairs, width)`): the prediction. With semantic tube
            prediction, the predicting displacements, and the target ones in `target_embeddings`.
        code_embeddings (`torch.FloatTensor` of shape `(pairs, width)`): Enc(Code).
        target_embeddings (`torch.FloatTensor` of shape `(pairs, width)`): what the prediction is compared with.
    """

    loss: torch.FloatTensor | None = None
    loss_components: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    shift_labels: torch.LongTensor | None = None
    text_embeddings: torch.FloatTensor | None = None
    predicted_embeddings: torch.FloatTensor | None = None
    code_embeddings: torch.FloatTensor | None = None
    target_embeddings: torch.FloatTensor | None = None


def pair_distances(predicted: torch.Tensor, target: torch.Tensor, distance: str) -> torch.Tensor:
    """
    Distance of each pair, in float32 at least.

    Args:
        predicted, target (`torch.FloatTensor` of shape `(pairs, width)`).
        distance (`str`): `"cosine"`: 1 - cosine (epsilon 1e-8); `"l2"`: norm of the difference, the released
            `jepa_l2`; `"mse"`: mean square of the difference.

    Returns:
        `torch.FloatTensor` of shape `(pairs,)`.

    Raises:
        `ValueError`: for an unknown distance.
    """
    predicted, target = at_least_float32(predicted), at_least_float32(target)
    if distance == "cosine":
        return 1 - F.cosine_similarity(predicted, target, dim=1)
    if distance == "l2":
        return torch.linalg.vector_norm(predicted - target, dim=1)
    if distance == "mse":
        return (predicted - target).square().mean(dim=1)
    raise ValueError(f"`distance` must be cosine, l2 or mse, got {distance!r}.")


def jepa_terms(
    predicted: torch.Tensor,
    target: torch.Tensor,
    views: list[torch.Tensor],
    config: LLMJepaConfig,
    regularizer: nn.Module | None = None,
    num_pairs: torch.Tensor | int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
    """
    Sums over pairs, divided by `num_pairs`, so that the sums of micro-batches and processes add up to means. InfoNCE
    and the regularizers compare the pairs of all processes, one micro-batch at a time, and count with its share of the
    pairs; where a process has no pair, or all together one, they are 0.

    Args:
        predicted, target (`torch.FloatTensor` of shape `(pairs, width)`).
        views (`list` of the same): what the regularizer sees, Enc(Text) and Enc(Code).
        config ([`LLMJepaConfig`]).
        regularizer (`nn.Module`, *optional*): of [`~hf_jepa.regularized.build_regularizer`].
        num_pairs (`int` or `torch.Tensor`, *optional*): by default the pairs given.

    Returns:
        The distance term; the weighted regularizer, if there is one; the unweighted terms by name, detached.
    """
    predicted, target = at_least_float32(predicted), at_least_float32(target)
    count = len(predicted)
    share = count / (max(count, 1) if num_pairs is None else num_pairs)
    joint = False
    if config.distance == "infonce" or config.regularizer != "none":
        sizes = batch_sizes(count)
        joint = min(sizes) > 0 and sum(sizes) > 1
    if config.distance != "infonce":
        # A mean of no pairs would be NaN; their sum is 0, and reaches every parameter.
        loss = pair_distances(predicted, target, config.distance).sum() / max(count, 1) * share
    elif joint:
        loss = info_nce(predicted, target, config.temperature, "predicted_to_target") * share
    else:
        loss = 0 * (predicted.sum() + target.sum())
    terms = {"jepa_loss": loss.detach()}
    if config.regularizer == "none":
        return loss, None, terms
    weighted = 0 * loss
    terms[config.regularizer] = weighted.detach()
    if joint:
        value, name = regularize(at_least_float32(torch.stack(views)), config, regularizer)
        weighted, terms[name] = config.regularizer_weight * value * share, value.detach() * share
    return loss, weighted, terms
