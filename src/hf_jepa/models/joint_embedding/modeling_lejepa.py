"""LeJEPA: views of an image agree, embeddings are an isotropic Gaussian (arXiv 2511.08544)."""

import copy
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils.generic import can_return_tuple

from ...modeling_jepa import JepaOutput
from ...objectives import SIGReg, VISReg, WeakSIGReg, collapse_ratio, sigreg
from ...objectives.inputs import at_least_float32
from .configuration_joint_embedding import LeJepaPreTrainingConfig
from .modeling_joint_embedding import JointEmbeddingPreTrainedModel, mlp, pairwise_distance

Centre = Literal["all_views", "global_views", "pairs"]

# With `target="ema"`, parts that have a moving average.
_AVERAGED = ("encoder", "embedding", "projector")


def view_distance(
    projections: torch.Tensor,
    centre: Centre = "all_views",
    num_global_views: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    targets: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    How far an image's views lie apart.

    Args:
        projections (`torch.FloatTensor` of shape `(views, batch, width)`): global views first.
        centre (`str`): `"all_views"` or `"global_views"`: squared distance to the mean of these views, averaged over
            all views; the mean is not detached. `"pairs"`: squared distance of two views, averaged over all pairs.
        num_global_views (`int`, *optional*): needed for `"global_views"`.
        reduction (`str`): over the width.
        targets (`torch.FloatTensor` of shape `(global views, batch, width)`, *optional*): whose mean the centre is
            instead, for `"global_views"`: what another network makes of the global views.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`, float32 (float64 stays).

    Raises:
        `ValueError`: for an unknown centre or reduction, global views that are not counted, or targets of another
            centre.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'`reduction` must be "mean" or "sum", got {reduction!r}.')
    if centre not in ("all_views", "global_views", "pairs"):
        raise ValueError(f'`centre` must be "all_views", "global_views" or "pairs", got {centre!r}.')
    if centre == "global_views" and (num_global_views is None or not 0 < num_global_views <= len(projections)):
        raise ValueError(
            f"`num_global_views` must count the first of {len(projections)} views, got {num_global_views}."
        )
    if targets is not None and centre != "global_views":
        raise ValueError(f'`targets` are global views, whose mean is `centre="global_views"`, not {centre!r}.')
    projections = at_least_float32(projections)
    scale = projections.shape[-1] if reduction == "sum" else 1
    if centre == "pairs":
        return pairwise_distance(projections) * scale
    if targets is None:
        targets = projections[: num_global_views if centre == "global_views" else None]
    middle = at_least_float32(targets).mean(dim=0)
    return (middle - projections).square().mean(dim=(0, 2)) * scale


def lejepa_loss(
    projections: torch.Tensor,
    directions: torch.Tensor,
    regularizer_weight: float = 0.02,
    combination: Literal["convex", "additive"] = "convex",
    centre: Centre = "all_views",
    num_global_views: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    **sigreg_options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    LeJEPA's loss with given directions. By default MINIMAL.md's; [`LeJepaPreTrainingConfig`] has a table of others.

    Args:
        projections (`torch.FloatTensor` of shape `(views, batch, width)`): global views first.
        directions (`torch.FloatTensor` of shape `(slices, width)`): unit rows.
        regularizer_weight (`float`): lambda.
        combination (`str`): `"convex"` or `"additive"`.
        centre, num_global_views, reduction: see [`view_distance`].
        sigreg_options: of [`~hf_jepa.objectives.sigreg`], such as `form`, `flatten_views`, `t_max`.

    Returns:
        Loss, invariance and SIGReg, three scalars.

    Raises:
        `ValueError`: for an unknown combination, and what [`view_distance`] and [`~hf_jepa.objectives.sigreg`] refuse.
    """
    if combination not in ("convex", "additive"):
        raise ValueError(f'`combination` must be "convex" or "additive", got {combination!r}.')
    invariance = view_distance(projections, centre, num_global_views, reduction).mean()
    regularizer = sigreg(projections, directions, **sigreg_options)
    return _combine(invariance, regularizer, regularizer_weight, combination), invariance, regularizer


def _combine(invariance: torch.Tensor, regularizer: torch.Tensor, weight: float, combination: str) -> torch.Tensor:
    return (1 - weight if combination == "convex" else 1) * invariance + weight * regularizer


class LeJepaForPreTraining(JointEmbeddingPreTrainedModel):
    """
    LeJEPA (arXiv 2511.08544): every view's embedding is pulled to the centre of its image's views, and SIGReg makes
    the embeddings' distribution an isotropic Gaussian, which rules out collapse. No target encoder, no predictor, no
    stop-gradient. Which of the published losses is a matter of the config; the default is the authors' MINIMAL.md.

    With `target="ema"` (the paper's optional SWA) there are `target_encoder`, `target_embedding` and
    `target_projector`, moving averages of the parts that train, updated by [`update_target`]. What they make of the
    global views gives the centre, without gradient; SIGReg sees the trained network's projections as ever. Nothing is
    dropped in them (dropout, paths, patches). Their batch norms normalise by the global views' own statistics in
    training, and keep running ones of these for evaluation, instead of taking those of the trained network, whose
    activations are others.

    SIGReg is a statistic of the batch: its value and gradient are those of the joint batch of all processes, but of
    each micro-batch under gradient accumulation, which is hence another objective than one large batch.

    Example:

    ```python
    >>> from hf_jepa import LeJepaForPreTraining, LeJepaPreTrainingConfig
    >>> from transformers import TimmWrapperConfig
    >>> encoder = TimmWrapperConfig(architecture="resnet18")
    >>> model = LeJepaForPreTraining(LeJepaPreTrainingConfig(encoder_config=encoder, image_size=64))
    >>> views, local_views = torch.randn(8, 2, 3, 64, 64), torch.randn(8, 4, 3, 32, 32)
    >>> loss = model(views, local_views).loss
    ```
    """

    config: LeJepaPreTrainingConfig

    def build_head(self, config: LeJepaPreTrainingConfig) -> None:
        width = config.embedding_size or config.pooled_size
        self.embedding = nn.Linear(config.pooled_size, width) if config.embedding_size else nn.Identity()
        hidden = config.projector_hidden_size
        self.projector = nn.Sequential(*mlp([width, hidden, hidden, config.projection_size]))
        if config.regularizer == "sigreg":
            self.sigreg = SIGReg(
                config.num_slices,
                config.t_max,
                config.num_points,
                config.sigreg_form,
                config.flatten_views,
                config.scale_by_batch,
            )
        else:
            kind = {"visreg": VISReg, "weak_sigreg": WeakSIGReg}[config.regularizer]
            self.add_module(config.regularizer, kind(config.num_slices))
        if config.target == "ema":
            for name in _AVERAGED:
                self.add_module(f"target_{name}", copy.deepcopy(getattr(self, name)))

    def _teachers(self) -> list[nn.Module]:
        return [target for target, _ in self._twins()]

    def _twins(self) -> list[tuple[nn.Module, nn.Module]]:
        names = _AVERAGED if self.has_target_encoder else ()
        return [(getattr(self, f"target_{name}"), getattr(self, name)) for name in names]

    def _copy_buffers(self, target: nn.Module, source: nn.Module) -> None:
        for own, other in zip(target.modules(), source.modules(), strict=True):
            if isinstance(own, _BatchNorm):
                continue
            for buffer, new in zip(own.buffers(recurse=False), other.buffers(recurse=False), strict=True):
                buffer.copy_(new)

    def train(self, mode: bool = True) -> "LeJepaForPreTraining":
        super().train(mode)
        for part in self._teachers():
            for module in part.modules():
                if isinstance(module, _BatchNorm):
                    # Not `train()`: timm's may hold a dropout.
                    module.training = mode
        return self

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        return super()._project(self.embedding(pooled))

    @torch.no_grad()
    def _targets(self, pixel_values: torch.Tensor) -> torch.Tensor:
        pooled = self._encode_views(pixel_values, "target")
        return self._apply_head(self.target_projector, self.target_embedding(pooled))

    def _distances(self, projections: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        targets = self._targets(pixel_values) if self.has_target_encoder else None
        return view_distance(
            projections, self.config.centre, pixel_values.shape[1], self.config.reduction, targets=targets
        )

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, local_pixel_values: torch.FloatTensor | None = None
    ) -> JepaOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, views, channels, height, width)`): global views.
            local_pixel_values (`torch.FloatTensor` of shape `(batch, local views, channels, h, w)`, *optional*).

        Returns:
            [`JepaOutput`]: `projections` of shape `(views, batch, width)`, `context_features` of shape
            `(views * batch, 1, pooled width)`, global views first.

        Raises:
            `ValueError`: for fewer than two views, a batch of one, or views that do not fit.
        """
        pooled, projections = self.embed(pixel_values, local_pixel_values)
        invariance = self._distances(projections, pixel_values).mean()
        name = self.config.regularizer
        regularizer = getattr(self, name)(projections)
        loss = _combine(invariance, regularizer, self.config.regularizer_weight, self.config.combination)
        return JepaOutput(
            loss=loss,
            loss_components={"invariance_loss": invariance.detach(), f"{name}_loss": regularizer.detach()},
            context_features=pooled.flatten(0, 1).unsqueeze(1),
            projections=projections,
        )

    def batch_warning(self, batch_size: int) -> str | None:
        config = self.config
        if batch_size < 2 or config.regularizer != "sigreg":
            return None
        ratio = collapse_ratio(
            config.regularizer_weight,
            # Two views at least make up the flattened sample.
            batch_size * (2 if config.flatten_views else 1),
            config.t_max,
            config.num_points,
            config.sigreg_form,
            config.scale_by_batch,
            convex=config.combination == "convex",
        )
        if config.reduction == "sum":
            ratio /= config.projection_size
        if config.centre == "pairs":
            # Two views are twice as far from each other as from their middle, and the distance is squared.
            ratio /= 4
        # An averaged network's centre has no gradient, and 1 is enough of any number of views: what differs within an
        # image is pushed and pulled as with a centre of its own, and what its views share grows however slowly the
        # centre follows, as nothing but the distance to it is pulled. A global centre with gradient is pulled to local
        # views too: squared distances to it are up to (views / global views) times the embeddings' squared norms.
        if ratio >= 1:
            return None
        with_local_views = config.centre == "global_views" and config.target == "shared"
        safe = "1 is safe" + " (with local views: views / global views)" * with_local_views
        return (
            f"LeJEPA with regularizer_weight={config.regularizer_weight:g} and {batch_size} images per forward pass "
            f"may collapse: SIGReg pushes a nearly collapsed batch apart {ratio:.2g} times as strongly as the "
            f"invariance pulls views together, and {safe}. Raise one of the two {1 / ratio:.2g}-fold."
            if ratio
            else f"LeJEPA with regularizer_weight={config.regularizer_weight:g} has nothing against collapse."
        )

    @torch.no_grad()
    def energy(
        self, pixel_values: torch.FloatTensor, local_pixel_values: torch.FloatTensor | None = None
    ) -> torch.FloatTensor:
        """
        How far an image's views lie apart: the invariance term before its mean over the batch. Arguments as in
        `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.
        """
        _, projections = self.embed(pixel_values, local_pixel_values)
        return self._distances(projections, pixel_values)
