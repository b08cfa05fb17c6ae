"""VICReg: variance, invariance and covariance of two views' embeddings (arXiv 2105.04906)."""

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from ...modeling_jepa import JepaOutput
from ...objectives import multi_view_vicreg, vicreg
from .configuration_joint_embedding import VICRegPreTrainingConfig
from .modeling_joint_embedding import JointEmbeddingPreTrainedModel, mlp


class VICRegForPreTraining(JointEmbeddingPreTrainedModel):
    """
    VICReg (arXiv 2105.04906): views agree, every dimension varies, dimensions are uncorrelated. For more than two
    views, the terms are averaged over all pairs (`convention="official"` only).
    """

    config: VICRegPreTrainingConfig

    def build_head(self, config: VICRegPreTrainingConfig) -> None:
        hidden = config.projector_hidden_size
        sizes = [config.pooled_size, hidden, hidden, config.projection_size]
        self.projector = nn.Sequential(*mlp(sizes, output_bias=False))

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, local_pixel_values: torch.FloatTensor | None = None
    ) -> JepaOutput:
        """Arguments, output and errors as in [`LeJepaForPreTraining.forward`]."""
        config = self.config
        pooled, projections = self.embed(pixel_values, local_pixel_values)
        weights = (config.sim_weight, config.std_weight, config.cov_weight)
        if len(projections) == 2:
            terms = vicreg(*projections, *weights, convention=config.convention)
        elif config.convention == "official":
            terms = multi_view_vicreg(projections, *weights)
        else:
            raise ValueError(f"convention={config.convention!r} is defined for two views, got {len(projections)}.")
        return JepaOutput(
            loss=terms.loss,
            loss_components={
                "invariance_loss": terms.sim.detach(),
                "std_loss": terms.std.detach(),
                "cov_loss": terms.cov.detach(),
            },
            context_features=pooled.flatten(0, 1).unsqueeze(1),
            projections=projections,
        )
