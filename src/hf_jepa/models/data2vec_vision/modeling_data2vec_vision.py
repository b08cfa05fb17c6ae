"""data2vec vision pretraining: masked student, EMA teacher, targets from its top blocks (arXiv 2202.03555)."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from ...modeling_jepa import JepaOutput, JepaPreTrainedModel, check_masks, check_pixels
from ...objectives.distances import normalize_targets
from ...parts import build_part, load_auto
from ...predictor import gather_tokens
from .configuration_data2vec_vision import Data2VecVisionPreTrainingConfig, as_student_config

logger = logging.get_logger(__name__)

# What a released encoder may lack: conversions dropped the mask token, and with mean pooling there is no final norm.
_MAY_BE_NEW = {"embeddings.mask_token", "layernorm.weight", "layernorm.bias"}


def run_blocks(
    encoder: PreTrainedModel, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """
    Runs an in-tree `Data2VecVisionModel` block by block. The shared position bias is computed once, where the in-tree
    forward pass computes it for every block.

    Args:
        encoder (`Data2VecVisionModel`).
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).
        bool_masked_pos (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): patches that the mask token
            replaces.

    Yields:
        `torch.FloatTensor` of shape `(batch, 1 + tokens, width)`: each block's output, after the residual and before
        the encoder's final norm; the class token comes first.
    """
    hidden_states, window_size = encoder.embeddings(pixel_values.to(encoder.dtype), bool_masked_pos=bool_masked_pos)
    blocks, bias = encoder.encoder, None
    if blocks.has_relative_position_bias:
        bias = blocks.relative_position_bias(window_size)
    for block in blocks.layer:
        hidden_states = block(hidden_states, relative_position_bias=bias, resolution=tuple(pixel_values.shape[-2:]))[0]
        yield hidden_states


def average_layers(
    layer_outputs: Iterable[torch.Tensor], norm: str = "layer", post_layer_norm: bool = True
) -> torch.Tensor:
    """
    data2vec's targets: block outputs, normalised one by one without affine (eps 1e-5), averaged, and layer-normed once
    more. In float32.

    Args:
        layer_outputs (`Iterable` of `torch.Tensor` of shape `(batch, tokens, width)`): the top K blocks' outputs,
            without the class token.
        norm (`str`): `"layer"` (over features; the released vision and text code), `"instance"` (over tokens, per
            feature; audio, and what the paper describes) or `"none"` (the fairseq vision port).
        post_layer_norm (`bool`): layer-norm the average (both vision codes).

    Returns:
        `torch.FloatTensor` of shape `(batch, tokens, width)`.

    Raises:
        `ValueError`: for no output or an unknown `norm`.
    """
    total, count = None, 0
    for output in layer_outputs:
        output = output.float()
        if norm == "layer":
            output = normalize_targets(output)
        elif norm == "instance":
            output = F.instance_norm(output.transpose(1, 2)).transpose(1, 2)
        elif norm != "none":
            raise ValueError(f'`norm` must be "layer", "instance" or "none", got {norm!r}.')
        total, count = (output if total is None else total + output), count + 1
    if total is None:
        raise ValueError("Targets need at least one block output.")
    return normalize_targets(total / count) if post_layer_norm else total / count


class Data2VecVisionForPreTraining(JepaPreTrainedModel):
    """
    data2vec for images (arXiv 2202.03555): from an image whose masked patches are replaced by a mask token, a student
    regresses what its EMA teacher makes of the whole image in its top blocks. Both are in-tree
    `Data2VecVisionModel`s, `encoder` and `target_encoder`; `head` is the linear regression head.

    Follows the released `data2vec_vision` code where it differs from the paper: targets are layer-normed per token,
    each block's and then their average, not instance-normed; the average covers the EMA of all weights, mask token and
    head (`target_head`, which nothing reads, but checkpoints hold it) included; the teacher runs in float32 under
    autocast.

    Example:

    ```python
    >>> from hf_jepa import Data2VecVisionForPreTraining, Data2VecVisionPreTrainingConfig
    >>> from hf_jepa.masking import BlockwiseMaskGenerator
    >>> model = Data2VecVisionForPreTraining(Data2VecVisionPreTrainingConfig.from_size("base"))
    >>> target_mask = BlockwiseMaskGenerator(image_size=224, patch_size=16)(batch_size=2)
    >>> loss = model(torch.randn(2, 3, 224, 224), target_mask).loss
    ```
    """

    config: Data2VecVisionPreTrainingConfig
    # In-tree data2vec vision chooses between eager and SDPA when it is built, and knows no others.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False

    def __init__(self, config: Data2VecVisionPreTrainingConfig):
        super().__init__(config)
        width = config.encoder_config.hidden_size
        # The composite's own post_init draws the weights; drawing them in each part first would be work done twice.
        with init.no_init_weights():
            self.encoder = build_part(config.encoder_config)
            self.target_encoder = build_part(config.encoder_config)
        self.head = nn.Linear(width, width)
        self.target_head = nn.Linear(width, width)
        self.post_init()
        self.apply_requires_grad()
        # post_init draws student and teacher independently (they are equal only from here on).
        if self.device.type != "meta":
            self.sync_target()

    @classmethod
    def from_encoder(
        cls,
        encoder: str | PreTrainedModel,
        image_size: int | None = None,
        patch_size: int | None = None,
        **config_kwargs: Any,
    ) -> "Data2VecVisionForPreTraining":
        """
        Starts pretraining from a released encoder, which becomes both student and teacher; the head is new. So are a
        mask token or final norm that the encoder lacks (the `facebook/data2vec-vision-*` repositories have no mask
        token); a warning names them.

        Args:
            encoder (`str` or `PreTrainedModel`): a model id, a local folder, or a loaded `Data2VecVisionModel`.
            image_size, patch_size (`int`, *optional*): the encoder's, if given.
            config_kwargs: fields of the pretraining config, such as `target_layers`.

        Raises:
            `ValueError`: for another type of encoder, or one that lacks or has more than that.
        """
        new: set[str] = set()
        if isinstance(encoder, str):
            config = load_auto(AutoConfig, encoder)
            if config.model_type != "data2vec-vision":
                raise ValueError(f"data2vec needs a 'data2vec-vision' encoder; {encoder} is {config.model_type!r}.")
            encoder, info = load_auto(
                AutoModel,
                encoder,
                config=as_student_config(config),
                dtype=torch.float32,
                output_loading_info=True,
            )
            new = set(info["missing_keys"])
        elif encoder.config.model_type != "data2vec-vision":
            raise ValueError(f"data2vec needs a 'data2vec-vision' encoder, got {encoder.config.model_type!r}.")
        model = cls(cls._config_for(encoder, image_size, patch_size, config_kwargs))
        state = {key: value for key, value in encoder.state_dict().items() if key not in new}
        missing, unexpected = model.encoder.load_state_dict(state, strict=False)
        if set(missing) - _MAY_BE_NEW or unexpected:
            raise ValueError(
                f"The encoder does not fit: it lacks {sorted(set(missing) - _MAY_BE_NEW)} and has {unexpected} beside."
            )
        if missing:
            logger.warning(f"The encoder has no {', '.join(sorted(missing))}: drawn anew.")
        model.sync_target()
        return model

    @classmethod
    def _encoder_config(cls, encoder: PreTrainedModel) -> PreTrainedConfig:
        return as_student_config(encoder.config)

    def frozen(self) -> Iterator[nn.Module | nn.Parameter]:
        yield from super().frozen()
        yield self.target_head

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """The original's rule: the class token does not decay; mask token and position bias table do."""
        return parameter.ndim > 1 and not name.endswith((".bias", ".cls_token"))

    def _twins(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super()._twins(), (self.target_head, self.head)]

    @torch.no_grad()
    def initialize_weights(self) -> None:
        # In-tree parts draw their own weights; a composite without parameters of its own gets no `_init_weights` call.
        super().initialize_weights()
        for encoder, head in ((self.encoder, self.head), (self.target_encoder, self.target_head)):
            depths = {}
            for depth, layer in enumerate(encoder.encoder.layer, start=1):
                depths |= {layer.attention.output.dense: depth, layer.output.dense: depth}
            drawn = {encoder.embeddings.cls_token: 1.0, encoder.embeddings.mask_token: 1.0, head.weight: 1.0}
            for module in encoder.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    # The released code divides the projections back into the residual stream.
                    drawn[module.weight] = (2.0 * depths[module]) ** -0.5 if module in depths else 1.0
            for weight, scale in drawn.items():
                std = scale * self.config.initializer_range
                init.trunc_normal_(weight, std=std, a=-std, b=std)

    @can_return_tuple
    def forward(self, pixel_values: torch.FloatTensor, target_mask: list[torch.LongTensor]) -> JepaOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).
            target_mask (`list` of int64 tensors of shape `(batch, kept)`): masked tokens, ascending row-major indices.
                An image with fewer than `kept` repeats its last index, which counts once. With several masks each is a
                student pass of its own; the teacher runs once.

        Returns:
            [`JepaOutput`]: `predictions` and `targets` hold one tensor of shape `(batch, kept, width)` per mask (rows
            of repeated indices are repeats); `context_features` are the student's tokens after its final norm, of
            shape `(len(target_mask) * batch, tokens, width)`.

        Raises:
            `ValueError`: for masks or image sizes that do not fit.
        """
        context, predictions, targets = self.predict(pixel_values, target_mask)
        per_token = self._distance(predictions, targets).mean(dim=-1)
        counted = unique_consecutive_mask(torch.cat(list(target_mask)))
        loss = (per_token * counted).sum() / counted.sum()
        return JepaOutput(
            loss=loss,
            loss_components={"prediction_loss": loss.detach()},
            predictions=predictions.chunk(len(target_mask)),
            targets=targets.chunk(len(target_mask)),
            context_features=context,
        )

    def predict(
        self, pixel_values: torch.Tensor, target_mask: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The method without its loss.

        Returns:
            The student's tokens of shape `(masks * batch, tokens, width)`, and predictions and targets of shape
            `(masks * batch, kept, width)`, mask major.
        """
        tokens = self._num_tokens(pixel_values)
        check_masks("target_mask", target_mask, pixel_values.shape[0], tokens)
        masks = torch.cat(list(target_mask))
        hidden = torch.zeros(masks.shape[0], tokens, dtype=torch.bool, device=masks.device).scatter_(1, masks, True)
        *_, last = run_blocks(self.encoder, pixel_values.repeat(len(target_mask), 1, 1, 1), hidden)
        context = self.encoder.layernorm(last)[:, 1:]
        predictions = self.head(gather_tokens(context, masks))
        features = self.target_features(pixel_values)
        return context, predictions, torch.cat([gather_tokens(features, mask) for mask in target_mask])

    @torch.no_grad()
    def target_features(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """
        What the student has to regress, for every patch.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, width)`, float32.
        """
        config = self.config
        wanted = set(config.target_layers)
        # The released code runs the teacher outside autocast.
        with torch.autocast(pixel_values.device.type, enabled=False):
            # Blocks above the last target layer are never run.
            outputs = islice(run_blocks(self.target_encoder, pixel_values.float()), config.target_layers[-1] + 1)
            chosen = (output[:, 1:] for index, output in enumerate(outputs) if index in wanted)
            return average_layers(chosen, config.target_norm, config.target_post_layer_norm)

    def _num_tokens(self, pixel_values: torch.Tensor) -> int:
        check_pixels(pixel_values)
        height, width = pixel_values.shape[-2:]
        patch = self.config.encoder_config.patch_size
        if height % patch or width % patch or not height or not width:
            raise ValueError(f"Images of {height}x{width} pixels cannot be cut into patches of {patch}x{patch}.")
        return (height // patch) * (width // patch)

    def _distance(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.config.loss_type == "l2":
            return F.mse_loss(predictions.float(), targets, reduction="none")
        return F.smooth_l1_loss(predictions.float(), targets, beta=self.config.smooth_l1_beta, reduction="none")

    @torch.no_grad()
    def energy(self, pixel_values: torch.FloatTensor, target_mask: list[torch.LongTensor]) -> torch.FloatTensor:
        """
        How badly each image's masked patches are predicted: the loss of that image alone. Arguments as in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.
        """
        _, predictions, targets = self.predict(pixel_values, target_mask)
        counted = unique_consecutive_mask(torch.cat(list(target_mask)))
        per_token = self._distance(predictions, targets).mean(dim=-1) * counted
        return (per_token.sum(1) / counted.sum(1)).view(-1, pixel_values.shape[0]).mean(dim=0)

    @torch.no_grad()
    def get_features(self, pixel_values: torch.FloatTensor, which: str = "target") -> torch.FloatTensor:
        """
        Features of whole images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).
            which (`str`): `"target"` (the teacher) or `"context"` (the student).

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, width)`: patch tokens after the final norm, without the class
            token.
        """
        self._num_tokens(pixel_values)
        encoder = self._encoder(which)
        *_, last = run_blocks(encoder, pixel_values)
        return encoder.layernorm(last)[:, 1:]


def unique_consecutive_mask(mask: torch.LongTensor) -> torch.BoolTensor:
    """
    Where an index is not a repeat of the one before it.

    Args:
        mask (int64 tensor of shape `(batch, kept)`): ascending indices.

    Returns:
        `torch.BoolTensor` of shape `(batch, kept)`.
    """
    first = torch.ones_like(mask, dtype=torch.bool)
    first[:, 1:] = mask[:, 1:] != mask[:, :-1]
    return first
