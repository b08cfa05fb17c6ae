"""The video predictor: from visible tokens to what the target encoder makes of the others."""

import torch
from torch import nn
from transformers import initialization as init

from ...positions import resize_table
from ...predictor import gather_tokens
from .configuration_vjepa import VJepaConfig
from .encoder_vjepa import Grid, position_table
from .layers_vjepa import (
    Segment,
    VJepaPreTrainedModel,
    build_layers,
    pack,
    query_segments,
    query_tokens,
    rotary_tables,
    unpack,
)


class VJepaPredictorEmbeddings(nn.Module):
    """Visible tokens at the predictor's width, and mask tokens for the others."""

    def __init__(self, config: VJepaConfig):
        super().__init__()
        width, levels = config.pred_hidden_size, config.predicted_levels
        if levels == 1:
            self.predictor_embeddings = nn.Linear(config.hidden_size, width)
        else:
            self.predictor_embeddings = nn.Sequential(
                nn.Linear(levels * config.hidden_size, config.hidden_size),
                nn.GELU(),
                nn.Linear(config.hidden_size, width),
            )
        self.mask_tokens = nn.Parameter(torch.zeros(config.pred_num_mask_tokens, 1, 1, width))
        if config.use_image_tokenizer:
            self.video_modality = nn.Parameter(torch.zeros(1, 1, width))
            self.image_modality = nn.Parameter(torch.zeros(1, 1, width))
        if config.position_embedding_type == "sincos":
            slots, rows, columns = config.grid_size
            self.position_embeddings = nn.Parameter(torch.zeros(1, slots * rows * columns, width), requires_grad=False)


class VJepaPredictor(VJepaPreTrainedModel):
    """
    The predictor of all generations: a narrow ViT over visible and mask tokens. Attention has no order and positions
    travel with the tokens, so nothing is sorted.
    """

    def __init__(self, config: VJepaConfig):
        super().__init__(config)
        self.embeddings = VJepaPredictorEmbeddings(config)
        self.layer = build_layers(
            config,
            config.pred_hidden_size,
            config.pred_num_attention_heads,
            config.pred_mlp_ratio,
            config.pred_num_hidden_layers,
        )
        self.layernorm = nn.LayerNorm(config.pred_hidden_size, eps=config.layer_norm_eps)
        self.proj = nn.Linear(config.pred_hidden_size, config.predicted_size)
        if config.pred_context_output:
            self.proj_context = nn.Linear(config.pred_hidden_size, config.predicted_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VJepaPredictorEmbeddings):
            config = self.config
            if config.pred_zero_init_mask_tokens:
                init.zeros_(module.mask_tokens)
            else:
                init.normal_(module.mask_tokens, std=config.initializer_range)
            if config.use_image_tokenizer:
                init.normal_(module.video_modality, std=1e-6)
                init.normal_(module.image_modality, std=1e-6)
            if config.position_embedding_type == "sincos":
                init.copy_(module.position_embeddings, position_table(config, config.pred_hidden_size))

    def forward(
        self,
        context: list[torch.Tensor],
        context_mask: list[torch.Tensor],
        target_mask: list[torch.Tensor],
        grids: list[Grid],
        mask_token_index: list[int],
        is_image: list[bool] | None = None,
        predict_context: bool = False,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """
        Predicts for every pair `i` of a context and a target, all in one pass; lengths may differ between pairs.

        Args:
            context (`list` of `torch.Tensor` of shape `(batch, context_kept, predicted_levels * hidden_size)`):
                encoded visible tokens.
            context_mask (`list` of int64 tensors of shape `(batch, context_kept)`): where they lie.
            target_mask (`list` of int64 tensors of shape `(batch, target_kept)`): what to predict. With rotary
                positions it may lie after the end of the clip.
            grids (`list` of `tuple[int, int, int]`): time slots, rows and columns of each pair's clip.
            mask_token_index (`list[int]`): the mask token of each pair, modulo their number.
            is_image (`list[bool]`, *optional*): which pairs came through the image tokenizer.
            predict_context (`bool`): whether to predict the visible tokens too (V-JEPA 2.1).

        Returns:
            Predictions of shape `(batch, target_kept, predicted_size)`, one per pair, and with `predict_context` those
            of the visible tokens, `(batch, context_kept, predicted_size)`.

        Raises:
            `ValueError`: for `predict_context` without a head for it (`pred_context_output`).
        """
        if predict_context and not self.config.pred_context_output:
            raise ValueError("This predictor has no head for visible tokens; set `pred_context_output=True`.")
        tokens, segments = [], []
        for index, (features, visible, hidden) in enumerate(zip(context, context_mask, target_mask, strict=True)):
            embedded = self.embed(features, visible, hidden, grids[index], mask_token_index[index])
            if self.config.use_image_tokenizer:
                image = is_image is not None and is_image[index]
                modality = self.embeddings.image_modality if image else self.embeddings.video_modality
                embedded = embedded + modality.to(embedded.dtype)
            rotary = rotary_tables(
                self.config,
                torch.cat([visible, hidden], dim=1),
                grids[index][1:],
                self.config.pred_hidden_size // self.config.pred_num_attention_heads,
                embedded.dtype,
                self.config.pred_rope_interpolation,
            )
            tokens.append(embedded)
            segments.append(Segment(*embedded.shape[:2], rotary))

        packed = pack(tokens)
        for layer in self.layer[:-1]:
            packed = layer(packed, segments)
        starts = [segment._replace(start=mask.shape[1]) for segment, mask in zip(segments, context_mask, strict=True)]
        if not predict_context:
            packed = self.layernorm(self.layer[-1](packed, starts))
            return unpack(self.proj(packed), query_segments(starts)), None
        packed = self.layernorm(self.layer[-1](packed, segments))
        visible = pack([part[:, : start.start] for part, start in zip(unpack(packed, segments), starts, strict=True)])
        visible_segments = [Segment(start.batch, start.start) for start in starts]
        return (
            unpack(self.proj(query_tokens(packed, starts)), query_segments(starts)),
            unpack(self.proj_context(visible), visible_segments),
        )

    def embed(
        self,
        features: torch.Tensor,
        visible: torch.Tensor,
        hidden: torch.Tensor,
        grid: Grid,
        mask_token_index: int,
    ) -> torch.Tensor:
        """Visible tokens, then mask tokens, of one pair: `(batch, context_kept + target_kept, width)`."""
        embeddings = self.embeddings
        context = embeddings.predictor_embeddings(features)
        masked = embeddings.mask_tokens[mask_token_index % self.config.pred_num_mask_tokens].to(context.dtype)
        masked = masked.expand(*hidden.shape, -1)
        tokens = torch.cat([context, masked], dim=1)
        if self.config.position_embedding_type == "sincos":
            positions = resize_table(embeddings.position_embeddings, self.config.grid_size, grid)
            positions = gather_tokens(positions, torch.cat([visible, hidden], dim=1))
            tokens = tokens + positions.to(tokens.dtype)
        return tokens
