"""Energies: how far a prediction is from its target."""

from typing import Literal

import torch
import torch.nn.functional as F

DistanceType = Literal["smooth_l1", "l2", "l1"]

_DISTANCES = {"smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss, "l1": F.l1_loss}


def normalize_targets(features: torch.Tensor) -> torch.Tensor:
    """
    Layer-norm over the feature dimension without affine, eps 1e-5, in float32: what the released I-JEPA and V-JEPA
    code does to the target encoder's output before it becomes a target.

    Args:
        features (`torch.Tensor` of shape `(..., width)`).

    Returns:
        `torch.FloatTensor` of the same shape.
    """
    return F.layer_norm(features.float(), features.shape[-1:])


def distance(
    predictions: torch.Tensor, targets: torch.Tensor, loss_type: DistanceType = "smooth_l1"
) -> torch.FloatTensor:
    """
    Elementwise distance, in float32, unreduced.

    Args:
        predictions (`torch.Tensor` of shape `(...)`).
        targets (`torch.Tensor` of the same shape).
        loss_type (`str`): `"smooth_l1"` (beta 1; the released I-JEPA code), `"l2"` (its paper and the survey; squared
            error) or `"l1"` (V-JEPA).

    Returns:
        `torch.FloatTensor` of the inputs' shape.

    Raises:
        `ValueError`: for shapes that differ or an unknown `loss_type`.
    """
    if predictions.shape != targets.shape:
        raise ValueError(f"Predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ in shape.")
    if loss_type not in _DISTANCES:
        raise ValueError(f"`loss_type` must be one of {sorted(_DISTANCES)}, got {loss_type!r}.")
    return _DISTANCES[loss_type](predictions.float(), targets.float(), reduction="none")
