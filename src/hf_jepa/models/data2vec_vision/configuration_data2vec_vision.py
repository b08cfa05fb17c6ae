"""Configuration of data2vec vision pretraining."""

import copy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, Data2VecVisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...parts import CompositeConfig

# What the released code builds and the in-tree defaults are not: epsilon 1e-12, no mask token, no final norm (mean
# pooling), no position bias.
ENCODER_DEFAULTS = {
    "layer_norm_eps": 1e-6,
    "use_mask_token": True,
    "use_mean_pooling": False,
    "use_shared_relative_position_bias": True,
}

# The published models and the regularization that they were trained with.
DATA2VEC_VISION_SIZES = {
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "layer_scale_init_value": 1e-4,
        "drop_path_rate": 0.25,
        "attention_probs_dropout_prob": 0.05,
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "layer_scale_init_value": 1e-5,
        "drop_path_rate": 0.2,
        "attention_probs_dropout_prob": 0.15,
    },
}
PUBLISHED_TARGET_LAYERS = 6


@strict
class Data2VecVisionPreTrainingConfig(CompositeConfig):
    r"""
    Configuration of [`Data2VecVisionForPreTraining`] (arXiv 2202.03555). Defaults are those of the released
    `data2vec_vision` code, which trained the published checkpoints; the fairseq port differs.

    Args:
        encoder_config (`dict` or `Data2VecVisionConfig`, *optional*): student and teacher, in-tree `data2vec-vision`.
            It needs `use_mask_token=True` and `use_mean_pooling=False`, and should have `layer_norm_eps=1e-6`; none of
            these is the in-tree default. When omitted, the published ViT-B/16.
        target_layers (`list[int]` or `int`, *optional*): the teacher's blocks, counted from 0, whose outputs are
            averaged; an `int` K means the top K. Defaults to the top 6, or all of a shallower encoder.
        target_norm (`"layer"`, `"instance"` or `"none"`): each block output is layer-normed over features (the
            released vision recipe), instance-normed over tokens (what the paper describes; its audio recipe), or left.
        target_post_layer_norm (`bool`, defaults to `True`): whether their average is layer-normed over features again.
        loss_type (`"smooth_l1"` or `"l2"`): distance between predictions and targets.
        smooth_l1_beta (`float`, defaults to 2.0): where smooth-L1 turns from a square to a line.
        initializer_range (`float`, defaults to 0.02): standard deviation of the normal that weights are drawn from.
            It is truncated at one standard deviation, as in the released code.

    Raises:
        `ValueError`: for encoders that cannot be trained so (see `encoder_config`), images that are not square, or
            target layers that do not exist.
    """

    model_type = "data2vec_vision_pretraining"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="data2vec-vision",
            init_kwargs={**ENCODER_DEFAULTS, **DATA2VEC_VISION_SIZES["base"]},
        )
    }

    encoder_config: dict | PreTrainedConfig | None = None
    target_layers: list[int] | int | None = None
    target_norm: Literal["layer", "instance", "none"] = "layer"
    target_post_layer_norm: bool = True
    loss_type: Literal["smooth_l1", "l2"] = "smooth_l1"
    smooth_l1_beta: float | int = 2.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        depth = self.encoder_config.num_hidden_layers
        if self.target_layers is None:
            self.target_layers = min(PUBLISHED_TARGET_LAYERS, depth)
        if isinstance(self.target_layers, int):
            if not 0 < self.target_layers <= depth:
                raise ValueError(f"`target_layers` is {self.target_layers}; the encoder has {depth} blocks.")
            self.target_layers = list(range(depth - self.target_layers, depth))
        layers = self.target_layers
        if not layers or sorted(set(layers)) != layers or layers[0] < 0 or layers[-1] >= depth:
            raise ValueError(f"`target_layers` must be ascending numbers of the blocks 0..{depth - 1}, got {layers}.")

    @classmethod
    def from_size(
        cls, size: Literal["base", "large"], image_size: int = 224, patch_size: int = 16, **kwargs: Any
    ) -> "Data2VecVisionPreTrainingConfig":
        """
        A published size by name, with its dropout, stochastic depth and layer scale.

        Args:
            size (`str`): `"base"` or `"large"`.
            image_size (`int`): side of the square input, in pixels.
            patch_size (`int`): in pixels.
            kwargs: `num_channels`, and other fields of the config.

        Raises:
            `ValueError`: for an unknown size.
        """
        if size not in DATA2VEC_VISION_SIZES:
            raise ValueError(
                f"Unknown data2vec vision size {size!r}; choose one of {', '.join(DATA2VEC_VISION_SIZES)}."
            )
        encoder_config = Data2VecVisionConfig(
            **ENCODER_DEFAULTS,
            **DATA2VEC_VISION_SIZES[size],
            image_size=image_size,
            patch_size=patch_size,
            num_channels=kwargs.pop("num_channels", 3),
        )
        return cls(encoder_config=encoder_config, **kwargs)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the configured image, in patches."""
        image, patch = self.encoder_config.image_size, self.encoder_config.patch_size
        side = (image if isinstance(image, int) else image[0]) // patch
        return side, side

    def validate_sizes(self) -> None:
        """Refuses what cannot be built or trained; runs whenever a config is made."""
        encoder = self.encoder_config
        if not isinstance(encoder, PreTrainedConfig):
            return
        if encoder.model_type != "data2vec-vision":
            raise ValueError(f"`encoder_config` must be of model type 'data2vec-vision', got {encoder.model_type!r}.")
        for name, value in (("use_mask_token", True), ("use_mean_pooling", False)):
            if getattr(encoder, name) is not value:
                raise ValueError(
                    f"`encoder_config.{name}` must be {value} for pretraining (the in-tree default is {not value}): "
                    "the student needs a mask token, and a final norm before its head."
                )
        heads = encoder.num_attention_heads
        if heads < 1 or encoder.hidden_size % heads:
            raise ValueError(
                f"`hidden_size` ({encoder.hidden_size}) must be divisible by the {heads} attention heads."
            )
        image, patch = encoder.image_size, encoder.patch_size
        sides = {image} if isinstance(image, int) else set(image)
        # In-tree code reads the bias table of a window of H x W patches as one of W x H.
        if not isinstance(patch, int) or len(sides) > 1 or max(sides) % patch:
            raise ValueError(
                f"In-tree data2vec vision needs square images and patches, patches dividing images; got {image} and "
                f"{patch}. (At another size than the configured one, images may be of any shape.)"
            )
        if not self.smooth_l1_beta >= 0:
            raise ValueError(f"`smooth_l1_beta` must not be negative, got {self.smooth_l1_beta}.")


def as_student_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """
    A released encoder's config with what pretraining needs: mask token, final norm, and the epsilon of 1e-6 that the
    weights were trained with (the `facebook/data2vec-vision-*` repositories have the in-tree default of 1e-12).

    Args:
        config (`Data2VecVisionConfig`): left as it is.
    """
    config = copy.deepcopy(config)
    for name in ("use_mask_token", "use_mean_pooling", "layer_norm_eps"):
        setattr(config, name, ENCODER_DEFAULTS[name])
    return config
