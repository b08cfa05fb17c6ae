"""What every JEPA model shares: the target encoder's life, features, export, and loading that is never partial."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from .parts import tie_as_declared


@dataclass
class JepaOutput(ModelOutput):
    """
    What a JEPA's forward pass returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): what is minimised.
        loss_components (`dict[str, torch.FloatTensor]`): the terms of `loss`, detached scalars by name.
        predictions (`tuple` of `torch.FloatTensor` of shape `(num_context_masks * batch, kept, width)`):
            the predicted target tokens, one tensor per target mask.
        targets (`tuple` of `torch.FloatTensor`): what they should be, same shapes, no gradient
            (but for `target="shared"`, see [`~hf_jepa.regularized.RegularizedPreTrainingConfig`]).
        context_features (`torch.FloatTensor` of shape `(num_context_masks * batch, kept, width)`):
            the context encoder's output on the visible tokens. Video models, whose masks keep different numbers of
            tokens: a tuple with one tensor per context mask.
        projections (`torch.FloatTensor` of shape `(views, batch, width)`): joint-embedding models only: what their
            loss compares and regularizes.
    """

    loss: torch.FloatTensor | None = None
    loss_components: dict[str, torch.FloatTensor] | None = None
    predictions: tuple[torch.FloatTensor, ...] | None = None
    targets: tuple[torch.FloatTensor, ...] | None = None
    context_features: torch.FloatTensor | tuple[torch.FloatTensor, ...] | None = None
    projections: torch.FloatTensor | None = None


def check_masks(name: str, masks: Sequence[torch.Tensor], batch_size: int, num_tokens: int) -> None:
    """
    Checks index masks before they are used.

    Index values are looked at only where that costs no device synchronisation (CPU tensors, outside compilation);
    [`~hf_jepa.data.MaskCollator`] checks them for every device before the transfer.

    Args:
        name (`str`): the argument's name, for the message.
        masks (`Sequence` of int64 tensors of shape `(batch, kept)`).
        batch_size (`int`): images in the batch.
        num_tokens (`int`): tokens of one image.

    Raises:
        `ValueError`: for no mask, a wrong type or shape, lengths that differ, an empty mask, an index outside the
        grid.
    """
    if isinstance(masks, torch.Tensor) or not len(masks):
        raise ValueError(f"`{name}` must be a non-empty list of index tensors, got {type(masks).__name__}.")
    for mask in masks:
        if mask.dtype != torch.int64 or mask.ndim != 2 or mask.shape[0] != batch_size:
            raise ValueError(
                f"`{name}` must hold int64 tensors of shape ({batch_size}, kept), got {mask.dtype} of shape "
                f"{tuple(mask.shape)}."
            )
        if mask.shape[1] == 0 or mask.shape[1] != masks[0].shape[1]:
            lengths = [other.shape[1] for other in masks]
            raise ValueError(f"Every mask in `{name}` must keep the same, non-zero number of tokens, got {lengths}.")
        if mask.device.type != "cpu" or torch.compiler.is_compiling():
            continue
        if mask.min() < 0 or mask.max() >= num_tokens:
            raise ValueError(
                f"`{name}` holds index {int(mask.max() if mask.max() >= num_tokens else mask.min())}, but the image "
                f"has tokens 0..{num_tokens - 1}; was the mask made for another image or patch size?"
            )


def _come_apart(model: PreTrainedModel, tied: dict[str, str]) -> None:
    for name in tied:
        parameter = model.get_parameter(name)
        if parameter.is_meta:
            module, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(module), attribute, nn.Parameter(torch.empty_like(parameter)))


class JepaPreTrainedModel(PreTrainedModel):
    """
    Base of the pretraining models: an in-tree `encoder` (the context encoder), an in-tree `target_encoder` that
    follows it by exponential moving average and never receives gradients, and a `predictor`, held side by side.
    Methods without an EMA target have no `target_encoder`; there `"target"` and `"context"` name the same encoder.
    """

    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    model_tags = ["hf-jepa", "jepa"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        As `PreTrainedModel.from_pretrained`, but every key must be restored.

        Raises:
            `ValueError`: if the checkpoint has missing, unexpected or mis-shaped keys.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
        problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys and name != "error_msgs"}
        if problems or info.get("error_msgs"):
            lines = [f"  {name}: {', '.join(keys[:5])}{' ...' * (len(keys) > 5)}" for name, keys in problems.items()]
            raise ValueError(
                f"{pretrained_model_name_or_path} does not hold a whole {cls.__name__}; nothing was loaded:\n"
                + "\n".join(lines + list(info.get("error_msgs") or []))
                + "\nTo start from an encoder alone use `from_encoder`; for an original checkpoint `hf-jepa convert`."
            )
        model.freeze_target()
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: dict | None = None, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`, of what [`saved_state_dict`] holds."""
        super().save_pretrained(save_directory, *args, state_dict=self.saved_state_dict(state_dict), **kwargs)

    def saved_state_dict(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """
        What a checkpoint holds of a state dict, by default the model's: of tied weights the first name alone.

        Args:
            state_dict (`dict[str, torch.Tensor]`, *optional*): with this model's names.
        """
        tied = self.tied_names()
        state_dict = self.state_dict() if state_dict is None else state_dict
        return {key: value for key, value in state_dict.items() if key not in tied}

    def tied_names(self) -> dict[str, str]:
        """
        Names of parameters that are another one by the first of its names, as the modules are now: adapters rename
        what they are put around.
        """
        first: dict[int, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        pairs = {name: first.setdefault(id(parameter), name) for name, parameter in named}
        return {name: kept for name, kept in pairs.items() if name != kept}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        # Asked anew when weights have come apart, as under FSDP: what was tied is then known by name alone.
        return dict(self.all_tied_weights_keys) if all_submodels else self.tied_names()

    def init_weights(self) -> None:
        # Instead of what parts say of themselves: a peft model hands on the names of the model within it.
        for part in self.modules():
            if isinstance(part, PreTrainedModel) and part is not self:
                tie_as_declared(part)
        self.all_tied_weights_keys = self.tied_names()
        # Loading fills parameters by name, and ties them when all are filled.
        _come_apart(self, self.all_tied_weights_keys)
        super().init_weights()

    @classmethod
    def from_encoder(cls, encoder: str | PreTrainedModel, **config_kwargs) -> "JepaPreTrainedModel":
        """
        Starts pretraining from a released encoder: it becomes both context and target encoder; the predictor is new.

        Args:
            encoder (`str` or `PreTrainedModel`): a model id, a local folder, or a loaded in-tree encoder.
            config_kwargs: fields of the pretraining config, such as `predictor_num_hidden_layers`.
        """
        if isinstance(encoder, str):
            encoder = AutoModel.from_pretrained(encoder, dtype=torch.float32)
        config = cls.config_class(encoder_config=copy.deepcopy(encoder.config), **config_kwargs)
        model = cls(config)
        model.encoder.load_state_dict(encoder.state_dict())
        model.sync_target()
        return model

    @property
    def has_target_encoder(self) -> bool:
        """Whether there is an EMA target encoder beside the context encoder."""
        return getattr(self, "target_encoder", None) is not None

    def freeze_target(self) -> None:
        """Turns gradients off where the method has none: target encoder and fixed position tables."""
        if self.has_target_encoder:
            self.target_encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "JepaPreTrainedModel":
        super().train(mode)
        # The Trainer calls train() before every step; dropout must never act on targets.
        if self.has_target_encoder:
            self.target_encoder.eval()
        return self

    @torch.no_grad()
    def sync_target(self) -> None:
        """Makes the target encoder, if there is one, a copy of the context encoder."""
        if self.has_target_encoder:
            self.target_encoder.load_state_dict(self.encoder.state_dict())

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """
        Moves the target encoder towards the context encoder: `target = momentum * target + (1 - momentum) * context`.
        Call it once per optimizer step, after the step. Sharded parameters (FSDP2) are updated in place, shard by
        shard. Without a target encoder there is nothing to move.

        Args:
            momentum (`float`): between 0 (copy) and 1 (stand still).

        Raises:
            `ValueError`: for a momentum outside [0, 1], or weights below float32, where small updates round to
            nothing.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"The EMA momentum must lie in [0, 1], got {momentum}.")
        if not self.has_target_encoder:
            return
        targets = list(self.target_encoder.parameters())
        sources = list(self.encoder.parameters())
        low = next((p.dtype for p in targets + sources if p.dtype not in (torch.float32, torch.float64)), None)
        if low is not None:
            raise ValueError(
                f"The EMA target needs float32 weights, got {low}: in {low} updates of {1 - momentum:.1e} are rounded "
                'away. Load the model with `dtype="float32"` and use `bf16=True` (autocast) for speed.'
            )
        torch._foreach_lerp_(targets, sources, 1.0 - momentum)
        for target, source in zip(self.target_encoder.buffers(), self.encoder.buffers(), strict=True):
            target.copy_(source)

    def export_encoder(self, which: Literal["target", "context"] = "target") -> PreTrainedModel:
        """
        A copy of one encoder as the in-tree model it is, trainable and in eval mode; `save_pretrained` of it is what
        plain `transformers` loads.

        Args:
            which (`str`): `"target"`, the encoder the papers evaluate, or `"context"`; one and the same without an
                EMA target.
        """
        encoder = copy.deepcopy(self._encoder(which))
        return encoder.requires_grad_(True).eval()

    @torch.no_grad()
    def get_features(
        self, pixel_values: torch.FloatTensor, which: Literal["target", "context"] = "target"
    ) -> torch.FloatTensor:
        """
        Features of whole images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).
            which (`str`): `"target"` or `"context"`.

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, width)`: the tokens after the final norm.
        """
        return self._encoder(which)(pixel_values).last_hidden_state

    def _encoder(self, which: str) -> nn.Module:
        target = self.target_encoder if self.has_target_encoder else self.encoder
        encoders = {"target": target, "context": self.encoder}
        if which not in encoders:
            raise ValueError(f'`which` must be "target" or "context", got {which!r}.')
        return encoders[which]
