"""Configurations of V-JEPA, V-JEPA 2 and V-JEPA 2.1 pretraining."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...parts import CompositeConfig
from .configuration_vjepa import GENERATION_FIELDS, VJepaConfig


@strict
class VJepaPreTrainingConfig(CompositeConfig):
    r"""
    Configuration of [`VJepaForPreTraining`] (arXiv 2404.08471). Defaults are those of the released code.

    Args:
        encoder_config (`dict` or [`VJepaConfig`], *optional*): encoders and predictor. When omitted, V-JEPA's ViT-L.
        target (`"ema"`, `"frozen"` or `"pixels"`): what is predicted of hidden tokens. `"ema"`: what an exponential
            moving average of the encoder makes of them, V-JEPA. `"pixels"` and `"frozen"` are the two stages of SALT
            (arXiv 2509.24317): the pixels themselves, each tubelet's by its own mean and deviation as in MAE; then
            what the encoder so trained, the model's `teacher`, makes of them. Both train without EMA.
        teacher_config (`dict` or [`VJepaConfig`], *optional*): for `target="frozen"`, the teacher, of any width and
            the encoder's patches. Its weights come by [`~VJepaForPreTraining.load_teacher`].
        loss_exponent (`float`, defaults to 1.0): the loss is the mean of `|prediction - target|^e / e`; 1 is L1, as
            in all releases.
        variance_weight (`float`, defaults to 0.0): weight of the variance regularizer of predictions, the mean of
            `relu(1 - std over tokens)`; 0 in all releases, and then not computed.
        context_loss_weight (`float`, defaults to 0.0): V-JEPA 2.1: weight of the loss on visible tokens, 0.5 in the
            release; the trainer warms it up. With 0 it is not computed. Needs the encoder's `pred_context_output`.
        context_loss_distance (`bool`, defaults to `True`): V-JEPA 2.1: whether a visible token counts by
            `1 / sqrt(d)`, `d` being its distance in the (time, row, column) grid to the nearest target token, as in
            the released pretraining; its cooldown counts all the same.
        mask_token_by (`"mask"` or `"group"`): which mask token stands for hidden tokens: one per mask of a clip (the
            recipe that drew it), as in V-JEPA, or one per group of clips of one length, as in V-JEPA 2 and 2.1, so
            that with one length only the first is trained.

    Raises:
        `ValueError`: for weights that make no sense, a predictor without a head for visible tokens, a frozen target
            without a teacher, or the reverse, several levels with a target other than `"ema"`.
    """

    model_type = "vjepa_pretraining"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(
            config_class=VJepaConfig, init_kwargs={**GENERATION_FIELDS["1"], "pred_num_attention_heads": 16}
        ),
        "teacher_config": SubConfigSpec(config_class=VJepaConfig, optional=True),
    }

    encoder_config: dict | PreTrainedConfig | None = None
    teacher_config: dict | PreTrainedConfig | None = None
    target: Literal["ema", "frozen", "pixels"] = "ema"
    loss_exponent: float | int = 1.0
    variance_weight: float | int = 0.0
    context_loss_weight: float | int = 0.0
    context_loss_distance: bool = True
    mask_token_by: Literal["mask", "group"] = "mask"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        encoder = self.encoder_config
        if self.target == "pixels":
            encoder.pred_output_size = encoder.tubelet_size * encoder.patch_size**2 * encoder.in_chans
        elif self.target == "frozen" and self.teacher_config is not None:
            encoder.pred_output_size = self.teacher_config.hidden_size

    @classmethod
    def from_size(cls, size: str, generation: str = "1", **kwargs: Any) -> "VJepaPreTrainingConfig":
        """
        A published size by name, e.g. `VJepa2PreTrainingConfig.from_size("large", crop_size=256, frames_per_clip=16)`.

        Args:
            size, generation (`str`): as in [`VJepaConfig.from_size`].
            kwargs: other fields of this config and of its `encoder_config`.
        """
        own = {name: kwargs.pop(name) for name in list(kwargs) if name in _OWN_FIELDS}
        if generation == "2.1":
            own = {"context_loss_weight": 0.5, **own}
        return cls(encoder_config=VJepaConfig.from_size(size, generation, **kwargs), **own)

    def validate_losses(self) -> None:
        """Refuses weights that make no sense; runs whenever a config is made."""
        if not 0.0 < self.loss_exponent < float("inf"):
            raise ValueError(f"`loss_exponent` must be positive and finite, got {self.loss_exponent}.")
        for name in ("variance_weight", "context_loss_weight"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a finite number that is not negative, got {getattr(self, name)}.")
        encoder = self.encoder_config
        if not isinstance(encoder, PreTrainedConfig):
            return
        if encoder.model_type != "vjepa":
            raise ValueError(f"`encoder_config` must be of model type 'vjepa', got {encoder.model_type!r}.")
        if (self.target == "frozen") != (self.teacher_config is not None):
            raise ValueError(
                f'target="frozen" and `teacher_config` belong together, got target={self.target!r} '
                f"{'without' if self.teacher_config is None else 'with'} a teacher."
            )
        for name in ("patch_size", "tubelet_size", "in_chans") if self.target == "frozen" else ():
            own, other = getattr(encoder, name), getattr(self.teacher_config, name, None)
            if own != other:
                raise ValueError(
                    f"The teacher's `{name}` is {other}, the student's {own}; a target is one token of both: set the "
                    f"student's to {other}, or choose another teacher."
                )
        if self.target != "ema" and (encoder.predicted_levels > 1 or self.context_loss_weight):
            raise ValueError(
                f"target={self.target!r} is one level of hidden tokens: leave `hierarchical_layers` and "
                "`context_loss_weight` of V-JEPA 2.1 out."
            )
        if self.context_loss_weight and not encoder.pred_context_output:
            raise ValueError("`context_loss_weight` needs a predictor with `pred_context_output=True`.")


_OWN_FIELDS = (
    "target",
    "teacher_config",
    "loss_exponent",
    "variance_weight",
    "context_loss_weight",
    "context_loss_distance",
    "mask_token_by",
)


@strict
class VJepa2PreTrainingConfig(VJepaPreTrainingConfig):
    r"""
    Configuration of [`VJepa2ForPreTraining`] (V-JEPA 2, arXiv 2506.09985; V-JEPA 2.1, arXiv 2603.14482): the fields of
    [`VJepaPreTrainingConfig`] with V-JEPA 2's defaults. `VJepa2PreTrainingConfig.from_size(size, "2.1")` is V-JEPA
    2.1.
    """

    model_type = "vjepa2_pretraining"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(config_class=VJepaConfig),
        "teacher_config": SubConfigSpec(config_class=VJepaConfig, optional=True),
    }

    mask_token_by: Literal["mask", "group"] = "group"

    @classmethod
    def from_size(cls, size: str, generation: str = "2", **kwargs: Any) -> "VJepa2PreTrainingConfig":
        return super().from_size(size, generation, **kwargs)
