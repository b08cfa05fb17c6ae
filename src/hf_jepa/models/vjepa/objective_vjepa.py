"""What V-JEPA, V-JEPA 2 and V-JEPA 2.1 minimise."""

import torch

from ...objectives.distances import normalize_targets
from .encoder_vjepa import Grid, gather_tubelets


def normalize_levels(features: torch.Tensor, num_levels: int) -> torch.Tensor:
    """
    [`~hf_jepa.objectives.distances.normalize_targets`] of every level by itself (V-JEPA 2.1, released code).

    Args:
        features (`torch.Tensor` of shape `(..., num_levels * width)`): levels side by side.
        num_levels (`int`).

    Returns:
        `torch.FloatTensor` of the same shape.
    """
    if num_levels == 1:
        return normalize_targets(features)
    return normalize_targets(features.unflatten(-1, (num_levels, -1))).flatten(-2)


def normalized_tubelets(clips: torch.Tensor, grid: Grid, tubelet_size: int) -> torch.Tensor:
    """
    Pixels as targets: each tubelet's, with mean 0 and variance 1 as MAE's patches have (arXiv 2111.06377, released
    code).

    Args:
        clips (`torch.Tensor` of shape `(batch, frames, channels, height, width)`).
        grid (`tuple[int, int, int]`): time slots, rows and columns.
        tubelet_size (`int`): frames.

    Returns:
        `torch.FloatTensor` of shape `(batch, tokens, tubelet_size * channels * patch_size ** 2)`.
    """
    pixels = gather_tubelets(clips, grid, tubelet_size, None).float()
    mean, variance = pixels.mean(dim=-1, keepdim=True), pixels.var(dim=-1, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()


def power_distance(predictions: torch.Tensor, targets: torch.Tensor, exponent: float) -> torch.Tensor:
    """
    Elementwise `|predictions - targets|^e / e` in float32 (V-JEPA, released code; `e` is 1 in all releases).

    Args:
        predictions, targets (`torch.Tensor` of shape `(...)`).
        exponent (`float`): positive.

    Raises:
        `ValueError`: for shapes that differ.
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"Predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ in shape; a distilled "
            "predictor (`pred_output_size`) predicts a teacher that this model does not hold."
        )
    error = (predictions.float() - targets.float()).abs()
    return error if exponent == 1 else error.pow(exponent) / exponent


def variance_regularizer(predictions: list[torch.Tensor]) -> torch.Tensor:
    """
    The mean of `relu(1 - s)`, `s` being the standard deviation of predicted tokens over a clip (unbiased, 1e-4 added
    to the variance), averaged over masks (V-JEPA, released code; its weight is 0 in all releases).

    Args:
        predictions (`list` of `torch.Tensor` of shape `(batch, target_kept, width)`): one per mask of the same clips.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    deviations = [(prediction.float().var(dim=1) + 1e-4).sqrt() for prediction in predictions]
    return torch.relu(1.0 - torch.stack(deviations).mean(dim=0)).mean()


def context_weights(
    context_mask: torch.Tensor, target_mask: torch.Tensor, grid_size: tuple[int, int]
) -> torch.FloatTensor:
    """
    How much every visible token counts in V-JEPA 2.1's context loss: `1 / sqrt(d)`, `d` being its Euclidean distance
    in the (time, row, column) grid to the nearest target token. A token that is also a target counts 1.

    Args:
        context_mask (`torch.Tensor` of shape `(batch, context_kept)`): int64 token indices.
        target_mask (`torch.Tensor` of shape `(batch, target_kept)`): int64 token indices.
        grid_size (`tuple[int, int]`): rows and columns.

    Returns:
        `torch.FloatTensor` of shape `(batch, context_kept)`.
    """
    rows, columns = grid_size

    def coordinates(ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([ids // (rows * columns), ids // columns % rows, ids % columns], dim=-1).float()

    distances = torch.cdist(
        coordinates(context_mask), coordinates(target_mask), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distances.amin(dim=-1).clamp(min=1.0).rsqrt()
