from typing import Any

import torch
from torch.nn import functional as F


def _matrix(features: torch.Tensor) -> torch.Tensor:
    if features.ndim != 2 or min(features.shape) < 1:
        raise ValueError(f"features must have shape (n, d), got {tuple(features.shape)}.")
    if not torch.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values.")
    # Small singular values decide these numbers, and float32 loses them.
    return features.double()


def rankme(features: torch.Tensor, epsilon: float = 1e-7) -> float:
    """
    RankMe (Garrido et al. 2023): `exp(-sum p log p)` with `p = s / sum(s) + epsilon` over the singular values
    of the uncentred feature matrix.

    It does not see the scale: features that have shrunk to almost nothing can score high. Read it beside
    [`feature_std`].

    Args:
        features (`torch.FloatTensor` of shape `(n, d)`): One row per image.
        epsilon (`float`): 1e-7 in the paper; stable-pretraining uses 1e-5.

    Returns:
        `float`: From 1 (one direction) to `min(n, d)`.

    Raises:
        ValueError: If features are not a finite matrix.
    """
    singular = torch.linalg.svdvals(_matrix(features))
    p = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + epsilon
    return torch.exp(-(p * p.log()).sum()).item()


def effective_rank(features: torch.Tensor, centered: bool = False) -> float:
    """
    Effective rank (Roy & Vetterli 2007): exponential of the entropy of the normalised singular values.

    Args:
        features (`torch.FloatTensor` of shape `(n, d)`): One row per image.
        centered (`bool`): Remove the mean feature first.

    Returns:
        `float`: From 1 to `min(n, d)`; 0 if all rows are zero.

    Raises:
        ValueError: If features are not a finite matrix.
    """
    features = _matrix(features)
    if centered:
        features = features - features.mean(dim=0)
    singular = torch.linalg.svdvals(features)
    if singular.sum() == 0:
        return 0.0
    p = singular / singular.sum()
    return torch.exp(torch.special.entr(p).sum()).item()


def lidar(features: torch.Tensor, num_views: int, delta: float = 1e-4, epsilon: float = 1e-8) -> float:
    """
    LiDAR (Thilak et al. 2023): effective rank of the between-image covariance, whitened by the covariance within the
    views of an image.

    Args:
        features (`torch.FloatTensor` of shape `(num_images * num_views, d)`): The views of an image in consecutive
            rows; surplus rows at the end are dropped.
        num_views (`int`): Views of each image, at least 2.
        delta (`float`): Added to the diagonal of the within-image covariance.
        epsilon (`float`): Added to the eigenvalues.

    Returns:
        `float`: From 1 to `d`.

    Raises:
        ValueError: If features are not a finite matrix, or there are fewer than 2 views or 2 images.
    """
    features = _matrix(features)
    num_images = len(features) // max(num_views, 1)
    if num_views < 2 or num_images < 2:
        raise ValueError(f"LiDAR needs 2 images of 2 views or more, got {num_images} images of {num_views} views.")
    views = features[: num_images * num_views].view(num_images, num_views, -1)
    means = views.mean(dim=1)
    between = means - means.mean(dim=0)
    between = between.T @ between / (num_images - 1)
    within = (views - means[:, None]).flatten(0, 1)
    within = within.T @ within / (num_images * (num_views - 1))
    eigenvalues, vectors = torch.linalg.eigh(within + delta * torch.eye(len(within), dtype=within.dtype))
    whiten = vectors * eigenvalues.rsqrt() @ vectors.T
    spectrum = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp_min(0) + epsilon
    p = spectrum / spectrum.sum()
    return torch.exp(torch.special.entr(p).sum()).item()


def feature_std(features: torch.Tensor, normalize: bool = False) -> torch.Tensor:
    """
    Standard deviation of each dimension over the rows (unbiased): near zero everywhere after a collapse.

    Args:
        features (`torch.FloatTensor` of shape `(n, d)`): One row per image, at least 2.
        normalize (`bool`): L2-normalise the rows first; then `1 / sqrt(d)` is isotropic.

    Returns:
        `torch.FloatTensor` of shape `(d,)`, float64.

    Raises:
        ValueError: If features are not a finite matrix of at least two rows.
    """
    features = _matrix(features)
    if len(features) < 2:
        raise ValueError("feature_std needs at least 2 rows.")
    if normalize:
        features = F.normalize(features, dim=1)
    return features.std(dim=0)


def content_share(tokens: torch.Tensor) -> float:
    """
    Share of the tokens' variance that comes from the image rather than from the position: near zero when an encoder
    has collapsed to positions, which neither the loss nor the variance over tokens shows.

    Args:
        tokens (`torch.FloatTensor` of shape `(n, tokens, d)`): Patch tokens of at least two images.

    Returns:
        `float`: In [0, 1]; 0 if all tokens are equal.

    Raises:
        ValueError: If the shape is another.
    """
    if tokens.ndim != 3 or len(tokens) < 2:
        raise ValueError(f"tokens must have shape (n >= 2, tokens, d), got {tuple(tokens.shape)}.")
    total = tokens.flatten(0, 1).var(dim=0, correction=0).double().sum()
    across_images = tokens.var(dim=0, correction=0).double().sum(dim=1).mean()
    return (across_images / total).item() if total > 0 else 0.0


def collapse_report(features: torch.Tensor, max_rows: int = 8192) -> dict[str, Any]:
    """
    Label-free health of a representation.

    Args:
        features (`torch.FloatTensor` of shape `(n, d)` or `(n, tokens, d)`): Features of different images; patch
            tokens are averaged, after their share of content over position is measured.
        max_rows (`int`): Rows used for the ranks: the first ones.

    Returns:
        `dict`: `num_examples`, `width`, `rankme`, `effective_rank`, `effective_rank_centered`, `feature_std` (mean
        over dimensions), `feature_std_min`, `normalized_std` (mean std of the L2-normalised features times `sqrt(d)`:
        1 is isotropic), `relative_std` (spread over norm), for tokens `content_share`, and `verdict`: `"healthy"`,
        `"low_rank"` (centred effective rank below 5 % of what is possible), `"collapsed"` (all images have almost the
        same feature), `"collapsed_to_positions"` (tokens say where they are and not what is there) or `"not_finite"`.

    Raises:
        ValueError: If there are fewer than two rows.
    """
    report: dict[str, Any] = {"num_examples": len(features), "width": features.shape[-1]}
    if not torch.isfinite(features).all():
        return report | {"verdict": "not_finite"}
    if features.ndim == 3:
        report["content_share"] = content_share(features)
        features = features.mean(dim=1)
    std = feature_std(features)
    squared_norm = features.double().square().sum(dim=1).mean()
    rows = features[:max_rows]
    report |= {
        "rankme": rankme(rows),
        "effective_rank": effective_rank(rows),
        "effective_rank_centered": effective_rank(rows, centered=True),
        "feature_std": std.mean().item(),
        "feature_std_min": std.min().item(),
        "normalized_std": feature_std(features, normalize=True).mean().item() * features.shape[1] ** 0.5,
        "relative_std": (std.square().sum() / squared_norm).sqrt().item() if squared_norm > 0 else 0.0,
    }
    if report["relative_std"] < 0.01:
        verdict = "collapsed"
    elif report.get("content_share", 1.0) < 0.01:
        verdict = "collapsed_to_positions"
    elif report["effective_rank_centered"] < 0.05 * min(len(rows) - 1, features.shape[1]):
        verdict = "low_rank"
    else:
        verdict = "healthy"
    return report | {"verdict": verdict}
