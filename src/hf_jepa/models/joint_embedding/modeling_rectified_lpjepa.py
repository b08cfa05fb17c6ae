"""Rectified LpJEPA: views agree, embeddings follow a rectified generalized Gaussian (arXiv 2602.01456)."""

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from ...modeling_jepa import JepaOutput
from ...objectives import RDMReg
from ...objectives.inputs import at_least_float32
from .configuration_joint_embedding import RectifiedLpJepaPreTrainingConfig
from .modeling_joint_embedding import JointEmbeddingPreTrainedModel, mlp, pairwise_distance


class RectifiedLpJepaForPreTraining(JointEmbeddingPreTrainedModel):
    """
    Rectified LpJEPA (arXiv 2602.01456): the projector ends in a ReLU, and RDMReg matches what comes out of it with a
    rectified generalized Gaussian, so that embeddings are sparse by design. For more than the original's two views,
    the invariance is averaged over pairs and the regularizer over views.
    """

    config: RectifiedLpJepaPreTrainingConfig

    def build_head(self, config: RectifiedLpJepaPreTrainingConfig) -> None:
        hidden = config.projector_hidden_size
        layers = mlp([config.pooled_size, hidden, hidden, config.projection_size])
        self.projector = nn.Sequential(*layers, *([nn.ReLU()] if config.rectify else []))
        target = config.p, config.mu, config.sigma
        self.rdmreg = RDMReg(*target, config.num_projections, config.rectify, config.projection)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, local_pixel_values: torch.FloatTensor | None = None
    ) -> JepaOutput:
        """
        Arguments, output and errors as in [`LeJepaForPreTraining.forward`]; `loss_components` adds `active_fraction`,
        the share of entries that are not zero.
        """
        pooled, projections = self.embed(pixel_values, local_pixel_values)
        invariance = pairwise_distance(at_least_float32(projections)).mean()
        regularizer = self.rdmreg(projections)
        return JepaOutput(
            loss=self.config.invariance_weight * invariance + self.config.regularizer_weight * regularizer,
            loss_components={
                "invariance_loss": invariance.detach(),
                "rdmreg_loss": regularizer.detach(),
                "active_fraction": (projections.detach() != 0).float().mean(),
            },
            context_features=pooled.flatten(0, 1).unsqueeze(1),
            projections=projections,
        )
