"""VICReg: variance-invariance-covariance regularization (arXiv 2105.04906), in the released code's numbers."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .distributed import all_reduce_sum, gather_batch
from .inputs import at_least_float32, checked_embeddings

VICRegConvention = Literal["official", "survey", "lightly", "solo", "eb_jepa", "pldm"]


class VICRegTerms(NamedTuple):
    """`loss = sim_weight * sim + std_weight * std + cov_weight * cov`; four scalars of shape `()`, float32."""

    loss: torch.FloatTensor
    sim: torch.FloatTensor
    std: torch.FloatTensor
    cov: torch.FloatTensor


def convention_factors(convention: VICRegConvention, width: int) -> tuple[float, float, float]:
    """
    What a code base's invariance, variance and covariance terms are, in units of the official ones.

    Args:
        convention (`str`): see [`vicreg`].
        width (`int`): of the embeddings.

    Returns:
        Three factors.

    Raises:
        `ValueError`: for an unknown convention.
    """
    per_pair = 1 / max(width - 1, 1)
    factors = {
        "official": (1.0, 1.0, 1.0),
        "lightly": (1.0, 1.0, 1.0),
        "survey": (float(width), 2.0, 1.0),
        "solo": (1.0, 2.0, 1.0),
        "eb_jepa": (1.0, 2.0, per_pair),
        "pldm": (1.0, 1.0, 0.5 * per_pair),
    }
    if convention not in factors:
        raise ValueError(f"`convention` must be one of {sorted(factors)}, got {convention!r}.")
    return factors[convention]


def variance_covariance(embeddings: torch.Tensor, eps: float = 1e-4) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The two terms that need the whole batch, per view.

    Args:
        embeddings (`torch.Tensor` of shape `(views, n, width)`): n at least 2.
        eps (`float`): under the square root.

    Returns:
        Hinge of the standard deviation at 1, averaged over dimensions, and the squared off-diagonal covariances summed
        over pairs and divided by the width: two tensors of shape `(views,)`, float32.

    Raises:
        `ValueError`: for fewer than two embeddings.
    """
    n, width = embeddings.shape[1:]
    if n < 2:
        raise ValueError(f"VICReg needs at least 2 embeddings for its variance, got {n}; raise the batch size.")
    embeddings = at_least_float32(embeddings)
    centred = embeddings - embeddings.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1) / (n - 1)
    with torch.autocast(centred.device.type, enabled=False):
        # The smaller of covariance (width x width) and Gram matrix (n x n) has the same squared norm.
        product = centred @ centred.mT if n < width else centred.mT @ centred
    squared_norm = (product / (n - 1)).square().sum(dim=(1, 2))
    return F.relu(1 - torch.sqrt(variance + eps)).mean(dim=1), (squared_norm - variance.square().sum(dim=1)) / width


def multi_view_vicreg(
    embeddings: torch.Tensor,
    sim_weight: float = 25.0,
    std_weight: float = 25.0,
    cov_weight: float = 1.0,
    convention: VICRegConvention = "official",
) -> VICRegTerms:
    """
    VICReg averaged over all ordered pairs of views, in closed form: no loop over pairs. Value and gradient are those
    of the joint batch of all processes, whose batches may differ in size.

    Args:
        embeddings (`torch.Tensor` of shape `(views, n, width)`): this rank's batch.
        sim_weight, std_weight, cov_weight (`float`): the coefficients.
        convention (`str`): see [`vicreg`].

    Returns:
        [`VICRegTerms`]: in the official convention `sim` is the mean squared difference of a pair, over n and width;
        `std` the average and `cov` the sum over the two views of a pair.

    Raises:
        `ValueError`: for fewer than two views or, over all processes, embeddings, an integer dtype, an unknown
            convention, and on CPU embeddings that are not finite.
    """
    if embeddings.ndim != 3 or embeddings.shape[0] < 2:
        raise ValueError(
            "VICReg compares views with each other: embeddings must have shape (views, n, width) with views at least "
            f"2, got {embeddings.shape[0]} in {tuple(embeddings.shape)}."
        )
    views, _, width = embeddings.shape
    factors = convention_factors(convention, width)
    embeddings = checked_embeddings(embeddings)
    joint = gather_batch(embeddings, dim=1)
    std, cov = variance_covariance(joint)
    # mean over i != j of |z_i - z_j|^2 = 2 / (views - 1) * sum_i |z_i - mean|^2
    spread = all_reduce_sum((embeddings - embeddings.mean(dim=0)).square().sum()) / (joint.shape[1] * width)
    sim, std, cov = spread * 2 / (views - 1) * factors[0], std.mean() * factors[1], 2 * cov.mean() * factors[2]
    return VICRegTerms(sim_weight * sim + std_weight * std + cov_weight * cov, sim, std, cov)


def vicreg(
    z_a: torch.Tensor,
    z_b: torch.Tensor,
    sim_weight: float = 25.0,
    std_weight: float = 25.0,
    cov_weight: float = 1.0,
    convention: VICRegConvention = "official",
) -> VICRegTerms:
    """
    VICReg of two views: by default in the released code's numbers. Invariance is the mean over n and width, the
    variance hinge the average and the covariance the sum of the two views, unbiased variance, eps 1e-4 under the root,
    embeddings gathered over processes with gradient. Weights mean other things elsewhere:

    | `convention` | invariance | variance hinge | squared covariances |
    |---|---|---|---|
    | `"official"`, `"lightly"` | mean over n and width | average of the views | sum of the views, / width |
    | `"survey"` (paper, eq. 1-6) | summed over the width | sum of the views | as official |
    | `"solo"` (solo-learn) | as official | sum of the views | as official |
    | `"eb_jepa"` | as official | sum of the views | sum of the views, / (width (width - 1)) |
    | `"pldm"` | as official | average of the views | average of the views, / (width (width - 1)) |

    All conventions here divide by the joint n - 1 and use every process's embeddings, which lightly does on request
    and eb_jepa and pldm do not.

    Args:
        z_a (`torch.Tensor` of shape `(n, width)`), z_b (the same): paired embeddings.
        sim_weight, std_weight, cov_weight (`float`): the coefficients.
        convention (`str`): the table above.

    Returns:
        [`VICRegTerms`].

    Raises:
        `ValueError`: for shapes that differ, fewer than two embeddings over all processes, an integer dtype, another
            convention, and on CPU embeddings that are not finite.
    """
    if z_a.shape != z_b.shape or z_a.ndim != 2:
        raise ValueError(f"Both views must have one shape (n, width), got {tuple(z_a.shape)} and {tuple(z_b.shape)}.")
    views = torch.stack([checked_embeddings(z_a), checked_embeddings(z_b)])
    return multi_view_vicreg(views, sim_weight, std_weight, cov_weight, convention)


class VICReg(nn.Module):
    """
    [`multi_view_vicreg`] with its settings kept.

    Args:
        sim_weight, std_weight, cov_weight (`float`): the coefficients.
        convention (`str`): see [`vicreg`].

    Raises:
        `ValueError`: for an unknown convention.
    """

    def __init__(
        self,
        sim_weight: float = 25.0,
        std_weight: float = 25.0,
        cov_weight: float = 1.0,
        convention: VICRegConvention = "official",
    ) -> None:
        super().__init__()
        convention_factors(convention, 2)
        self.weights, self.convention = (sim_weight, std_weight, cov_weight), convention

    def forward(self, embeddings: torch.Tensor) -> VICRegTerms:
        """
        Args:
            embeddings (`torch.Tensor` of shape `(views, n, width)`).

        Returns:
            [`VICRegTerms`].

        Raises:
            `ValueError`: as [`multi_view_vicreg`].
        """
        return multi_view_vicreg(embeddings, *self.weights, self.convention)

    def extra_repr(self) -> str:
        return f"weights={self.weights}, convention={self.convention!r}"
