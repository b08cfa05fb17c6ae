"""Where targets come from, and a regularizer against collapse: the two choices every mask-predicting JEPA offers."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from .objectives import RDMReg, SIGReg, VISReg, WeakSIGReg
from .objectives.distributed import gather_batch
from .objectives.vicreg import variance_covariance
from .parts import CompositeConfig

logger = logging.get_logger(__name__)

# What each original gives its regularizer against an invariance (mean squared error) of weight 1: LeJEPA's convex
# 0.05 (arXiv 2511.08544), VISReg's convex 0.02 (arXiv 2606.02572), Rectified LpJEPA's 125 to 25 (arXiv 2602.01456),
# VICReg's 25 std and 1 cov to 25 (arXiv 2105.04906, released code). Weak-SIGReg (arXiv 2603.05924) has stood beside
# classification only: its weight is ours. C-JEPA's has its own invariance (arXiv 2410.19560).
_WEIGHTS = {"sigreg": 0.05, "visreg": 0.02, "weak_sigreg": 1.0, "rdmreg": 5.0, "vicreg": 0.04, "cjepa": 0.001}
# What V-JEPA, which has no regularizer, may predict instead of its moving average.
_SALT = ("frozen", "pixels")
_STD_WEIGHT, _COV_WEIGHT = 25.0, 1.0


@strict
class RegularizedPreTrainingConfig(CompositeConfig):
    r"""
    The fields of the mask-predicting models' configs that say where targets come from and what else is minimised:
    `loss = prediction_loss + regularizer_weight * regularizer(embeddings)`.

    The embeddings are the context encoder's tokens averaged over each image: what the probes here and most users of
    the features read. They are regularised as they are, without a projector. The statistic is taken per context mask,
    over the images of all processes in one forward pass, and averaged over masks. A statistic near that of a Gaussian
    batch says that features have not collapsed, not that they are good: watch the probes beside `target_std`.

    Args:
        target (`"ema"`, `"stop_gradient"`, `"shared"` or `"frozen"`): what makes the targets. `"ema"`: an exponential
            moving average of the encoder, the originals' cure for collapse. `"stop_gradient"`: the encoder itself,
            without gradient. `"shared"`: the encoder itself, with gradient; both apply the encoder's own dropout to
            targets too. `"frozen"`: another encoder, the model's `teacher`, which stays as it is (SALT, arXiv
            2509.24317, whose teacher has learned to reconstruct pixels). All but the first have no `target_encoder`,
            and train without EMA.
        regularizer (`"none"`, `"sigreg"`, `"visreg"`, `"weak_sigreg"`, `"rdmreg"` or `"vicreg"`): `"sigreg"`:
            [`~hf_jepa.objectives.SIGReg`], the package form, which grows with the number of images in the batch.
            `"visreg"`: [`~hf_jepa.objectives.VISReg`], whose gradient does not fade when embeddings shrink.
            `"weak_sigreg"`: [`~hf_jepa.objectives.WeakSIGReg`], second moments only. `"rdmreg"`:
            [`~hf_jepa.objectives.RDMReg`] of the embeddings after a ReLU, p = 1 and mu = 0. `"vicreg"`: VICReg's
            variance (25) and covariance (1) terms; the prediction is the invariance.
        regularizer_weight (`float`, *optional*): the lambda of the additive loss above. LeJEPA's convex lambda `l`
            corresponds to `l / (1 - l)`, and SIGReg's value grows with the batch, so that a lambda fits one batch
            size. ([`~hf_jepa.objectives.collapse_ratio`] does not apply: it assumes that the prediction loss fades
            with the features' scale, and the targets here are layer-normed.) Defaults to what the originals give
            their regularizer relative to their invariance: 0.05 for SIGReg, 0.02 for VISReg, 5 for RDMReg, 0.04 for
            VICReg; 1 for Weak-SIGReg, which has no published one.
        num_slices (`int`, defaults to 1024): random directions per step of SIGReg, VISReg and RDMReg, and rows of
            Weak-SIGReg's sketch (64 in the paper; as many as the embeddings' width are the whole covariance).

    Raises:
        `ValueError`: for a weight that is negative or not finite, a weight without a regularizer, no slices.
    """

    target: Literal["ema", "stop_gradient", "shared", "frozen"] = "ema"
    regularizer: Literal["none", "sigreg", "visreg", "weak_sigreg", "rdmreg", "vicreg"] = "none"
    regularizer_weight: float | int | None = None
    num_slices: int = 1024

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.regularizer_weight is None:
            self.regularizer_weight = _WEIGHTS.get(self.regularizer)

    def validate_regularizer(self) -> None:
        """Refuses weights that make no sense, and warns of targets that nothing keeps from collapsing."""
        weight = self.regularizer_weight
        if weight is not None and not 0.0 <= weight < float("inf"):
            raise ValueError(f"`regularizer_weight` must be a finite number that is not negative, got {weight}.")
        if weight is not None and self.regularizer == "none":
            raise ValueError(
                f"`regularizer_weight` is {weight}, but `regularizer` is 'none'; choose one of {', '.join(_WEIGHTS)}."
            )
        if self.num_slices < 1:
            raise ValueError(f"`num_slices` must be at least 1, got {self.num_slices}.")
        if self.target in ("stop_gradient", "shared") and self.regularizer == "none" and not self.regularizes_itself:
            logger.warning_once(
                f'target="{self.target}" without a regularizer collapses: a constant encoder predicts itself '
                f'perfectly. Set `regularizer` ({", ".join(_WEIGHTS)}), or `target="ema"`.'
            )

    @property
    def regularizes_itself(self) -> bool:
        """Whether the method keeps embeddings apart by something of its own, such as negatives."""
        return False


def deviations(config: PreTrainedConfig) -> dict[str, Any]:
    """A config's `target`, `regularizer` and `regularizer_weight` if they are not the method's own, else nothing."""
    if not isinstance(config, RegularizedPreTrainingConfig):
        target = getattr(config, "target", None)
        return {"target": target, "regularizer": None, "regularizer_weight": None} if target in _SALT else {}
    method = type(config)
    if (config.target, config.regularizer) == (method.target, method.regularizer):
        return {}
    return {name: getattr(config, name) for name in ("target", "regularizer", "regularizer_weight")}


def build_regularizer(config: RegularizedPreTrainingConfig) -> nn.Module | None:
    """
    The module a model keeps as `self.regularizer`: it counts the steps that seed its directions. `None` where there is
    nothing to keep (no regularizer, VICReg).
    """
    if config.regularizer == "sigreg":
        return SIGReg(num_slices=config.num_slices)
    if config.regularizer == "rdmreg":
        return RDMReg(num_projections=config.num_slices)
    if config.regularizer == "visreg":
        return VISReg(config.num_slices)
    if config.regularizer == "weak_sigreg":
        return WeakSIGReg(config.num_slices)
    return None


def regularize(
    views: torch.Tensor, config: RegularizedPreTrainingConfig, regularizer: nn.Module | None
) -> tuple[torch.Tensor, str]:
    """
    The regularizer that a config asks for, over all processes. Callers pool what they regularize, and add the value
    times `config.regularizer_weight` to their loss.

    Args:
        views (`torch.FloatTensor` of shape `(views, batch, width)`): one statistic each, averaged.
        config ([`RegularizedPreTrainingConfig`]): with a `regularizer`.
        regularizer (`nn.Module`, *optional*): of [`build_regularizer`].

    Returns:
        The unweighted value, a scalar, and its name.

    Raises:
        `ValueError`: for a batch too small for the statistic.
    """
    if config.regularizer == "vicreg":
        std, cov = (term.mean() for term in variance_covariance(gather_batch(views, dim=1)))
        return _STD_WEIGHT * std + _COV_WEIGHT * cov, config.regularizer
    return regularizer(F.relu(views) if config.regularizer == "rdmreg" else views), config.regularizer
