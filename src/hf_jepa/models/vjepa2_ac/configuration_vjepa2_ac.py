"""Configuration of V-JEPA 2-AC."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...world_model import WorldModelConfig
from ..vjepa.configuration_vjepa import VJEPA_SIZES

_WIDTH, _LAYERS, _HEADS, _MLP_RATIO = VJEPA_SIZES["giant"]


@strict
class VJepa2ACConfig(WorldModelConfig):
    r"""
    Configuration of [`VJepa2ACModel`] (arXiv 2506.09985): a predictor of what an action does, on a frozen encoder.
    Defaults are the released model's, on V-JEPA 2's ViT-g. The fields of
    [`~hf_jepa.world_model.WorldModelConfig`] apply; actions are pose differences in metres, radians and gripper
    openings, which the original does not normalise: `action_mean` and `action_std` default to 0 and 1. `image_mean`
    and `image_std` default to ImageNet's, for frames of three channels.

    Args:
        encoder_config (`dict` or `PreTrainedConfig`, *optional*): the frozen encoder of frames: `vjepa`, in-tree
            `vjepa2`, or any encoder that `AutoModel` builds and that gives patch tokens.
        latent_size (`int`, *optional*): width of the encoder's tokens; read off `encoder_config` where it tells.
        hidden_size, num_hidden_layers, num_attention_heads (`int`), mlp_ratio (`float`), hidden_act (`str`),
            layer_norm_eps (`float`), qkv_bias (`bool`), attention_probs_dropout_prob (`float`), initializer_range
            (`float`): the predictor's.
        action_dim, state_dim, extrinsics_dim (`int`): widths of an action, of the robot's state, and of the camera's
            position and Euler angles.
        use_extrinsics (`bool`, defaults to `False`): whether each frame has an extrinsics token. The encoder for it
            stands in every checkpoint, and is trained with `True` only.
        embodiments (`list[str]`): robots that share the predictor, each with its own three linear encoders; the first
            is the default. All have the widths above; narrower ones are padded with zeros.
        frame_grid (`list[int]`, *optional*): rows and columns of a frame's tokens; by default square.
        max_steps (`int`, defaults to 32): most frames that a rollout may look at. Rotary positions have no end; the
            released loader stops at 32, and training saw 8.
        normalize_latents (`bool`, defaults to `True`): layer-norm (no affine) of encoded and of predicted tokens, the
            released code's `normalize_reps`.
        loss_exponent (`float`, defaults to 1.0): losses are means of `|prediction - target|^e / e`.
        rollout_steps (`int`, defaults to 2): frames of the rollout loss; 0 leaves it out.

    Raises:
        `ValueError`: for sizes that cannot be built, no embodiment, or a rollout beyond `max_steps`.
    """

    model_type = "vjepa2_ac"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="vjepa",
            init_kwargs={
                "hidden_size": _WIDTH,
                "num_hidden_layers": _LAYERS,
                "num_attention_heads": _HEADS,
                "mlp_ratio": _MLP_RATIO,
            },
        )
    }

    encoder_config: dict | PreTrainedConfig | None = None
    latent_size: int | None = None
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    action_dim: int = 7
    state_dim: int = 7
    extrinsics_dim: int = 6
    use_extrinsics: bool = False
    embodiments: list[str] | tuple[str, ...] = ("droid",)
    frame_grid: list[int] | tuple[int, ...] | None = None
    max_steps: int = 32
    normalize_latents: bool = True
    loss_exponent: float | int = 1.0
    rollout_steps: int = 2

    # What the layers shared with V-JEPA ask for; the action-conditioned predictor has no such choice.
    depth_scaled_init = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.latent_size is None and isinstance(self.encoder_config, PreTrainedConfig):
            self.latent_size = getattr(self.encoder_config, "hidden_size", None)
        if self.action_mean is None and self.action_std is None:
            self.action_mean, self.action_std = [0.0] * self.raw_action_dim, [1.0] * self.raw_action_dim
        known = (getattr(self.encoder_config, name, None) for name in ("in_chans", "num_channels"))
        channels = next(filter(None, known), 3)
        if self.image_mean is None and self.image_std is None and channels == len(IMAGENET_DEFAULT_MEAN):
            self.image_mean, self.image_std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)

    @property
    def tokens_per_step(self) -> int:
        """Condition tokens of a frame, before its patches: action, state, and extrinsics where they are used."""
        return 3 if self.use_extrinsics else 2

    def validate_predictor(self) -> None:
        """Refuses sizes that cannot be built; runs whenever a config is made."""
        for name in ("num_hidden_layers", "state_dim", "extrinsics_dim", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be divisible by `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if self.hidden_size // self.num_attention_heads < 6:
            raise ValueError(
                "Rotary positions need 6 channels per head, 2 for each axis; `hidden_size` / `num_attention_heads` is "
                f"{self.hidden_size // self.num_attention_heads}."
            )
        if not self.embodiments or len(set(self.embodiments)) != len(self.embodiments):
            raise ValueError(f"`embodiments` must name at least one robot, each once, got {self.embodiments}.")
        if self.frame_grid is not None and (len(self.frame_grid) != 2 or min(self.frame_grid) < 1):
            raise ValueError(f"`frame_grid` must be rows and columns, got {self.frame_grid}.")
        if not 0.0 < self.loss_exponent < float("inf"):
            raise ValueError(f"`loss_exponent` must be positive and finite, got {self.loss_exponent}.")
        if not 0 <= self.rollout_steps <= self.max_steps:
            raise ValueError(
                f"`rollout_steps` must lie between 0 and `max_steps` ({self.max_steps}), got {self.rollout_steps}."
            )
        if isinstance(self.encoder_config, PreTrainedConfig) and self.latent_size is None:
            raise ValueError(
                f"The config of {self.encoder_config.model_type!r} names no `hidden_size`; set `latent_size` to the "
                "width of its patch tokens."
            )
