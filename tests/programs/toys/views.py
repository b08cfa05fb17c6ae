"""A method of views: a projector of one layer, and views that agree, held apart by their variance."""

import torch
from torch import nn

from hf_jepa import JepaOutput, Method, ModelClass, register_method
from hf_jepa.models.joint_embedding.configuration_joint_embedding import JointEmbeddingPreTrainingConfig
from hf_jepa.models.joint_embedding.modeling_joint_embedding import JointEmbeddingPreTrainedModel


class AgreeConfig(JointEmbeddingPreTrainingConfig):
    model_type = "toy_agree_pretraining"


class AgreeForPreTraining(JointEmbeddingPreTrainedModel):
    config: AgreeConfig
    config_class = AgreeConfig

    def build_head(self, config: AgreeConfig) -> None:
        self.projector = nn.Linear(config.pooled_size, 8)

    def forward(self, pixel_values, local_pixel_values=None) -> JepaOutput:
        _, projections = self.embed(pixel_values, local_pixel_values)
        agree = (projections - projections.mean(dim=0)).square().mean()
        apart = torch.relu(1 - projections.std(dim=1)).mean()
        loss = agree + apart
        return JepaOutput(
            loss=loss, loss_components={"agree": agree.detach(), "apart": apart.detach()}, projections=projections
        )


METHOD = register_method(
    Method("toy_agree", "Toy agree", "A toy.", composite=ModelClass(AgreeConfig, AgreeForPreTraining), batches="views")
)
