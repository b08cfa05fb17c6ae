"""C-JEPA pretraining: I-JEPA with VICReg on projected block embeddings (arXiv 2410.19560)."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from ...modeling_jepa import JepaOutput
from ...objectives.distances import distance
from ...objectives.vicreg import VICRegTerms, gather_batch, multi_view_vicreg, variance_covariance
from ..ijepa.modeling_ijepa import IJepaForPreTraining
from .configuration_cjepa import CJepaPreTrainingConfig


class CJepaForPreTraining(IJepaForPreTraining):
    """
    Contrastive-JEPA (arXiv 2410.19560; survey's coefficients): I-JEPA plus `vicreg_weight` times VICReg.

    No official code exists, so this is a reading of the paper, not a port; the projector's architecture is not given
    there, and ours is VICReg's own (two hidden layers with batch norm and ReLU). The paper regularises "context
    embeddings", which has two readings:

    - `regularized="predicted_blocks"` (the survey's, and the paper's Algorithm 1): the predictor's output, averaged
      over each target block and projected; VICReg between all ordered pairs of an image's blocks.
    - `regularized="context"` (the paper's Python-like listing): the context encoder's output, averaged and projected;
      its invariance is to the equally averaged and projected target features, which get no gradient, and variance and
      covariance act on the context alone.
    """

    config: CJepaPreTrainingConfig

    def build_head(self, config: CJepaPreTrainingConfig) -> None:
        hidden, output = config.projector_hidden_size, config.projector_output_size
        self.projector = nn.Sequential(
            nn.Linear(config.encoder_config.hidden_size, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, output, bias=False),
        )

    @torch.no_grad()
    def initialize_weights(self) -> None:
        super().initialize_weights()
        for child in self.projector:
            if isinstance(child, nn.Linear):
                # A projector of 0.02 weights would start with a variance far below the hinge's target of 1.
                init.normal_(child.weight, std=child.in_features**-0.5)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        context_mask: list[torch.LongTensor],
        target_mask: list[torch.LongTensor],
    ) -> JepaOutput:
        """
        Arguments and output as in [`IJepaForPreTraining.forward`]; `loss_components` adds the three VICReg terms.

        Raises:
            `ValueError`: also for a batch of fewer than two images, or a single target block where blocks are
            compared.
        """
        if pixel_values.shape[0] < 2:
            raise ValueError(
                f"C-JEPA's variance term needs a batch of at least 2 images, got {pixel_values.shape[0]}."
            )
        context, predictions, targets = self.predict(pixel_values, context_mask, target_mask)
        prediction_loss = distance(predictions, targets, self.config.loss_type).mean()
        if self.config.regularized == "predicted_blocks":
            terms = self._regularize_blocks(predictions, len(target_mask))
        else:
            terms = self._regularize_context(context, targets, len(target_mask), len(context_mask))
        return JepaOutput(
            loss=prediction_loss + self.config.vicreg_weight * terms.loss,
            loss_components={
                "prediction_loss": prediction_loss.detach(),
                "vicreg_sim": terms.sim.detach(),
                "vicreg_std": terms.std.detach(),
                "vicreg_cov": terms.cov.detach(),
            },
            predictions=predictions.chunk(len(target_mask)),
            targets=targets.chunk(len(target_mask)),
            context_features=context,
        )

    def _weights(self) -> tuple[float, float, float]:
        return self.config.sim_weight, self.config.std_weight, self.config.cov_weight

    def _regularize_blocks(self, predictions: torch.Tensor, blocks: int) -> VICRegTerms:
        embeddings = self.projector(predictions.mean(dim=1))
        return multi_view_vicreg(embeddings.view(blocks, -1, embeddings.shape[-1]), *self._weights())

    def _regularize_context(
        self, context: torch.Tensor, targets: torch.Tensor, blocks: int, contexts: int
    ) -> VICRegTerms:
        embeddings = self.projector(context.mean(dim=1))
        with torch.no_grad():
            pooled = targets.view(blocks, *context.shape[:1], *targets.shape[1:]).mean(dim=(0, 2))
            goal = self.projector(pooled.to(context.dtype))
        sim = (embeddings.float() - goal.float()).square().mean()
        views = embeddings.view(contexts, -1, embeddings.shape[-1])
        std, cov = (term.mean() for term in variance_covariance(gather_batch(views, dim=1)))
        sim_weight, std_weight, cov_weight = self._weights()
        return VICRegTerms(sim_weight * sim + std_weight * std + cov_weight * cov, sim, std, cov)
