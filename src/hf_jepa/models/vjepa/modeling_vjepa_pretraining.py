"""V-JEPA, V-JEPA 2 and V-JEPA 2.1 pretraining: context encoder, EMA target encoder, predictor."""

import copy
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, VJEPA2Model
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from ...modeling_jepa import JepaOutput, JepaPreTrainedModel
from ...parts import load_auto, refuse_unknown_fields
from ...positions import pair
from ...predictor import gather_tokens
from .configuration_vjepa import VJepaConfig
from .configuration_vjepa_pretraining import VJepa2PreTrainingConfig, VJepaPreTrainingConfig
from .encoder_vjepa import VJepaEncoder, grid_of
from .groups_vjepa import Pair, causal_masks, pair_masks
from .modeling_vjepa import VJepaModel, in_tree_obstacles
from .objective_vjepa import (
    context_weights,
    normalize_levels,
    normalized_tubelets,
    power_distance,
    variance_regularizer,
)
from .predictor_vjepa import VJepaPredictor


class Prediction(NamedTuple):
    """What [`VJepaForPreTraining.predict`] returns: lists with one tensor per [`Pair`]."""

    pairs: list[Pair]
    context_features: list[torch.Tensor]
    predictions: list[torch.Tensor]
    targets: list[torch.Tensor]
    context_predictions: list[torch.Tensor] | None
    context_targets: list[torch.Tensor] | None


class VJepaForPreTraining(JepaPreTrainedModel):
    """
    V-JEPA (arXiv 2404.08471): from the visible tokens of a clip, predict what an EMA copy of the encoder makes of the
    hidden ones. Follows the released code: L1 on targets that are layer-normed without affine; one context, one
    prediction and one mask token for every recipe that draws masks. [`VJepa2ForPreTraining`] is the same model with
    the defaults of V-JEPA 2 and 2.1.

    All masks of all clips share one pass of the encoder and one of the predictor, although they keep different numbers
    of tokens; only visible tubelets are embedded.

    Example:

    ```python
    >>> from hf_jepa import VJepaForPreTraining, VJepaPreTrainingConfig
    >>> model = VJepaForPreTraining(VJepaPreTrainingConfig.from_size("tiny", crop_size=64, frames_per_clip=8))
    >>> context_mask, target_mask = [torch.arange(0, 24).expand(2, -1)], [torch.arange(24, 64).expand(2, -1)]
    >>> loss = model(torch.randn(2, 8, 3, 64, 64), context_mask, target_mask).loss
    ```
    """

    config: VJepaPreTrainingConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)

    def __init__(self, config: VJepaPreTrainingConfig):
        super().__init__(config)
        # The composite's own post_init draws the weights; drawing them in each part first would be work done twice.
        with init.no_init_weights():
            self.encoder = VJepaEncoder(config.encoder_config)
            self.target_encoder = VJepaEncoder(config.encoder_config) if config.target == "ema" else None
            self.teacher = VJepaEncoder(config.teacher_config) if config.target == "frozen" else None
            self.predictor = VJepaPredictor(config.encoder_config)
        # V-JEPA 2.1 warms this up: a trainer may set it, as a number or a scalar tensor, before every step.
        self.context_loss_weight = float(config.context_loss_weight)
        self.post_init()
        self.apply_requires_grad()
        # post_init draws the two encoders independently (they are equal only from here on).
        if self.device.type != "meta":
            self.sync_target()

    @classmethod
    def from_encoder(
        cls,
        encoder: str | PreTrainedModel,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        **config_kwargs: Any,
    ) -> "VJepaForPreTraining":
        """
        Continues pretraining from a released model: its encoder becomes both context and target encoder, and its
        predictor is the predictor. A release that was converted from an encoder alone has none; then one of the
        published size is drawn.

        Args:
            encoder (`str` or `PreTrainedModel`): a model id or local folder of in-tree `vjepa2` or of [`VJepaModel`],
                or such a model, loaded. With a [`VJepaModel`], a release of a model trained on clips that are not
                square has one at its root, where in-tree V-JEPA 2 would give other features.
            image_size (`int`, *optional*): height and width to go on with; the same as `crop_size`.
            patch_size (`int`, *optional*): the encoder's, if given.
            config_kwargs: fields of the pretraining config, and `crop_size` and `frames_per_clip` of its
                `encoder_config`.

        Raises:
            `ValueError`: for another kind of model, another patch size than its own, sizes that are not square, and a
                size other than that of a sine-cosine table.
        """
        given_ours = isinstance(encoder, VJepaModel)
        if isinstance(encoder, str):
            encoder = load_auto(VJepaModel, encoder, dtype=torch.float32)
        if not isinstance(encoder, VJepaModel | VJEPA2Model):
            raise ValueError(f"Expected a `VJepaModel` or an in-tree `VJEPA2Model`, got {type(encoder).__name__}.")
        fields = {
            name: value
            for name, value in encoder.config.to_dict().items()
            if name not in ("model_type", "architectures")
        }
        has_predictor = fields.pop("has_predictor", True)
        if not has_predictor:
            fields = {name: value for name, value in fields.items() if not name.startswith("pred_")}
        asked = {name: config_kwargs.pop(name) for name in ("crop_size", "frames_per_clip") if name in config_kwargs}
        if image_size is not None:
            height, width = pair(image_size)
            if height != width:
                raise ValueError(
                    f"The configured clip is square, got image_size={image_size}; clips may be of any shape."
                )
            asked["crop_size"] = height
        if patch_size not in (None, fields["patch_size"]):
            raise ValueError(
                f"patch_size={patch_size}, but the encoder's patches are {fields['patch_size']}: its patch embedding "
                "fits no others. Leave `patch_size` out, or train an encoder from scratch."
            )
        changed = {name: value for name, value in asked.items() if value != fields[name]}
        if changed and fields.get("position_embedding_type") == "sincos":
            raise ValueError(
                f"{changed} was asked of an encoder with a sine-cosine table of another size. Leave it out and pass "
                "clips of any size: the table is interpolated."
            )
        refuse_unknown_fields(cls.config_class, config_kwargs, {"encoder_config": encoder.config})
        model = cls(cls.config_class(encoder_config=VJepaConfig(**{**fields, **asked}), **config_kwargs))
        if given_ours:
            model.config.from_vjepa_model = True
        model.encoder.load_state_dict(encoder.encoder.state_dict())
        if has_predictor:
            model.predictor.load_state_dict(encoder.predictor.state_dict())
        model.sync_target()
        return model

    @property
    def reads_by_batch(self) -> bool:
        # A process need not have both images and clips in a step.
        return self.config.encoder_config.use_image_tokenizer

    def frozen(self) -> Iterator[nn.Module | nn.Parameter]:
        yield from super().frozen()
        if self.config.encoder_config.position_embedding_type == "sincos":
            yield self.encoder.embeddings.position_embeddings
            yield self.predictor.embeddings.position_embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | list[torch.FloatTensor],
        context_mask: list[torch.LongTensor] | list[list[torch.LongTensor]],
        target_mask: list[torch.LongTensor] | list[list[torch.LongTensor]],
    ) -> JepaOutput:
        """
        Args:
            pixel_values_videos (`list` of `torch.FloatTensor` of shape `(batch, frames, channels, height, width)`):
                groups of clips of different lengths or sizes; any that patches divide. A tensor is one group, and the
                masks then are its lists.
            context_mask (`list`, per group, of int64 tensors of shape `(batch, kept)`): visible tokens, indices in
                (time, row, column) order. Lengths may differ between masks.
            target_mask (`list`, per group, of int64 tensors of shape `(batch, kept)`): what context mask `i` predicts.

        Returns:
            [`JepaOutput`]: `predictions`, `targets` and `context_features` are tuples with one tensor of shape
            `(batch, kept, width)` per mask, group by group.

        Raises:
            `ValueError`: for clips or masks that do not fit.
        """
        if isinstance(pixel_values_videos, torch.Tensor):
            pixel_values_videos, context_mask, target_mask = [pixel_values_videos], [context_mask], [target_mask]
        result = self.predict(pixel_values_videos, context_mask, target_mask)
        exponent = self.config.loss_exponent
        losses = [
            power_distance(prediction, target, exponent).mean()
            for prediction, target in zip(result.predictions, result.targets, strict=True)
        ]
        loss = torch.stack(losses).mean()
        components = {"prediction_loss": loss.detach()}
        if self.config.variance_weight:
            by_group: list[list[torch.Tensor]] = [[] for _ in pixel_values_videos]
            for pair, prediction in zip(result.pairs, result.predictions, strict=True):
                by_group[pair.group].append(prediction)
            variance = torch.stack([variance_regularizer(group) for group in by_group]).mean()
            components["variance"] = variance.detach()
            loss = loss + self.config.variance_weight * variance
        if result.context_predictions is not None:
            context_loss = self._context_loss(result)
            components["context_loss"] = context_loss.detach()
            loss = loss + self.context_loss_weight * context_loss
        return JepaOutput(
            loss=loss,
            loss_components=components,
            predictions=tuple(result.predictions),
            targets=tuple(result.targets),
            context_features=tuple(result.context_features),
        )

    def _context_loss(self, result: Prediction) -> torch.Tensor:
        """V-JEPA 2.1's loss on visible tokens (arXiv 2603.14482, released code), before its weight."""
        losses = []
        for found, prediction, target in zip(
            result.pairs, result.context_predictions, result.context_targets, strict=True
        ):
            error = power_distance(prediction, target, self.config.loss_exponent).mean(dim=-1)
            if self.config.context_loss_distance:
                error = error * context_weights(found.context, found.target, found.grid[1:])
            losses.append(error.mean())
        return torch.stack(losses).mean()

    def predict(
        self,
        clips: list[torch.Tensor],
        context_mask: list[list[torch.Tensor]],
        target_mask: list[list[torch.Tensor]],
        mask_token_index: list[int] | None = None,
    ) -> Prediction:
        """
        The method without its loss; groups as in `forward`. `mask_token_index` holds the mask token of every pair of
        masks, group by group, and defaults to the rule of the config (`mask_token_by`).
        """
        levels = self.config.encoder_config.predicted_levels
        pairs = pair_masks(self.config.encoder_config, clips, context_mask, target_mask)
        if mask_token_index is None:
            mask_token_index = [pair.mask if self.config.mask_token_by == "mask" else pair.group for pair in pairs]
        features = self.encoder(clips, context_mask, levels)
        predict_context = bool(self.config.context_loss_weight)
        predictions, context_predictions = self.predictor(
            features,
            [pair.context for pair in pairs],
            [pair.target for pair in pairs],
            [pair.grid for pair in pairs],
            mask_token_index,
            [pair.is_image for pair in pairs],
            predict_context,
        )
        with torch.no_grad():
            whole = self._whole_targets(clips, levels)
            targets = [gather_tokens(whole[pair.group], pair.target) for pair in pairs]
            context_targets = None
            if predict_context:
                context_targets = [gather_tokens(whole[pair.group], pair.context) for pair in pairs]
        return Prediction(pairs, features, predictions, targets, context_predictions, context_targets)

    def _whole_targets(self, clips: list[torch.Tensor], levels: int) -> list[torch.Tensor]:
        """What may be asked of every token, per group of clips, normalised."""
        if self.config.target == "pixels":
            config = self.config.encoder_config
            return [normalized_tubelets(part, grid_of(config, part), config.tubelet_size) for part in clips]
        teacher = self.teacher if self.config.target == "frozen" else self.target_encoder
        return [normalize_levels(part, levels) for part in teacher(clips, num_levels=levels)]

    @classmethod
    def read_teacher(cls, teacher: str | PreTrainedModel) -> PreTrainedModel:
        if isinstance(teacher, str):
            teacher = load_auto(VJepaModel, teacher, dtype=torch.float32)
        return getattr(teacher, "encoder", teacher)

    @torch.no_grad()
    def energy(
        self,
        pixel_values_videos: torch.FloatTensor,
        context_mask: list[torch.LongTensor] | None = None,
        target_mask: list[torch.LongTensor] | None = None,
        per_time_step: bool = False,
    ) -> torch.FloatTensor:
        """
        How badly each clip's hidden tokens are predicted: the loss of `forward` on targets before its mean over the
        batch. Over time it is the surprise that tests of intuitive physics measure: what comes is harder to predict
        where the clip does something impossible.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).
            context_mask, target_mask (`list` of int64 tensors of shape `(batch, kept)`, *optional*): without masks
                every time slot but the first is predicted from all slots before it, with the first mask token.
            per_time_step (`bool`): whether to keep time slots apart.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`, averaged over masks, tokens and features. With `per_time_step`
            `(batch, slots)`, averaged over what is predicted of a slot; NaN where nothing is.
        """
        token_index = None
        if context_mask is None and target_mask is None:
            grid = grid_of(self.config.encoder_config, pixel_values_videos)
            context_mask, target_mask = causal_masks(pixel_values_videos.shape[0], grid, pixel_values_videos.device)
            token_index = [0] * len(target_mask)
        result = self.predict([pixel_values_videos], [context_mask], [target_mask], token_index)
        errors = [
            power_distance(prediction, target, self.config.loss_exponent).mean(dim=-1)
            for prediction, target in zip(result.predictions, result.targets, strict=True)
        ]
        if not per_time_step:
            return torch.stack([error.mean(dim=1) for error in errors]).mean(dim=0)
        slots, rows, columns = result.pairs[0].grid
        slot = torch.cat([pair.target for pair in result.pairs], dim=1) // (rows * columns)
        error = torch.cat(errors, dim=1)
        total = error.new_zeros(len(error), slots).scatter_add_(1, slot, error)
        return total / torch.zeros_like(total).scatter_add_(1, slot, torch.ones_like(error))

    @torch.no_grad()
    def get_features(
        self, pixel_values_videos: torch.FloatTensor, which: Literal["target", "context"] = "target"
    ) -> torch.FloatTensor:
        """
        Features of whole clips.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).
            which (`str`): `"target"` or `"context"`.

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, width)`: the tokens after the last norm.
        """
        return self._encoder(which)([pixel_values_videos])[0]

    def export_encoder(self, which: Literal["target", "context"] = "target") -> PreTrainedModel:
        """
        A copy of one encoder with the predictor, trainable and in eval mode: the in-tree `VJEPA2Model` where that can
        express it, else a [`VJepaModel`].

        In-tree predicts with the mask token 1, which V-JEPA 2 training on clips of one length never trains.

        Args:
            which (`str`): `"target"`, the encoder the papers evaluate, or `"context"`.
        """
        with init.no_init_weights():
            model = VJepaModel(copy.deepcopy(self.config.encoder_config)).to(self.device, self.dtype)
        model.encoder.load_state_dict(self._encoder(which).state_dict())
        model.predictor.load_state_dict(self.predictor.state_dict())
        size = getattr(self.config, "trained_size", None) or (1, 1)
        is_in_tree = size[0] == size[1] and not in_tree_obstacles(model.config)
        return model.export_in_tree() if is_in_tree else model.eval()


class VJepa2ForPreTraining(VJepaForPreTraining):
    """
    V-JEPA 2 (arXiv 2506.09985) and V-JEPA 2.1 (arXiv 2603.14482): [`VJepaForPreTraining`] with rotary positions and
    one mask token per group of clips of one length. V-JEPA 2.1 adds a loss on visible tokens, four supervised levels
    and an image tokenizer, see [`VJepa2PreTrainingConfig`].

    Example:

    ```python
    >>> from hf_jepa import VJepa2ForPreTraining, VJepa2PreTrainingConfig
    >>> model = VJepa2ForPreTraining(VJepa2PreTrainingConfig.from_size("tiny", "2.1", crop_size=64, frames_per_clip=8))
    >>> context_mask, target_mask = [torch.arange(0, 24).expand(2, -1)], [torch.arange(24, 64).expand(2, -1)]
    >>> sorted(model(torch.randn(2, 8, 3, 64, 64), context_mask, target_mask).loss_components)
    ['context_loss', 'prediction_loss']
    ```
    """

    config: VJepa2PreTrainingConfig
