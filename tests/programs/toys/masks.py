"""A method of masks from nothing: the mean of the visible tokens must tell the mean of the hidden ones."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from hf_jepa import JepaOutput, JepaPreTrainedModel, Method, ModelClass, register_method


class MeanJepaConfig(PreTrainedConfig):
    model_type = "toy_mean_pretraining"
    sub_configs = {"encoder_config": AutoConfig}
    encoder_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.encoder_config, dict):
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        super().__post_init__(**kwargs)


class MeanJepaForPreTraining(JepaPreTrainedModel):
    config: MeanJepaConfig
    config_class = MeanJepaConfig

    def __init__(self, config: MeanJepaConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config)
        self.predictor = nn.Linear(config.encoder_config.hidden_size, config.encoder_config.hidden_size)
        self.post_init()

    def forward(self, pixel_values, context_mask, target_mask) -> JepaOutput:
        tokens = self.encoder(pixel_values).last_hidden_state

        def mean(mask: torch.Tensor) -> torch.Tensor:
            return tokens.gather(1, mask.unsqueeze(2).expand(-1, -1, tokens.shape[2])).mean(dim=1)

        predicted = self.predictor(mean(context_mask[0]))
        loss = torch.stack([F.mse_loss(predicted, mean(mask).detach()) for mask in target_mask]).mean()
        return JepaOutput(loss=loss, loss_components={"mean_loss": loss.detach()})

    def get_features(self, pixel_values, which="target") -> torch.Tensor:
        return self.encoder(pixel_values).last_hidden_state


METHOD = register_method(
    Method(
        "toy_mean",
        "Toy mean",
        "A toy.",
        composite=ModelClass(MeanJepaConfig, MeanJepaForPreTraining),
        batches="masks",
    )
)
