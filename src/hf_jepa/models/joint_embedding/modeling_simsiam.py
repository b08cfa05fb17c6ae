"""SimSiam: predict one view's embedding from the other's, gradient on one side only (arXiv 2011.10566)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.generic import can_return_tuple

from ...modeling_jepa import JepaOutput
from ...objectives.inputs import at_least_float32
from .configuration_joint_embedding import SimSiamPreTrainingConfig
from .modeling_joint_embedding import JointEmbeddingPreTrainedModel, mlp


def negative_cosine(predictions: torch.Tensor, projections: torch.Tensor) -> torch.Tensor:
    """
    SimSiam's symmetric energy: minus the cosine of each view's prediction with the other view's projection, which gets
    no gradient, averaged over both directions.

    Args:
        predictions (`torch.FloatTensor` of shape `(2, batch, width)`).
        projections (`torch.FloatTensor` of shape `(2, batch, width)`).

    Returns:
        `torch.FloatTensor` of shape `(batch,)`, float32 (float64 stays).
    """
    targets = at_least_float32(projections.detach().flip(0))
    return -F.cosine_similarity(at_least_float32(predictions), targets, dim=2).mean(dim=0)


class SimSiamForPreTraining(JointEmbeddingPreTrainedModel):
    """
    SimSiam (arXiv 2011.10566), the baseline of JEPAs without EMA: two views, a predictor, and a stop-gradient, without
    which it collapses. Each view is normalised with its own batch statistics.

    `loss_components` holds `normalized_std`, the paper's test for collapse: the standard deviation over the batch of
    the projections scaled to length 1, averaged over dimensions; `projection_size ** -0.5` is healthy, 0 is collapse.
    """

    config: SimSiamPreTrainingConfig
    max_views = 2
    takes_local_views = False

    def build_head(self, config: SimSiamPreTrainingConfig) -> None:
        width, output = config.pooled_size, config.projection_size
        hidden = config.projector_hidden_size or width
        layers = mlp([width, hidden, hidden, output], hidden_bias=False)
        self.projector = nn.Sequential(*layers, nn.BatchNorm1d(output, affine=False))
        self.predictor = nn.Sequential(*mlp([output, config.predictor_hidden_size, output], hidden_bias=False))

    def frozen(self) -> Iterator[nn.Module | nn.Parameter]:
        yield from super().frozen()
        # A batch norm follows: the released code leaves this bias at its initial value.
        yield self.projector[-2].bias

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, local_pixel_values: torch.FloatTensor | None = None
    ) -> JepaOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 2, channels, height, width)`): two views.
            local_pixel_values: must be left out.

        Returns:
            [`JepaOutput`]: `predictions` and `targets` hold one tensor of shape `(batch, width)` per view, the targets
            being the other view's projections; `projections` has shape `(2, batch, width)`.

        Raises:
            `ValueError`: for another number of views, or a batch of one.
        """
        pooled, projections = self.embed(pixel_values, local_pixel_values)
        predictions = self._apply_head(self.predictor, projections)
        loss = negative_cosine(predictions, projections).mean()
        directions = F.normalize(at_least_float32(projections.detach()), dim=2)
        return JepaOutput(
            loss=loss,
            loss_components={
                "prediction_loss": loss.detach(),
                "normalized_std": directions.std(dim=1, correction=0).mean(),
            },
            predictions=predictions.unbind(),
            targets=projections.detach().flip(0).unbind(),
            context_features=pooled.flatten(0, 1).unsqueeze(1),
            projections=projections,
        )

    @torch.no_grad()
    def energy(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """
        How badly an image's views predict each other: minus the cosine, averaged over both directions. Arguments as in
        `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.
        """
        _, projections = self.embed(pixel_values)
        return negative_cosine(self._apply_head(self.predictor, projections), projections)
