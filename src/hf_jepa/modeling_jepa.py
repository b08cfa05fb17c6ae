"""What every JEPA model shares: the target encoder's life, features, export, and loading that is never partial."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .parts import StrictLoading, TrainableParts, cut, load_auto, refuse_unknown_fields, tie_as_declared
from .positions import pair


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


def check_pixels(pixel_values: torch.Tensor, name: str = "pixel_values") -> None:
    """
    Raises:
        `ValueError`: for integers: pixels as files hold them, up to 255, which an encoder would take for normalised.
    """
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`{name}` must be floating point, normalised as the model was trained, got {pixel_values.dtype}: pass "
            "images through the model's processor, or a transform of `hf_jepa.data`."
        )


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
        `ValueError`: for no image, no mask, a wrong type or shape, lengths that differ, an empty mask, an index
            outside the grid.
    """
    if isinstance(masks, torch.Tensor) or not len(masks):
        raise ValueError(f"`{name}` must be a non-empty list of index tensors, got {type(masks).__name__}.")
    if batch_size == 0:
        raise ValueError("The batch is empty.")
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


class JepaPreTrainedModel(TrainableParts, StrictLoading, PreTrainedModel):
    """
    Base of the pretraining models: an in-tree `encoder` (the context encoder), an in-tree `target_encoder` that
    follows it by exponential moving average and never receives gradients, and a `predictor`, held side by side.
    Methods without an EMA target have no `target_encoder`; there `"target"` and `"context"` name the same encoder.
    With targets from another encoder, which does not learn, that one is `teacher`.
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

    def post_init(self) -> None:
        super().post_init()
        # What FSDP cuts up by itself has to be here and be called whole; patch embeddings are called without the rest.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = {name for name in self._no_split_modules & present if not name.endswith("Embeddings")}

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
    def from_encoder(
        cls,
        encoder: str | PreTrainedModel,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        **config_kwargs: Any,
    ) -> "JepaPreTrainedModel":
        """
        Starts from a released encoder, which becomes both context and target encoder, or the encoder of a world model;
        the rest is new.

        Args:
            encoder (`str` or `PreTrainedModel`): a model id, a local folder, or a loaded in-tree encoder, in any
                precision.
            image_size (`int` or `(height, width)`, *optional*): to go on with, in pixels; by default the encoder's.
            patch_size (`int` or `(height, width)`, *optional*): the encoder's, if given.
            config_kwargs: fields of the pretraining config, such as `predictor_num_hidden_layers`.

        Raises:
            `ValueError`: for another patch size than the encoder's, an image size that it cannot go on with, and
                names that are no fields of the config.
        """
        if isinstance(encoder, str):
            encoder = load_auto(AutoModel, encoder, dtype=torch.float32)
        config = cls._config_for(encoder, image_size, patch_size, config_kwargs)
        model = cls(config)
        own, given = model.encoder.state_dict(), encoder.state_dict()
        # What the model holds its encoder without, such as V-JEPA's predictor.
        left_out = {name for name, _ in encoder.named_children() if getattr(model.encoder, name, None) is None}
        given = {name: value for name, value in given.items() if name.split(".")[0] not in left_out}
        # Tables that are computed for the size asked for.
        new = {name: own[name] for name in cls._sized_keys if name in given and given[name].shape != own[name].shape}
        model.encoder.load_state_dict({**given, **new})
        model.sync_target()
        return model

    # Weights of an encoder that are a function of its image size.
    _sized_keys: tuple[str, ...] = ()

    @classmethod
    def _config_for(
        cls, encoder: PreTrainedModel, image_size: Any, patch_size: Any, fields: dict[str, Any]
    ) -> PreTrainedConfig:
        refuse_unknown_fields(cls.config_class, fields, {"encoder_config": encoder.config})
        config = cls._encoder_config(encoder)
        own = getattr(config, "patch_size", None)
        if patch_size is not None and (own is None or pair(own) != pair(patch_size)):
            raise ValueError(
                f"patch_size={patch_size}, but the encoder's patches are {own}: its patch embedding fits no others. "
                "Leave `patch_size` out, or train an encoder from scratch."
            )
        if image_size is not None:
            cls._resize(config, image_size, fields)
        return cls.config_class(encoder_config=config, **fields)

    @classmethod
    def _encoder_config(cls, encoder: PreTrainedModel) -> PreTrainedConfig:
        """A copy of an encoder's config, as the pretraining config holds it."""
        return copy.deepcopy(encoder.config)

    @classmethod
    def _resize(cls, encoder_config: PreTrainedConfig, image_size: Any, fields: dict[str, Any]) -> None:
        """Makes an encoder's config, or the fields beside it, those of another image size."""
        own = getattr(encoder_config, "image_size", None) or getattr(encoder_config, "crop_size", None)
        if own is None or pair(own) != pair(image_size):
            raise ValueError(
                f"image_size={image_size}, but the encoder is one for {own or 'any'} pixels, and {cls.__name__} keeps "
                "its table of positions. Leave `image_size` out and pass images of any size: the table is "
                "interpolated."
            )

    @property
    def has_target_encoder(self) -> bool:
        """Whether there is an EMA target encoder beside the context encoder."""
        return getattr(self, "target_encoder", None) is not None

    _teacher_was_loaded = False

    def frozen(self) -> Iterator[nn.Module | nn.Parameter]:
        yield from self._teachers()

    def _teachers(self) -> list[nn.Module]:
        parts = (getattr(self, name, None) for name in ("target_encoder", "teacher"))
        return [part for part in parts if part is not None]

    def get_input_embeddings(self) -> nn.Module | None:
        """None, where there is no table of words. (Encoders' patch embeddings are sharded with what holds them.)"""
        return None

    def train(self, mode: bool = True) -> "JepaPreTrainedModel":
        super().train(mode)
        # The Trainer calls train() before every step; dropout must never act on targets.
        for part in self._teachers():
            part.eval()
        return self

    @torch.no_grad()
    def load_teacher(self, teacher: str | PreTrainedModel) -> None:
        """
        Gives a model with `target="frozen"` its teacher's weights; before that they are random.

        Args:
            teacher (`str` or `PreTrainedModel`): a model id, a local folder, or a loaded encoder, of `teacher_config`.

        Raises:
            `ValueError`: for a model without a teacher, and weights that do not fit.
        """
        if getattr(self, "teacher", None) is None:
            raise ValueError(f'{type(self).__name__} has no teacher; set target="frozen" in its config.')
        teacher = self.read_teacher(teacher)
        own = self.teacher.state_dict()
        # Encoders are often saved without their pooler, which no token depends on.
        needed = [name for name in own if not name.startswith("pooler.")]
        given = {name: value for name, value in teacher.state_dict().items() if name in own}
        wrong = [name for name in needed if name not in given or given[name].shape != own[name].shape]
        if wrong:
            raise ValueError(
                f"The teacher's weights do not fit `teacher_config`: {cut(wrong)}. Build the config with "
                "`teacher_config=teacher.config`."
            )
        self.teacher.load_state_dict({**own, **given})
        self._teacher_was_loaded = True

    @property
    def teacher_is_random(self) -> bool:
        """Whether the frozen teacher, if there is one, comes from a config alone, without [`load_teacher`]."""
        has_teacher = getattr(self, "teacher", None) is not None
        return has_teacher and not (self._teacher_was_loaded or self.name_or_path)

    @classmethod
    def read_teacher(cls, teacher: str | PreTrainedModel) -> PreTrainedModel:
        """
        The encoder that can be a model's teacher: a loaded one, or that of a model id or local folder.

        Raises:
            `ValueError`: for one that reads no pixels.
        """
        if not isinstance(teacher, str):
            return teacher
        name, teacher = teacher, load_auto(AutoModel, teacher, dtype=torch.float32)
        if not teacher.main_input_name.startswith("pixel_values"):
            raise ValueError(
                f"The teacher {name!r} is a {type(teacher).__name__}, which reads {teacher.main_input_name}, no "
                "pixels: choose a vision encoder."
            )
        return teacher

    def _twins(self) -> list[tuple[nn.Module, nn.Module]]:
        """What is a moving average, and of what."""
        return [(self.target_encoder, self.encoder)] if self.has_target_encoder else []

    def _copy_buffers(self, target: nn.Module, source: nn.Module) -> None:
        for own, other in zip(target.buffers(), source.buffers(), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def sync_target(self) -> None:
        """Makes the target encoder, if there is one, and what else is averaged, a copy of the context encoder."""
        for target, source in self._twins():
            target.load_state_dict(source.state_dict())

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
        twins = self._twins()
        targets = [parameter for target, _ in twins for parameter in target.parameters()]
        sources = [parameter for _, source in twins for parameter in source.parameters()]
        low = next((p.dtype for p in targets + sources if p.dtype not in (torch.float32, torch.float64)), None)
        if low is not None:
            raise ValueError(
                f"The EMA target needs float32 weights, got {low}: in {low} updates of {1 - momentum:.1e} are rounded "
                'away. Load the model with `dtype="float32"` and use `bf16=True` (autocast) for speed.'
            )
        torch._foreach_lerp_(targets, sources, 1.0 - momentum)
        for target, source in twins:
            self._copy_buffers(target, source)

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
        check_pixels(pixel_values)
        return self._encoder(which)(pixel_values).last_hidden_state

    def _encoder(self, which: str) -> nn.Module:
        target = self.target_encoder if self.has_target_encoder else self.encoder
        encoders = {"target": target, "context": self.encoder}
        if which not in encoders:
            raise ValueError(f'`which` must be "target" or "context", got {which!r}.')
        return encoders[which]
