"""VL-JEPA's Y-decoder: text from an embedding of the shared space, by a soft prefix of a small language model."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from ...parts import build_part
from .configuration_vl_jepa import VLJepaConfig
from .text_encoder_vl_jepa import VLJepaPreTrainedModel


@dataclass
class VLJepaDecoderOutput(ModelOutput):
    """
    What [`VLJepaTextDecoder`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): mean cross-entropy over real tokens.
        logits (`torch.FloatTensor` of shape `(batch, length, vocabulary)`): what predicts each token.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class VLJepaTextDecoder(VLJepaPreTrainedModel):
    """
    The Y-decoder: a linear map turns an embedding into `y_decoder_prefix_length` soft tokens, which a causal language
    model continues. The paper says no more than "lightweight" and that it is trained apart; this form is ours. It
    reads L2-normalised embeddings, which is all that InfoNCE shapes.

    Args:
        config ([`VLJepaConfig`]): with a `y_decoder_config`.
        language_model (`PreTrainedModel`, *optional*): a loaded causal language model, used as it is.
    """

    main_input_name = "embeds"
    input_modalities = ("text",)

    def __init__(self, config: VLJepaConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if language_model is None:
            language_model = build_part(config.y_decoder_config, AutoModelForCausalLM)
        self.language_model = language_model
        self.width = language_model.get_input_embeddings().weight.shape[1]
        self.prefix = nn.Linear(config.projection_dim, config.y_decoder_prefix_length * self.width)
        self.freeze_language_model()
        self.post_init()

    def freeze_language_model(self) -> None:
        """Turns gradients of the language model off with `freeze_y_decoder`."""
        if self.config.freeze_y_decoder:
            self.language_model.requires_grad_(False)

    def soft_prefix(self, embeds: torch.Tensor) -> torch.Tensor:
        """`(batch, projection_dim)` -> `(batch, y_decoder_prefix_length, width)`; embeddings are normalised here."""
        prefix = self.prefix(F.normalize(embeds.to(self.prefix.weight.dtype), dim=-1))
        return prefix.view(len(embeds), -1, self.width).to(self.language_model.dtype)

    def forward(
        self,
        embeds: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
    ) -> VLJepaDecoderOutput:
        """
        The next-token loss of texts given their embeddings. Noise that makes target embeddings look like predicted
        ones is the caller's to add.

        Args:
            embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`).
            input_ids (`torch.LongTensor` of shape `(batch, length)`): with an end-of-text token, right-padded.
            attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 for padding.

        Returns:
            [`VLJepaDecoderOutput`].
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prefix = self.soft_prefix(embeds)
        words = self.language_model.get_input_embeddings()(input_ids)
        logits = self.language_model(
            inputs_embeds=torch.cat([prefix, words], dim=1),
            attention_mask=F.pad(mask, (prefix.shape[1], 0), value=1),
            use_cache=False,
        ).logits[:, prefix.shape[1] - 1 : -1]
        labels = input_ids.masked_fill(mask == 0, -100)
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return VLJepaDecoderOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(self, embeds: torch.FloatTensor, **options: Any) -> torch.LongTensor:
        """
        Texts of embeddings.

        Args:
            embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`).
            options: for `generate` of transformers, such as `max_new_tokens` (by default 64, greedy).

        Returns:
            `torch.LongTensor` of shape `(batch, new tokens)`.
        """
        prefix = self.soft_prefix(embeds)
        mask = torch.ones(prefix.shape[:2], dtype=torch.int64, device=prefix.device)
        options = {"max_new_tokens": 64, "do_sample": False, **options}
        return self.language_model.generate(inputs_embeds=prefix, attention_mask=mask, **options)
