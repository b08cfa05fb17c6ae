"""Configurations of the joint-embedding models: LeJEPA, Rectified LpJEPA, VICReg, SimSiam."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...encoders import refuse_patch_dropping
from ...parts import CompositeConfig

# MINIMAL.md's encoder, timm's vit_small_patch8_224 at 128 pixels, in-tree.
_VIT_SMALL_8 = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-6,
    "patch_size": 8,
    "image_size": 128,
}


@strict
class JointEmbeddingPreTrainingConfig(CompositeConfig):
    r"""
    What the joint-embedding models share.

    Args:
        encoder_config (`dict` or `PreTrainedConfig`, *optional*): any vision encoder that `AutoModel` builds: the ViT
            family, ConvNets, or any timm model through `TimmWrapperConfig(architecture=..., model_args={...})`. Of
            timm's ViTs `model_args={"patch_drop_rate": 0.3}` drops random patches of every view in training, and none
            from features. LeJEPA's released ImageNet script has a `patch_mask_ratio` of 0.3; how patches are drawn,
            and of which views, is timm's here. Defaults to a ResNet-50 (LeJEPA: a ViT-S/8 at 128 pixels).
        image_size (`int` or `(height, width)`, *optional*): of the global views, in pixels; says what size the
            released encoder expects. Defaults to the encoder's, or 224.
        pooling (`"auto"`, `"cls"`, `"mean"` or `"pooler"`): what stands for a view; see
            [`~hf_jepa.encoders.pooled_output`]. `"auto"` is replaced by its meaning when the model is first built.
        pooled_size (`int`, *optional*): width of the pooled output; found out when the model is first built.
        batch_norm (`"joint"` or `"per_view"`): whether batch norm's statistics, in encoder and projector, are those
            of all views together or of each view. With `"joint"`, and in encoders without batch norm, all views of one
            size take one pass through the encoder.

    Raises:
        `ValueError`: for sizes below 1, or a `patch_drop_rate` where no encoder would read it.
    """

    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    image_size: int | list[int] | tuple[int, int] | None = None
    pooling: Literal["auto", "cls", "mean", "pooler"] = "auto"
    pooled_size: int | None = None
    batch_norm: Literal["joint", "per_view"] = "per_view"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.image_size is None:
            options = getattr(self.encoder_config, "model_args", None) or {}
            self.image_size = getattr(self.encoder_config, "image_size", None) or options.get("img_size") or 224

    @property
    def num_channels(self) -> int:
        """Channels of the images that the encoder takes."""
        options = getattr(self.encoder_config, "model_args", None) or {}
        return getattr(self.encoder_config, "num_channels", None) or options.get("in_chans") or 3

    def validate_encoder(self) -> None:
        """Refuses options of the encoder that nothing would read."""
        refuse_patch_dropping(self.encoder_config)

    def validate_numbers(self) -> None:
        """Refuses sizes below 1 and negative weights; runs whenever a config is made."""
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if name.endswith("_size") or name in ("num_slices", "num_projections"):
                if value < 1:
                    raise ValueError(f"`{name}` must be at least 1, got {value}.")
            elif name.endswith("_weight") and not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a finite number that is not negative, got {value}.")


@strict
class LeJepaPreTrainingConfig(JointEmbeddingPreTrainingConfig):
    r"""
    Configuration of [`LeJepaForPreTraining`] (arXiv 2511.08544): the fields of [`JointEmbeddingPreTrainingConfig`],
    and the choices in which published LeJEPA losses differ. The defaults are the authors' MINIMAL.md.

    | | MINIMAL.md (default) | paper | lightly | stable-pretraining | EB-JEPA |
    |---|---|---|---|---|---|
    | `combination` | convex | convex | convex | additive | additive |
    | `centre` | all_views | global_views | global_views | global_views | pairs |
    | `reduction` | mean | sum | mean | mean | mean |
    | `flatten_views` | False | False | False | True | False |
    | `regularizer_weight` | 0.02 | 0.05 | 0.05 | 0.02 | 10 |
    | `num_slices` | 256 | 1024 | 1024 | 1024 | 256 |
    | `sigreg_form` | package | paper | package | package | paper |
    | `t_max`, `num_points`, `scale_by_batch` | - | - | - | - | 3, 10, False |

    A weight does not carry over from one column to another.

    Args:
        embedding_size (`int`, *optional*, defaults to 512): a linear layer makes the pooled output this wide before
            the projector (MINIMAL.md's head of 512 outputs). `None` leaves it out. The released encoder is what
            stands before it.
        projector_hidden_size (`int`, defaults to 2048): width of the projector's two hidden layers.
        projection_size (`int`, defaults to 16): width of the embeddings that the loss sees.
        regularizer (`"sigreg"`, `"visreg"` or `"weak_sigreg"`): what keeps embeddings apart.
            [`~hf_jepa.objectives.VISReg`], with lambda and slices as they are, makes the loss of arXiv 2606.02572;
            [`~hf_jepa.objectives.WeakSIGReg`] has no published lambda beside an invariance, and wants about 0.5.
        regularizer_weight (`float`, defaults to 0.02): lambda.
        combination (`"convex"` or `"additive"`): `(1 - lambda) * invariance + lambda * regularizer`, or
            `invariance + lambda * regularizer` (the survey's eq. 20 too).
        centre (`"all_views"`, `"global_views"` or `"pairs"`): which views' mean every view is compared with, never
            detached; or every view with every other.
        target (`"shared"` or `"ema"`): whose embeddings the centre is the mean of: the trained network's, with
            gradient; or those of an exponential moving average of it, without, for `centre="global_views"` only. The
            paper calls the latter SWA and lists it as optional for ViTs; the released ImageNet script turns it on.
            What it averages with is not written there: that the average is exponential is this package's choice, and
            so is the schedule of its momentum, [`JepaTrainingArguments`]' `ema_momentum` to `ema_momentum_end`. The
            released encoder is then the averaged one.
        reduction (`"mean"` or `"sum"`): of the squared differences over the width.
        num_slices (`int`, defaults to 256): random directions per step; Weak-SIGReg's rows.
        sigreg_form (`"package"`, `"paper"` or `"survey"`): see [`~hf_jepa.objectives.sigreg`].
        t_max (`float`, *optional*), num_points (`int`, *optional*): the form's grid; by default its own.
        scale_by_batch (`bool`, *optional*): whether the statistic grows with the batch; by default as the form has it.
        flatten_views (`bool`): one statistic over all views' embeddings instead of one per view.

    Raises:
        `ValueError`: for sizes below 1, a negative weight, a convex one above 1, or an averaged target whose centre is
            not that of the global views.
    """

    model_type = "lejepa_pretraining"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vit", init_kwargs=_VIT_SMALL_8)
    }

    embedding_size: int | None = 512
    projector_hidden_size: int = 2048
    projection_size: int = 16
    batch_norm: Literal["joint", "per_view"] = "joint"
    regularizer: Literal["sigreg", "visreg", "weak_sigreg"] = "sigreg"
    regularizer_weight: float | int = 0.02
    combination: Literal["convex", "additive"] = "convex"
    centre: Literal["all_views", "global_views", "pairs"] = "all_views"
    target: Literal["shared", "ema"] = "shared"
    reduction: Literal["mean", "sum"] = "mean"
    num_slices: int = 256
    sigreg_form: Literal["package", "paper", "survey"] = "package"
    t_max: float | int | None = None
    num_points: int | None = None
    scale_by_batch: bool | None = None
    flatten_views: bool = False

    def validate_combination(self) -> None:
        """Refuses a convex weight above 1, which would push views apart."""
        if self.combination == "convex" and self.regularizer_weight > 1:
            raise ValueError(f"`regularizer_weight` is {self.regularizer_weight}; convex weights lie in [0, 1].")

    def validate_target(self) -> None:
        """Refuses an averaged network that would see what no centre is made of."""
        if self.target == "ema" and self.centre != "global_views":
            raise ValueError(
                f'target="ema" embeds the global views for their centre, got centre={self.centre!r}: set '
                'centre="global_views", or target="shared".'
            )


@strict
class RectifiedLpJepaPreTrainingConfig(JointEmbeddingPreTrainingConfig):
    r"""
    Configuration of [`RectifiedLpJepaForPreTraining`] (arXiv 2602.01456): the fields of
    [`JointEmbeddingPreTrainingConfig`], and

    Args:
        projector_hidden_size (`int`, defaults to 2048): width of the projector's two hidden layers.
        projection_size (`int`, defaults to 2048): width of the embeddings that the loss sees.
        invariance_weight (`float`, defaults to 25), regularizer_weight (`float`, defaults to 125): the released
            code's; its CIFAR-100 configs and MINIMAL.md use 250 for the latter.
        p (`float`, defaults to 1), mu (`float`, defaults to 0), sigma (`"gn"`, `"rgn"` or `float`): of the target
            distribution. mu sets how many entries are active: half of them at 0; see
            [`~hf_jepa.objectives.location_for_active_fraction`].
        num_projections (`int`, defaults to 8192): random directions per step; the paper finds 512 to suffice.
        projection (`"random"`, `"svd_random"` or `"svd_bottom_half_random"`): which directions: the released code's
            `random`, `torch_svd_and_random` and `torch_svd_bottom_half_eigen_and_random`; see
            [`~hf_jepa.objectives.RDMReg`].
        rectify (`bool`): the ReLU at the projector's end and in the target, which belong together.

    Raises:
        `ValueError`: for sizes below 1, negative weights, or what [`~hf_jepa.objectives.RDMReg`] refuses.
    """

    model_type = "rectified_lpjepa_pretraining"

    projector_hidden_size: int = 2048
    projection_size: int = 2048
    invariance_weight: float | int = 25.0
    regularizer_weight: float | int = 125.0
    p: float | int = 1.0
    mu: float | int = 0.0
    sigma: float | int | str = "gn"
    num_projections: int = 8192
    projection: Literal["random", "svd_random", "svd_bottom_half_random"] = "random"
    rectify: bool = True


@strict
class VICRegPreTrainingConfig(JointEmbeddingPreTrainingConfig):
    r"""
    Configuration of [`VICRegForPreTraining`] (arXiv 2105.04906): the fields of [`JointEmbeddingPreTrainingConfig`],
    and

    Args:
        projector_hidden_size (`int`, defaults to 8192): width of the expander's two hidden layers.
        projection_size (`int`, defaults to 8192): width of the embeddings that the loss sees.
        sim_weight, std_weight, cov_weight (`float`, default to 25, 25 and 1): the coefficients.
        convention (`str`, defaults to `"official"`): what the terms are; see [`~hf_jepa.objectives.vicreg`].

    Raises:
        `ValueError`: for sizes below 1 or negative weights.
    """

    model_type = "vicreg_pretraining"

    projector_hidden_size: int = 8192
    projection_size: int = 8192
    sim_weight: float | int = 25.0
    std_weight: float | int = 25.0
    cov_weight: float | int = 1.0
    convention: str = "official"


@strict
class SimSiamPreTrainingConfig(JointEmbeddingPreTrainingConfig):
    r"""
    Configuration of [`SimSiamForPreTraining`] (arXiv 2011.10566): the fields of [`JointEmbeddingPreTrainingConfig`],
    and

    Args:
        projector_hidden_size (`int`, *optional*): width of the projector's two hidden layers; defaults to the pooled
            output's, as in the released code.
        projection_size (`int`, defaults to 2048): width of the embeddings.
        predictor_hidden_size (`int`, defaults to 512): width of the predictor's bottleneck.

    Raises:
        `ValueError`: for sizes below 1.
    """

    model_type = "simsiam_pretraining"

    projector_hidden_size: int | None = None
    projection_size: int = 2048
    predictor_hidden_size: int = 512
