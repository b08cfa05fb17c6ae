"""C-JEPA's regularizer of I-JEPA: VICReg of projected embeddings (arXiv 2410.19560)."""

import torch
from torch import nn

from ...objectives.vicreg import VICRegTerms, gather_batch, multi_view_vicreg, variance_covariance
from .configuration_ijepa import IJepaPreTrainingConfig


def build_projector(config: IJepaPreTrainingConfig) -> nn.Sequential:
    """VICReg's own: two hidden layers with batch norm and ReLU. The paper does not give the projector's form."""
    hidden = config.projector_hidden_size
    return nn.Sequential(
        nn.Linear(config.encoder_config.hidden_size, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, config.projector_output_size, bias=False),
    )


def projected_vicreg(
    config: IJepaPreTrainingConfig,
    projector: nn.Module,
    context: torch.Tensor,
    predictions: torch.Tensor,
    targets: torch.Tensor,
    num_contexts: int,
    num_blocks: int,
) -> VICRegTerms:
    """
    VICReg in either reading of the paper, see `regularized` of [`IJepaPreTrainingConfig`].

    Args:
        config ([`IJepaPreTrainingConfig`]).
        projector (`nn.Module`): of [`build_projector`].
        context (`torch.Tensor` of shape `(num_contexts * batch, kept, width)`), predictions and targets (of shape
            `(num_blocks * num_contexts * batch, kept, width)`): of [`IJepaForPreTraining.predict`].
        num_contexts, num_blocks (`int`): context masks and target blocks.

    Raises:
        `ValueError`: for a batch of fewer than two images, or a single target block where blocks are compared.
    """
    batch_size = len(context) // num_contexts
    if batch_size < 2:
        raise ValueError(f"C-JEPA's variance term needs a batch of at least 2 images, got {batch_size}.")
    weights = config.sim_weight, config.std_weight, config.cov_weight
    if config.regularized == "predicted_blocks":
        return multi_view_vicreg(projector(predictions.mean(dim=1)).unflatten(0, (num_blocks, -1)), *weights)
    embeddings = projector(context.mean(dim=1))
    with torch.no_grad():
        pooled = targets.unflatten(0, (num_blocks, -1)).mean(dim=(0, 2))
        goal = projector(pooled.to(context.dtype))
    sim = (embeddings.float() - goal.float()).square().mean()
    views = embeddings.unflatten(0, (num_contexts, -1))
    std, cov = (term.mean() for term in variance_covariance(gather_batch(views, dim=1)))
    return VICRegTerms(weights[0] * sim + weights[1] * std + weights[2] * cov, sim, std, cov)
