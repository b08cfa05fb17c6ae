"""Configuration of world models that are trained end to end from pixels, or on a frozen encoder."""

import copy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

from ...world_model import WorldModelConfig, check_statistics
from .presets_latent_world_model import PRESETS

logger = logging.get_logger(__name__)


@strict
class LatentWorldModelConfig(WorldModelConfig):
    r"""
    Configuration of [`LatentWorldModel`]: an encoder, a predictor of the next latent frame, and which terms keep the
    latents from collapsing. The names of published combinations are in [`~LatentWorldModelConfig.from_preset`].

    Args:
        encoder_config (`dict` or `PreTrainedConfig`, *optional*): any vision encoder that `AutoModel` builds: the ViT
            family, any timm model through `TimmWrapperConfig`, or a [`ConvEncoderConfig`], the default.
        freeze_encoder (`bool`, defaults to `False`): whether the encoder stays as it is, in eval mode.
        pooling (`"auto"`, `"cls"`, `"mean"`, `"pooler"` or `"patches"`): what stands for a frame: one vector (see
            [`~hf_jepa.encoders.pooled_output`]), or all patch tokens.
        pooled_size, num_tokens (`int`, *optional*): width and tokens of that; found out when the model is first built.
        projector_hidden_size (`int`, *optional*): LeWM's heads after encoder and predictor: Linear, BatchNorm, GELU,
            Linear. `None` leaves them out.
        latent_size (`int`, *optional*): width of the projector's output; defaults to `pooled_size`.
        latent_space (`"free"`, `"tanh"` or `"layer_norm"`): what encoder and predictor both end in; the layer norm is
            one and the same module (EB-JEPA).
        proprio_dim (`int`, defaults to 0): numbers of proprioception that `encode` takes beside a frame. A linear
            layer makes `proprio_embedding_size` channels of them, which join every token.
        proprio_embedding_size (`int`, defaults to 10).
        proprio_names (`list[str]`, *optional*), proprio_mean, proprio_std (`list[float]`, *optional*): what these
            numbers are, and their statistics; `encode` takes `(proprio - proprio_mean) / proprio_std`.
        predictor_type (`"residual_mlp"`, `"mlp"`, `"gru"` or `"transformer"`).
        predictor_hidden_size (`int`, defaults to 256): of the MLPs.
        predictor_num_hidden_layers, predictor_num_attention_heads, predictor_head_dim, predictor_intermediate_size
            (`int`), predictor_dropout (`float`): of the transformer.
        action_embedding_size (`int`, *optional*): channels that the action takes beside every token of the
            transformer (DINO-WM); `None` conditions it through AdaLN-zero (LeWM).
        context_frames (`int`, defaults to 1): frames that the transformer sees. Longer rollouts slide this window.
        rollout_steps (`int`, defaults to 1): 1: every frame of a window is predicted from the true frames before it.
            More: that many frames are predicted from the first one, each from the predictions before it, with
            gradient through all.
        sigreg_weight, inverse_dynamics_weight, variance_weight, covariance_weight, temporal_variance_weight,
        temporal_similarity_weight (`float`, default to 0): of the terms beside the prediction, whose weight is 1; see
            [`~hf_jepa.models.latent_world_model.regularizers`].
        variance_frames (`"all"` or `"first"`): the frames that variance and covariance are taken over.
        num_slices (`int`, defaults to 1024): random directions per step of SIGReg.
        inverse_hidden_size (`int`, defaults to 256): of the inverse model, that tells the action from two frames.
        latent_variable (`"none"`, `"discrete"`, `"sparse"` or `"noisy"`): what the predictor takes beside the action
            for what the action does not decide; see [`LatentVariable`].
        num_codes (`int`, defaults to 8), latent_variable_size (`int`, defaults to 8): codes of a discrete one, width.
        latent_variable_weight (`float`, defaults to 0.1): of the term that limits it.
        code_annealing_steps (`int`, defaults to 0): training steps in which the assignment of discrete codes goes from
            soft to hard.

    Raises:
        `ValueError`: for sizes below 1, negative weights, statistics that do not fit, and choices that exclude each
            other.
    """

    model_type = "latent_world_model"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="conv_encoder")}

    encoder_config: dict | PreTrainedConfig | None = None
    freeze_encoder: bool = False
    pooling: Literal["auto", "cls", "mean", "pooler", "patches"] = "auto"
    pooled_size: int | None = None
    num_tokens: int | None = None
    projector_hidden_size: int | None = None
    latent_size: int | None = None
    latent_space: Literal["free", "tanh", "layer_norm"] = "free"
    proprio_dim: int = 0
    proprio_embedding_size: int = 10
    proprio_names: list[str] | None = None
    proprio_mean: list[float | int] | None = None
    proprio_std: list[float | int] | None = None
    predictor_type: Literal["residual_mlp", "mlp", "gru", "transformer"] = "residual_mlp"
    predictor_hidden_size: int = 256
    predictor_num_hidden_layers: int = 6
    predictor_num_attention_heads: int = 16
    predictor_head_dim: int = 64
    predictor_intermediate_size: int = 2048
    predictor_dropout: float | int = 0.0
    action_embedding_size: int | None = None
    context_frames: int = 1
    rollout_steps: int = 1
    sigreg_weight: float | int = 0.0
    inverse_dynamics_weight: float | int = 0.0
    variance_weight: float | int = 0.0
    covariance_weight: float | int = 0.0
    temporal_variance_weight: float | int = 0.0
    temporal_similarity_weight: float | int = 0.0
    variance_frames: Literal["all", "first"] = "all"
    num_slices: int = 1024
    inverse_hidden_size: int = 256
    latent_variable: Literal["none", "discrete", "sparse", "noisy"] = "none"
    num_codes: int = 8
    latent_variable_size: int = 8
    latent_variable_weight: float | int = 0.1
    code_annealing_steps: int = 0

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> "LatentWorldModelConfig":
        """
        A published combination, at its published size.

        - `"lewm"` (arXiv 2603.19312): ViT-tiny/14 with projector; transformer over 3 frames; SIGReg 0.09.
        - `"smwm"` (arXiv 2606.20104): the same encoder; transformer over 1 frame; inverse dynamics 10.
        - `"pldm"` (arXiv 2502.14819): residual ConvNet; GRU, 16 steps; variance 3.98 and covariance 6.92 of the first
          frame, temporal variance 0.245, temporal similarity 0.742, inverse dynamics 1.07.
        - `"eb_jepa"` (arXiv 2602.03604): residual ConvNet with layer norm; GRU, 8 steps; variance 16, covariance 8,
          temporal similarity 12, inverse dynamics 1.
        - `"dino_wm"` (arXiv 2411.04983): patches of a frozen DINOv2-S/14; transformer over 3 frames that actions (and
          proprioception) join; nothing else.

        SMWM's weight is the one of its toy; its planning experiments use 0.1 to 30 by task. PLDM's ConvNet and the
        form of its temporal variance are not published with its numbers; here they are EB-JEPA's and a hinge like the
        batch's.

        Args:
            name (`str`): of the list.
            changes: fields to set; `action_dim` and the statistics at least belong to the data.

        Raises:
            `ValueError`: for an unknown name.
        """
        return cls(**{**cls.preset_fields(name), **changes})

    @staticmethod
    def preset_fields(name: str) -> dict[str, Any]:
        """The fields that a preset of [`from_preset`] sets; `ValueError` for an unknown one."""
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}: choose from {', '.join(map(repr, PRESETS))}.")
        return copy.deepcopy(PRESETS[name])

    @property
    def condition_size(self) -> int:
        """Width of what the predictor takes beside a frame: the action, and the latent variable."""
        return self.action_dim + (0 if self.latent_variable == "none" else self.latent_variable_size)

    @property
    def is_kept_from_collapse(self) -> bool:
        """Whether a constant encoder would cost something."""
        terms = ("sigreg", "inverse_dynamics", "variance", "temporal_variance")
        return self.freeze_encoder or any(getattr(self, f"{name}_weight") for name in terms)

    def validate_numbers(self) -> None:
        """Refuses sizes below 1 and negative weights; runs whenever a config is made."""
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if name.endswith("_weight") and not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a finite number that is not negative, got {value}.")
            sized = name.endswith(("_size", "_head_dim", "context_frames", "rollout_steps", "num_slices", "num_codes"))
            if sized and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not 0 <= self.predictor_dropout < 1:
            raise ValueError(f"`predictor_dropout` must lie in [0, 1), got {self.predictor_dropout}.")

    def validate_statistics(self) -> None:
        """Refuses statistics of proprioception that make no sense."""
        check_statistics("proprio", self.proprio_mean, self.proprio_std, self.proprio_dim)
        if self.proprio_names is not None and len(self.proprio_names) != self.proprio_dim:
            raise ValueError(f"`proprio_names` must name {self.proprio_dim} numbers, got {self.proprio_names}.")

    def validate_choices(self) -> None:
        """Refuses choices that exclude each other, and warns of latents that nothing keeps from collapsing."""
        if self.predictor_type != "transformer" and (self.context_frames > 1 or self.action_embedding_size):
            raise ValueError(
                f"`context_frames` and `action_embedding_size` are the transformer's; predictor_type=\""
                f'{self.predictor_type}" sees one frame and its action.'
            )
        if self.predictor_type != "transformer" and self.pooling == "patches":
            raise ValueError(
                '`pooling="patches"` needs `predictor_type="transformer"`: tokens have to see each other.'
            )
        if self.latent_variable == "discrete" and self.context_frames > 1:
            raise ValueError(
                "The best code of a frame depends on those of the frames that the transformer sees before it: with "
                '`latent_variable="discrete"` set `context_frames` to 1.'
            )
        if self.latent_variable != "none" and self.rollout_steps > 1:
            raise ValueError(
                "A latent variable is told from a true frame and the next one: `rollout_steps` must be 1, got "
                f"{self.rollout_steps}."
            )
        if not self.is_kept_from_collapse:
            logger.warning_once(
                "Prediction alone collapses: a constant encoder predicts itself perfectly. Give `sigreg_weight`, "
                "`inverse_dynamics_weight` or `variance_weight` a value, or freeze the encoder."
            )
