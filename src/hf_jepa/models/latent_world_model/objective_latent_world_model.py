"""What keeps the latents of a world model from collapsing, and what makes them controllable."""

import torch
import torch.nn.functional as F
from torch import nn

from ...objectives import SIGReg, sigreg
from ...objectives.distributed import all_reduce_sum, gather_batch, world_size
from ...objectives.vicreg import convention_factors, variance_covariance
from .configuration_latent_world_model import LatentWorldModelConfig


class InverseModel(nn.Module):
    """
    Tells what led from a frame to the next: three linear layers with ReLU on both frames side by side (SMWM,
    arXiv 2606.20104; EB-JEPA, arXiv 2602.03604). Of several tokens it reads the mean.
    """

    def __init__(self, width: int, hidden_size: int, output_size: int):
        super().__init__()
        layers = [nn.Linear(2 * width, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_size, output_size))

    def forward(self, latents: torch.Tensor, next_latents: torch.Tensor) -> torch.Tensor:
        """Two tensors `(batch, time, tokens, width)` to `(batch, time, output_size)`."""
        return self.layers(torch.cat([latents.mean(dim=2), next_latents.mean(dim=2)], dim=-1))


def variance_and_covariance(latents: torch.Tensor, frames: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    VICReg's hinge at 1 of the standard deviation, averaged over dimensions, and its squared off-diagonal covariances,
    averaged over pairs of dimensions (EB-JEPA's convention), over all frames or the first.

    Args:
        latents (`torch.Tensor` of shape `(batch, time, tokens, width)`).
        frames (`str`): `"all"` or `"first"`.

    Returns:
        Two scalars.
    """
    if frames == "first":
        latents = latents[:, :1]
    std, cov = variance_covariance(gather_batch(latents.flatten(0, 2))[None])
    return std[0], cov[0] * convention_factors("eb_jepa", latents.shape[-1])[2]


def temporal_variance(latents: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """The same hinge, of the standard deviation over time within each clip `(batch, time, tokens, width)`."""
    return F.relu(1 - torch.sqrt(latents.var(dim=1) + eps)).mean()


def temporal_similarity(latents: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring frames `(batch, time, tokens, width)`."""
    return (latents[:, 1:] - latents[:, :-1]).square().mean()


def inverse_dynamics(
    predicted: torch.Tensor, actions: torch.Tensor, action_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Mean squared error of actions told from frames.

    Args:
        predicted, actions (`torch.Tensor` of shape `(batch, time, action_dim)`).
        action_mask (`torch.BoolTensor` of shape `(batch, time)`, *optional*): False where an action is padding.
            Without it padding, which is zero by then, counts like the mean action (SMWM, released code).

    Returns:
        A scalar.
    """
    errors = (predicted.float() - actions.float()).square().mean(dim=-1)
    if action_mask is None:
        return errors.mean()
    # Processes may hold different shares of padding: all divide by the mean count.
    count = all_reduce_sum(action_mask.sum().float()) / world_size()
    return (errors * action_mask).sum() / count.clamp(min=1)


def regularizers(
    latents: torch.Tensor,
    config: LatentWorldModelConfig,
    sigreg_module: SIGReg | None,
    directions: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """
    The terms of a config that read the latents alone, unweighted.

    SIGReg's statistic is taken over the batch, for every time step (and token) by itself, and averaged: taken over
    time or over all frames at once it would forbid a clip to be about one thing (LeWM, released code).

    Args:
        latents (`torch.Tensor` of shape `(batch, time, tokens, width)`): float32.
        config ([`LatentWorldModelConfig`]).
        sigreg_module ([`~hf_jepa.objectives.SIGReg`], *optional*): draws directions where none are given.
        directions (`torch.Tensor` of shape `(slices, width)`, *optional*): unit rows.

    Returns:
        `dict[str, torch.Tensor]`: scalars, of the terms whose weight is not 0.
    """
    terms = {}
    if config.sigreg_weight:
        samples = latents.permute(1, 2, 0, 3)
        terms["sigreg"] = sigreg_module(samples) if directions is None else sigreg(samples, directions)
    if config.variance_weight or config.covariance_weight:
        std, cov = variance_and_covariance(latents, config.variance_frames)
        terms |= {"variance": std, "covariance": cov}
    if config.temporal_variance_weight:
        terms["temporal_variance"] = temporal_variance(latents)
    if config.temporal_similarity_weight:
        terms["temporal_similarity"] = temporal_similarity(latents)
    return terms
