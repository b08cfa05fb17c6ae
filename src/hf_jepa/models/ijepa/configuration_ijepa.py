"""Configuration of I-JEPA pretraining."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, IJepaConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...positions import pair
from ...regularized import RegularizedPreTrainingConfig

# name: (hidden size, layers, heads, intermediate size, predictor layers, patch size). Sizes of the released code;
# tiny and small were never published, their predictor depth is the code's default.
IJEPA_SIZES = {
    "tiny": (192, 12, 3, 768, 6, 16),
    "small": (384, 12, 6, 1536, 6, 16),
    "base": (768, 12, 12, 3072, 6, 16),
    "large": (1024, 24, 16, 4096, 12, 16),
    "huge": (1280, 32, 16, 5120, 12, 14),
    "giant": (1408, 40, 16, 6144, 16, 16),
}

Regularizer = Literal["none", "sigreg", "visreg", "weak_sigreg", "rdmreg", "vicreg", "cjepa"]


@strict
class IJepaPreTrainingConfig(RegularizedPreTrainingConfig):
    r"""
    Configuration of [`IJepaForPreTraining`] (arXiv 2301.08243): the fields of
    [`~hf_jepa.regularized.RegularizedPreTrainingConfig`] (`target`, `regularizer`, `regularizer_weight`, `num_slices`;
    their defaults are I-JEPA), and

    Args:
        encoder_config (`dict` or `IJepaConfig`, *optional*): the context and target encoders, in-tree `ijepa`. When
            omitted, a ViT-B/16 with the original's `layer_norm_eps` of 1e-6 (the in-tree default of 1e-12 is not it).
        teacher_config (`dict` or `PreTrainedConfig`, *optional*): for `target="frozen"`, the encoder whose tokens are
            predicted, of any type and width that gives one token per patch of the same grid. Its weights come by
            [`~IJepaForPreTraining.load_teacher`].
        predictor_hidden_size (`int`, defaults to 384): width of the predictor.
        predictor_num_hidden_layers (`int`, defaults to 6): depth of the predictor.
        predictor_num_attention_heads (`int`, *optional*): defaults to the encoder's number, as in the released code.
        predictor_mlp_ratio (`float`, defaults to 4.0): the predictor's MLP width over its width.
        loss_type (`"smooth_l1"`, `"l2"` or `"l1"`): the released code minimises smooth-L1; the paper and the survey
            write L2.
        initialization (`"original"` or `"fan_in"`): `"original"` is the released code's effective initialisation,
            N(0, `initializer_range`) for every weight. `"fan_in"` draws N(0, 1 / fan-in), so that in narrow models
            patch content is not drowned by the position table; the small recipes use it.
        initializer_range (`float`, defaults to 0.02): standard deviation of the original initialisation.
        regularizer (`str`): also `"cjepa"`, C-JEPA's: VICReg with its invariance on projected embeddings.
            `regularizer_weight` then defaults to the paper's 0.001, and the fields below apply.
        regularized (`"predicted_blocks"` or `"context"`): two readings of C-JEPA's "context embeddings". The survey's,
            and the paper's Algorithm 1: the predictor's output averaged over each target block; VICReg between all
            ordered pairs of an image's blocks. Or the paper's Python-like listing: the context encoder's output,
            averaged; its invariance is to the equally averaged and projected targets, which get no gradient.
        sim_weight, std_weight, cov_weight (`float`, default to 25, 25 and 1): VICReg's own coefficients.
        projector_hidden_size, projector_output_size (`int`, default to 1024): widths of the projector's two hidden
            layers, and of the embeddings that VICReg sees.

    Raises:
        `ValueError`: for negative weights, widths that heads do not divide, widths not divisible by 4, image sizes
            that patches do not divide, another encoder type than `ijepa`, or a frozen target without a teacher, or the
            reverse.
    """

    model_type = "ijepa_pretraining"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(
            config_class=AutoConfig, model_type="ijepa", init_kwargs={"layer_norm_eps": 1e-6}
        ),
        "teacher_config": SubConfigSpec(config_class=AutoConfig, model_type="vit", optional=True),
    }

    encoder_config: dict | PreTrainedConfig | None = None
    teacher_config: dict | PreTrainedConfig | None = None
    predictor_hidden_size: int = 384
    predictor_num_hidden_layers: int = 6
    predictor_num_attention_heads: int | None = None
    predictor_mlp_ratio: float | int = 4.0
    loss_type: Literal["smooth_l1", "l2", "l1"] = "smooth_l1"
    initialization: Literal["original", "fan_in"] = "original"
    initializer_range: float = 0.02
    regularizer: Regularizer = "none"
    regularized: Literal["predicted_blocks", "context"] = "predicted_blocks"
    sim_weight: float | int = 25.0
    std_weight: float | int = 25.0
    cov_weight: float | int = 1.0
    projector_hidden_size: int = 1024
    projector_output_size: int = 1024

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.predictor_num_attention_heads is None:
            self.predictor_num_attention_heads = self.encoder_config.num_attention_heads

    @classmethod
    def from_size(
        cls,
        size: Literal["tiny", "small", "base", "large", "huge", "giant"],
        image_size: int | tuple[int, int] = 224,
        patch_size: int | None = None,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> "IJepaPreTrainingConfig":
        """
        A published size by name, e.g. `IJepaPreTrainingConfig.from_size("huge", patch_size=14)`.

        Args:
            size (`str`): `"tiny"`, `"small"`, `"base"`, `"large"`, `"huge"` or `"giant"`.
            image_size (`int` or `(height, width)`): in pixels.
            patch_size (`int`, *optional*): in pixels; defaults to 14 for huge and 16 for the others.
            num_channels (`int`): of the image.
            kwargs: other fields of the config.

        Raises:
            `ValueError`: for an unknown size.
        """
        if size not in IJEPA_SIZES:
            raise ValueError(f"Unknown I-JEPA size {size!r}; choose one of {', '.join(IJEPA_SIZES)}.")
        hidden, layers, heads, intermediate, predictor_layers, patch = IJEPA_SIZES[size]
        encoder_config = IJepaConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            layer_norm_eps=1e-6,
            image_size=image_size,
            patch_size=patch_size or patch,
            num_channels=num_channels,
        )
        return cls(encoder_config=encoder_config, **{"predictor_num_hidden_layers": predictor_layers, **kwargs})

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the configured image, in patches."""
        image, patch = pair(self.encoder_config.image_size), pair(self.encoder_config.patch_size)
        return image[0] // patch[0], image[1] // patch[1]

    @property
    def predictor_config(self) -> IJepaConfig:
        """The predictor's transformer layers as an in-tree config."""
        config = IJepaConfig(
            hidden_size=self.predictor_hidden_size,
            num_hidden_layers=self.predictor_num_hidden_layers,
            num_attention_heads=self.predictor_num_attention_heads or self.encoder_config.num_attention_heads,
            intermediate_size=int(self.predictor_hidden_size * self.predictor_mlp_ratio),
            layer_norm_eps=self.encoder_config.layer_norm_eps,
            hidden_act=self.encoder_config.hidden_act,
            qkv_bias=self.encoder_config.qkv_bias,
            initializer_range=self.initializer_range,
        )
        config._attn_implementation = self._attn_implementation
        return config

    def validate_sizes(self) -> None:
        """Refuses sizes that cannot be built; runs whenever a config is made."""
        encoder = self.encoder_config
        if not isinstance(encoder, PreTrainedConfig):
            return
        if (self.target == "frozen") != (self.teacher_config is not None):
            raise ValueError(
                f'target="frozen" and `teacher_config` belong together, got target={self.target!r} '
                f"{'without' if self.teacher_config is None else 'with'} a teacher."
            )
        if self.target == "frozen" and self.regularizer == "cjepa":
            raise ValueError("C-JEPA's projector is for the encoder's own tokens; it takes no frozen teacher.")
        if encoder.model_type != "ijepa":
            raise ValueError(f"`encoder_config` must be of model type 'ijepa', got {encoder.model_type!r}.")
        known = (getattr(self.teacher_config, name, None) for name in ("num_channels", "in_chans"))
        if (channels := next(filter(None, known), encoder.num_channels)) != encoder.num_channels:
            raise ValueError(
                f"The teacher takes images of {channels} channels, the student of {encoder.num_channels}: choose a "
                f"teacher of {encoder.num_channels}, or set the student's `num_channels` to {channels}."
            )
        image, patch = pair(encoder.image_size), pair(encoder.patch_size)
        counted = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_channels")
        least = min(*image, *patch, self.predictor_hidden_size, *(getattr(encoder, name) for name in counted))
        if least < 1 or int(self.predictor_hidden_size * self.predictor_mlp_ratio) < 1:
            raise ValueError(
                "Sizes, layers, channels and the predictor's MLP must be at least 1, got a smallest one of "
                f"{min(least, int(self.predictor_hidden_size * self.predictor_mlp_ratio))}."
            )
        predictor_heads = self.predictor_num_attention_heads or encoder.num_attention_heads
        for name, width, heads in (
            ("encoder_config.hidden_size", encoder.hidden_size, encoder.num_attention_heads),
            ("predictor_hidden_size", self.predictor_hidden_size, predictor_heads),
        ):
            if heads < 1 or width % heads:
                raise ValueError(f"`{name}` ({width}) must be divisible by its number of attention heads ({heads}).")
            if width % 4:
                raise ValueError(f"`{name}` ({width}) must be divisible by 4 for the 2-D sine-cosine positions.")
        if image[0] % patch[0] or image[1] % patch[1]:
            raise ValueError(f"The image size {image} must be divisible by the patch size {patch}.")
        if self.predictor_num_hidden_layers < 1:
            raise ValueError(
                f"`predictor_num_hidden_layers` must be at least 1, got {self.predictor_num_hidden_layers}."
            )
        for name in ("sim_weight", "std_weight", "cov_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        for name in ("projector_hidden_size", "projector_output_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


@strict
class CJepaPreTrainingConfig(IJepaPreTrainingConfig):
    r"""
    Configuration of [`CJepaForPreTraining`]: [`IJepaPreTrainingConfig`] with `regularizer="cjepa"`. Configs of earlier
    versions, which call `regularizer_weight` `vicreg_weight`, are read.

    Raises:
        `ValueError`: for another regularizer, and what [`IJepaPreTrainingConfig`] refuses.
    """

    model_type = "cjepa_pretraining"

    regularizer: Regularizer = "cjepa"

    def __post_init__(self, **kwargs: Any) -> None:
        if "vicreg_weight" in kwargs:
            self.regularizer, self.regularizer_weight = "cjepa", kwargs.pop("vicreg_weight")
        super().__post_init__(**kwargs)

    def validate_method(self) -> None:
        """Refuses to be another method."""
        if self.regularizer != "cjepa":
            raise ValueError(f"C-JEPA's `regularizer` is 'cjepa', got {self.regularizer!r}; for others, use I-JEPA.")
