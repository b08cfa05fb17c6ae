"""I-JEPA pretraining: context encoder, EMA target encoder, narrow predictor (arXiv 2301.08243)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from ...encoders import build_encoder, run_encoder, vision_width
from ...modeling_jepa import JepaOutput, JepaPreTrainedModel, check_masks, check_pixels
from ...objectives.distances import distance, normalize_targets
from ...parts import build_part
from ...positions import pair, sincos_2d
from ...predictor import MaskedTokenPredictor, gather_tokens
from ...regularized import build_regularizer, regularize
from ...token_layouts import patch_tokens
from .configuration_ijepa import CJepaPreTrainingConfig, IJepaPreTrainingConfig
from .in_tree_ijepa import use_table_at_configured_size
from .objective_ijepa import build_projector, projected_vicreg

use_table_at_configured_size()


def embed_patches(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Patch tokens plus positions of an in-tree `IJepaModel`: its stored table at the configured size, the sine-cosine
    table at any other.

    Args:
        encoder (`IJepaModel`).
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).

    Returns:
        `torch.FloatTensor` of shape `(batch, tokens, width)`, tokens in row-major order.
    """
    check_pixels(pixel_values)
    tokens = encoder.embeddings.patch_embeddings(pixel_values.to(encoder.dtype))
    positions = position_embeddings_at(encoder, tuple(pixel_values.shape[-2:]))
    return encoder.embeddings.dropout(tokens + positions.to(tokens.dtype))


def position_embeddings_at(encoder: PreTrainedModel, size: tuple[int, int]) -> torch.Tensor:
    """
    The positions of an in-tree `IJepaModel` for images of a size, see [`embed_patches`].

    Args:
        encoder (`IJepaModel`).
        size (`tuple[int, int]`): height and width in pixels.

    Returns:
        `torch.FloatTensor` of shape `(1, tokens, width)`.
    """
    table = encoder.embeddings.position_embeddings
    if size == tuple(encoder.embeddings.image_size):
        return table
    return sincos_2d(grid_of(encoder.config.patch_size, size), table.shape[-1], device=table.device)[None]


def grid_of(patch_size: int | list[int] | tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """
    Rows and columns of an image, in patches.

    Raises:
        `ValueError`: if patches do not divide the image.
    """
    patch = pair(patch_size)
    if size[0] % patch[0] or size[1] % patch[1] or not size[0] or not size[1]:
        raise ValueError(f"Images of {size[0]}x{size[1]} pixels cannot be cut into patches of {patch[0]}x{patch[1]}.")
    return size[0] // patch[0], size[1] // patch[1]


def encode_tokens(
    encoder: PreTrainedModel, pixel_values: torch.Tensor, masks: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """
    Runs an in-tree `IJepaModel` on the visible tokens only: the others are dropped before the first block.

    Args:
        encoder (`IJepaModel`).
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).
        masks (`list` of int64 tensors of shape `(batch, kept)`, *optional*): token indices; all tokens when omitted.

    Returns:
        `torch.FloatTensor` of shape `(len(masks) * batch, kept, width)`, mask major, after the final norm.
    """
    hidden_states = embed_patches(encoder, pixel_values)
    if masks is not None:
        hidden_states = torch.cat([gather_tokens(hidden_states, mask) for mask in masks])
    for layer in encoder.layers:
        hidden_states = layer(hidden_states)
    return encoder.layernorm(hidden_states)


def tokens_width(encoder: PreTrainedModel) -> int:
    """Width of an encoder's tokens; found out where its config does not say."""
    return getattr(encoder.config, "hidden_size", None) or vision_width(encoder)


class IJepaForPreTraining(JepaPreTrainedModel):
    """
    I-JEPA (arXiv 2301.08243): from the visible tokens of an image, predict what an EMA copy of the encoder makes of
    hidden blocks of it. Follows the released code where it differs from the paper: smooth-L1 instead of L2, and
    targets layer-normed over features without affine.

    With `regularizer` and `target` of the config, what keeps the encoder from collapsing can be a regularizer instead
    of (or beside) the EMA copy, or a `teacher` that does not learn (SALT, arXiv 2509.24317); without an EMA copy there
    is no `target_encoder`.

    Example:

    ```python
    >>> from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig
    >>> from hf_jepa.masking import MultiBlockMaskGenerator
    >>> model = IJepaForPreTraining(IJepaPreTrainingConfig.from_size("tiny"))
    >>> context_mask, target_mask = MultiBlockMaskGenerator(image_size=224, patch_size=16)(batch_size=2)
    >>> loss = model(torch.randn(2, 3, 224, 224), context_mask, target_mask).loss
    ```
    """

    config: IJepaPreTrainingConfig
    _sized_keys = ("embeddings.position_embeddings",)

    def __init__(self, config: IJepaPreTrainingConfig):
        super().__init__(config)
        # The composite's own post_init draws the weights; drawing them in each part first would be work done twice.
        with init.no_init_weights():
            self.encoder = build_part(config.encoder_config)
            self.target_encoder = build_part(config.encoder_config) if config.target == "ema" else None
            self.teacher = build_encoder(config.teacher_config) if config.target == "frozen" else None
            self.predictor = MaskedTokenPredictor(
                config.predictor_config,
                config.encoder_config.hidden_size,
                config.grid_size,
                None if self.teacher is None else tokens_width(self.teacher),
            )
        self.regularizer = build_regularizer(config)
        self.projector = build_projector(config) if config.regularizer == "cjepa" else None
        self.build_head(config)
        self.post_init()
        self.apply_requires_grad()
        # post_init draws the two encoders independently (they are equal only from here on).
        if self.device.type != "meta":
            self.sync_target()

    def build_head(self, config: IJepaPreTrainingConfig) -> None:
        """Makes what a subclass has beside encoders and predictor, before the weights are drawn."""

    def frozen(self) -> Iterator[nn.Module | nn.Parameter]:
        yield from super().frozen()
        yield self.encoder.embeddings.position_embeddings
        yield self.predictor.position_embeddings

    @classmethod
    def _resize(cls, encoder_config: PreTrainedConfig, image_size: Any, fields: dict[str, Any]) -> None:
        # The table is a function of the size.
        encoder_config.image_size = list(image_size) if isinstance(image_size, tuple) else image_size

    @torch.no_grad()
    def initialize_weights(self) -> None:
        # In-tree parts draw their own weights; a composite without parameters of its own gets no `_init_weights` call.
        super().initialize_weights()
        table = sincos_2d(self.config.grid_size, self.config.encoder_config.hidden_size)[None]
        encoders = [encoder for encoder in (self.encoder, self.target_encoder) if encoder is not None]
        for encoder in encoders:
            init.copy_(encoder.embeddings.position_embeddings, table)
        for part in (*encoders, self.predictor):
            for child in part.modules():
                if isinstance(child, nn.Linear | nn.Conv2d):
                    std = self.config.initializer_range
                    if self.config.initialization == "fan_in":
                        std = child.weight[0].numel() ** -0.5
                    init.normal_(child.weight, std=std)
        for child in self.projector or ():
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
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): any size that patches
            divide.
            context_mask (`list` of int64 tensors of shape `(batch, kept)`): visible tokens, row-major indices.
            target_mask (`list` of int64 tensors of shape `(batch, kept)`): one per block to predict.

        Returns:
            [`JepaOutput`]: `predictions` and `targets` hold one tensor of shape
            `(len(context_mask) * batch, kept, width)` per target mask, context mask major.

        Raises:
            `ValueError`: for masks or image sizes that do not fit, or a batch too small for the regularizer.
        """
        context, predictions, targets = self.predict(pixel_values, context_mask, target_mask)
        loss = distance(predictions, targets, self.config.loss_type).mean()
        components = {"prediction_loss": loss.detach()}
        if self.config.regularizer != "none":
            value, terms = self.regularize(context, predictions, targets, len(context_mask), len(target_mask))
            components |= {name: term.detach() for name, term in terms.items()}
            loss = loss + self.config.regularizer_weight * value
        return JepaOutput(
            loss=loss,
            loss_components=components,
            predictions=predictions.chunk(len(target_mask)),
            targets=targets.chunk(len(target_mask)),
            context_features=context,
        )

    def regularize(
        self,
        context: torch.Tensor,
        predictions: torch.Tensor,
        targets: torch.Tensor,
        num_contexts: int,
        num_blocks: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The config's regularizer, unweighted, and its parts by name; of what `predict` returns."""
        if self.config.regularizer == "cjepa":
            loss, sim, std, cov = projected_vicreg(
                self.config, self.projector, context, predictions, targets, num_contexts, num_blocks
            )
            return loss, {"vicreg_sim": sim, "vicreg_std": std, "vicreg_cov": cov}
        views = context.mean(dim=1).unflatten(0, (num_contexts, -1))
        value, name = regularize(views, self.config, self.regularizer)
        return value, {name: value}

    def predict(
        self, pixel_values: torch.Tensor, context_mask: list[torch.Tensor], target_mask: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The method without its loss.

        Returns:
            The context features of shape `(contexts * batch, kept, width)`, and predictions and targets of shape
            `(blocks * contexts * batch, kept, width)`, block major, then context mask, then image.
        """
        grid_size = grid_of(self.config.encoder_config.patch_size, tuple(pixel_values.shape[-2:]))
        batch_size, num_tokens = pixel_values.shape[0], grid_size[0] * grid_size[1]
        check_masks("context_mask", context_mask, batch_size, num_tokens)
        check_masks("target_mask", target_mask, batch_size, num_tokens)

        context = encode_tokens(self.encoder, pixel_values, context_mask)
        predictions = self.predictor(context, context_mask, target_mask, grid_size)
        with torch.set_grad_enabled(self.config.target == "shared" and torch.is_grad_enabled()):
            features = normalize_targets(self._target_tokens(pixel_values, num_tokens))
            rows = [gather_tokens(features, mask).repeat(len(context_mask), 1, 1) for mask in target_mask]
        return context, predictions, torch.cat(rows)

    def _target_tokens(self, pixel_values: torch.Tensor, num_tokens: int) -> torch.Tensor:
        if self.teacher is None:
            return encode_tokens(self._encoder("target"), pixel_values)
        states = run_encoder(self.teacher, pixel_values).last_hidden_state
        tokens = patch_tokens(self.teacher, states, pixel_values)
        if tokens.shape[1] != num_tokens:
            raise ValueError(
                f"The teacher gives {tokens.shape[1]} tokens of an image, the student {num_tokens}; their patches "
                "must be of one size."
            )
        return tokens

    @torch.no_grad()
    def energy(
        self,
        pixel_values: torch.FloatTensor,
        context_mask: list[torch.LongTensor],
        target_mask: list[torch.LongTensor],
    ) -> torch.FloatTensor:
        """
        How badly each image's hidden blocks are predicted: the loss before its mean over the batch, averaged over
        blocks, context masks, tokens and features. Arguments as in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.
        """
        _, predictions, targets = self.predict(pixel_values, context_mask, target_mask)
        unreduced = distance(predictions, targets, self.config.loss_type).mean(dim=(1, 2))
        return unreduced.view(-1, pixel_values.shape[0]).mean(dim=0)

    @torch.no_grad()
    def get_features(self, pixel_values: torch.FloatTensor, which: str = "target") -> torch.FloatTensor:
        return encode_tokens(self._encoder(which), pixel_values)


class CJepaForPreTraining(IJepaForPreTraining):
    """
    Contrastive-JEPA (arXiv 2410.19560): [`IJepaForPreTraining`] with `regularizer="cjepa"`, VICReg on projected block
    embeddings. No official code exists, so this is a reading of the paper, not a port.
    """

    config: CJepaPreTrainingConfig
