"""
The families of `pretrain_image.py`: for each method, how a recipe becomes a model, a transform, a collator, pictures.
To add one, write its builders here and a line in `FAMILIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, Data2VecVisionConfig, IJepaConfig, PreTrainedModel, ViTMAEConfig

from ..data import MaskCollator, MultiViewCollator, MultiViewTransform, ViewAugmentation
from ..data import train_transform as make_train_transform
from ..data.transforms import ImageTransform
from ..masking import BlockwiseMaskGenerator, MultiBlockMaskGenerator
from ..methods import method_of
from ..models.data2vec_vision import Data2VecVisionForPreTraining
from ..models.data2vec_vision.configuration_data2vec_vision import ENCODER_DEFAULTS
from ..models.ijepa import IJepaForPreTraining
from ..training import JepaTrainer
from .image_arguments import DataArguments, MaskArguments, ModelArguments
from .image_pictures import (
    DATA2VEC_CAPTIONS,
    JOINT_EMBEDDING_CAPTIONS,
    MAE_CAPTIONS,
    MASK_CAPTIONS,
    draw_data2vec_pictures,
    draw_joint_embedding_pictures,
    draw_mae_pictures,
    draw_mask_pictures,
)
from .mae_baseline import NoiseCollator, ViTMAEForPreTraining


@dataclass(frozen=True)
class Family:
    """
    One method: `name` is that of its entry in [`~hf_jepa.methods.METHODS`].
    `build_transform` gets (data arguments, image size, statistics), `build_collator` (model, mask arguments, seed).
    """

    name: str
    build_model: Callable[[ModelArguments], PreTrainedModel]
    build_transform: Callable[[DataArguments, int, dict[str, Any]], ImageTransform]
    build_collator: Callable[[PreTrainedModel, MaskArguments, int], Any]
    draw_pictures: Callable[[JepaTrainer, Path], list[Path]]
    captions: list[dict[str, str]]

    @property
    def config_class(self) -> type:
        return method_of(self.name).composite.load("config")

    @property
    def model_class(self) -> type:
        return method_of(self.name).composite.load("model")


def family_of(args: ModelArguments) -> Family:
    """The family a recipe names."""
    if args.family not in FAMILIES:
        raise ValueError(f"Unknown family {args.family!r}; choose one of {', '.join(FAMILIES)}.")
    return FAMILIES[args.family]


def mapping(text: str | None, name: str) -> dict[str, Any]:
    """A recipe's nested mapping, which arrives as YAML text."""
    value = yaml.safe_load(text) if text else {}
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping such as '{{key: value}}', got {text!r}.")
    return value


def method_fields(family: Family, args: ModelArguments) -> dict[str, Any]:
    """The recipe's `method`: fields of the family's config, which by itself would accept misspelt ones."""
    chosen = mapping(args.method, "method")
    known = {field.name for field in fields(family.config_class)} - {"encoder_config"}
    if unknown := sorted(chosen.keys() - known):
        raise ValueError(f"`method` names {', '.join(unknown)}, which {family.config_class.__name__} has not.")
    return chosen


# ---- I-JEPA and C-JEPA: masks ----


def build_masked_model(args: ModelArguments) -> IJepaForPreTraining:
    """The pretraining model a recipe describes: a published size, sizes of its own, or a released encoder."""
    family = family_of(args)
    names = ("predictor_hidden_size", "predictor_num_hidden_layers", "predictor_num_attention_heads", "loss_type")
    names += ("initialization", "vicreg_weight", "regularized")
    chosen = {name: value for name in names if (value := getattr(args, name)) is not None}
    chosen |= method_fields(family, args)
    if args.family == "ijepa" and {"vicreg_weight", "regularized"} & chosen.keys():
        raise ValueError("`vicreg_weight` and `regularized` are C-JEPA's; set `family: cjepa` or leave them out.")
    own = (args.hidden_size, args.num_hidden_layers, args.num_attention_heads)
    if sum([args.size is not None, args.from_encoder is not None, any(own)]) != 1:
        raise ValueError("Give one of `size`, `from_encoder`, or `hidden_size` with its layers and heads.")
    if args.from_encoder is not None:
        return family.model_class.from_encoder(args.from_encoder, **chosen)
    if args.size is not None:
        shape = {"image_size": args.image_size, "patch_size": args.patch_size, "num_channels": args.num_channels}
        return family.model_class(family.config_class.from_size(args.size, **shape, **chosen))
    encoder = IJepaConfig(**own_vit_sizes(args), layer_norm_eps=1e-6)
    return family.model_class(family.config_class(encoder_config=encoder, **chosen))


def own_vit_sizes(args: ModelArguments) -> dict[str, int]:
    """Config fields of a ViT whose sizes the recipe gives itself."""
    if None in (args.hidden_size, args.num_hidden_layers, args.num_attention_heads, args.patch_size):
        raise ValueError("Own sizes need `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `patch_size`.")
    return {
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_hidden_layers,
        "num_attention_heads": args.num_attention_heads,
        "intermediate_size": 4 * args.hidden_size,
        "image_size": args.image_size,
        "patch_size": args.patch_size,
        "num_channels": args.num_channels,
    }


def build_crop_transform(args: DataArguments, image_size: int, statistics: dict[str, Any]) -> ImageTransform:
    """One random crop per image."""
    return make_train_transform(
        image_size, crop_scale=tuple(args.crop_scale), hflip=args.horizontal_flip, **statistics
    )


def build_mask_collator(model: IJepaForPreTraining, args: MaskArguments, seed: int) -> MaskCollator:
    """The collator that makes a recipe's masks for the model's grid."""
    encoder = model.config.encoder_config
    generator = MultiBlockMaskGenerator(
        encoder.image_size,
        encoder.patch_size,
        context_scale=tuple(args.context_scale),
        target_scale=tuple(args.target_scale),
        target_aspect_ratio=tuple(args.target_aspect_ratio),
        num_target_masks=args.num_target_masks,
        min_keep=args.min_keep,
        mode=args.mask_mode,
        seed=seed,
    )
    return MaskCollator(generator)


# ---- data2vec: block-wise masks ----


def build_data2vec_model(args: ModelArguments) -> Data2VecVisionForPreTraining:
    """A published size, sizes of its own (`encoder_args` adds layer scale, drop path, ...), or a released encoder."""
    family = family_of(args)
    chosen = method_fields(family, args)
    if sum([args.size is not None, args.from_encoder is not None, args.hidden_size is not None]) != 1:
        raise ValueError("Give one of `size`, `from_encoder`, or `hidden_size` with its layers and heads.")
    if args.from_encoder is not None:
        return family.model_class.from_encoder(args.from_encoder, **chosen)
    if args.size is not None:
        shape = {"image_size": args.image_size, "patch_size": args.patch_size or 16, "num_channels": args.num_channels}
        return family.model_class(family.config_class.from_size(args.size, **shape, **chosen))
    options = mapping(args.encoder_args, "encoder_args")
    encoder = Data2VecVisionConfig(**{**ENCODER_DEFAULTS, **own_vit_sizes(args), **options})
    if unknown := sorted(options.keys() - {field.name for field in fields(encoder)}):
        raise ValueError(f"`encoder_args` names {', '.join(unknown)}, which {type(encoder).__name__} has not.")
    return family.model_class(family.config_class(encoder_config=encoder, **chosen))


def single_view(image: Image.Image, views: MultiViewTransform) -> Tensor:
    """The only view that `views` makes of an image."""
    return views(image)["pixel_values"][0]


def build_data2vec_transform(args: DataArguments, image_size: int, statistics: dict[str, Any]) -> ImageTransform:
    """One bicubic crop per image, jittered and mirrored (the released code jitters before it crops)."""
    view = ViewAugmentation(
        image_size,
        crop_scale=tuple(args.crop_scale),
        color_jitter=tuple(args.color_jitter),
        color_jitter_probability=args.color_jitter_probability,
        grayscale_probability=0.0,
        blur_probability=0.0,
        flip_probability=0.5 * args.horizontal_flip,
        bicubic=True,
    )
    transform = partial(single_view, views=MultiViewTransform([view], [], **statistics))
    transform.draws_from_torch_only = True
    return transform


def build_blockwise_collator(model: Data2VecVisionForPreTraining, args: MaskArguments, seed: int) -> MaskCollator:
    """The collator that makes a recipe's block-wise masks for the model's grid."""
    encoder = model.config.encoder_config
    generator = BlockwiseMaskGenerator(
        encoder.image_size,
        encoder.patch_size,
        num_masked=args.num_masked,
        min_block=args.min_block,
        mode=args.mask_mode,
        seed=seed,
    )
    return MaskCollator(generator)


# ---- LeJEPA, Rectified LpJEPA, VICReg, SimSiam: views ----


def build_joint_embedding_model(args: ModelArguments) -> PreTrainedModel:
    """Any encoder by type or timm name, or a released one, under the family's projector and loss."""
    family = family_of(args)
    chosen = {"image_size": args.image_size, **method_fields(family, args)}
    if (args.encoder is None) == (args.from_encoder is None):
        raise ValueError("Give one of `encoder` (vit, resnet, timm/NAME, ...) and `from_encoder`.")
    if args.from_encoder is not None:
        return family.model_class.from_encoder(args.from_encoder, **chosen)
    options = mapping(args.encoder_args, "encoder_args")
    if args.encoder.startswith("timm/"):
        options.setdefault("in_chans", args.num_channels)
        name = args.encoder.removeprefix("timm/")
        encoder = AutoConfig.for_model("timm_wrapper", architecture=name, model_args=options)
    else:
        options.setdefault("num_channels", args.num_channels)
        if args.hidden_size is not None:
            options = own_vit_sizes(args) | options
        encoder = AutoConfig.for_model(args.encoder, **options)
        if unknown := sorted(options.keys() - {field.name for field in fields(encoder)}):
            raise ValueError(f"`encoder_args` names {', '.join(unknown)}, which {type(encoder).__name__} has not.")
    return family.model_class(family.config_class(encoder_config=encoder, **chosen))


def build_view_transform(args: DataArguments, image_size: int, statistics: dict[str, Any]) -> ImageTransform:
    """Global and local views of an image."""

    def views(count: int, size: int, scale: list[float]) -> list[ViewAugmentation]:
        def nth(values: list[float], index: int, name: str) -> float:
            if len(values) not in (1, args.num_views):
                raise ValueError(f"`{name}` has {len(values)} values; give one, or one per view ({args.num_views}).")
            return values[min(index, len(values) - 1)]

        return [
            ViewAugmentation(
                size,
                crop_scale=tuple(scale),
                color_jitter=tuple(args.color_jitter),
                color_jitter_probability=args.color_jitter_probability,
                grayscale_probability=args.grayscale_probability,
                blur_probability=nth(args.blur_probability, index, "blur_probability"),
                blur_kernel_size=args.blur_kernel_size,
                solarize_probability=nth(args.solarize_probability, index, "solarize_probability"),
                flip_probability=0.5 * args.horizontal_flip,
                bicubic=args.bicubic,
            )
            for index in range(count)
        ]

    return MultiViewTransform(
        views(args.num_views, image_size, args.crop_scale),
        views(args.num_local_views, args.local_image_size, args.local_crop_scale),
        **statistics,
    )


def build_view_collator(model: PreTrainedModel, args: MaskArguments, seed: int) -> MultiViewCollator:
    """Views are made by the transform; nothing is left to draw."""
    return MultiViewCollator()


# ---- MAE, the baseline: noise ----


def build_mae_model(args: ModelArguments) -> ViTMAEForPreTraining:
    """In-tree ViT-MAE of the recipe's own sizes; `predictor_*` are the decoder's."""
    if args.size is not None or args.from_encoder is not None:
        raise ValueError("The MAE baseline is trained from scratch: give `hidden_size` with its layers and heads.")
    chosen = mapping(args.method, "method")
    if unknown := sorted(chosen.keys() - {field.name for field in fields(ViTMAEConfig)}):
        raise ValueError(f"`method` names {', '.join(unknown)}, which ViTMAEConfig has not.")
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if (value := getattr(args, f"predictor_{name}")) is not None:
            chosen[f"decoder_{name}"] = value
    if args.predictor_hidden_size is not None:
        chosen.setdefault("decoder_intermediate_size", 4 * args.predictor_hidden_size)
    return ViTMAEForPreTraining(ViTMAEConfig(**own_vit_sizes(args), layer_norm_eps=1e-6, **chosen))


def build_noise_collator(model: ViTMAEForPreTraining, args: MaskArguments, seed: int) -> NoiseCollator:
    """The collator that chooses visible patches."""
    return NoiseCollator(model.vit.embeddings.patch_embeddings.num_patches, seed)


def masked(name: str) -> Family:
    """A family trained with multi-block masks."""
    builders = (build_masked_model, build_crop_transform, build_mask_collator, draw_mask_pictures)
    return Family(name, *builders, MASK_CAPTIONS)


def joint_embedding(name: str) -> Family:
    """A family trained with views."""
    builders = (build_joint_embedding_model, build_view_transform, build_view_collator, draw_joint_embedding_pictures)
    return Family(name, *builders, JOINT_EMBEDDING_CAPTIONS)


FAMILIES = {
    "ijepa": masked("ijepa"),
    "cjepa": masked("cjepa"),
    "data2vec_vision": Family(
        "data2vec_vision",
        build_data2vec_model,
        build_data2vec_transform,
        build_blockwise_collator,
        draw_data2vec_pictures,
        DATA2VEC_CAPTIONS,
    ),
    "mae": Family(
        "vit_mae", build_mae_model, build_crop_transform, build_noise_collator, draw_mae_pictures, MAE_CAPTIONS
    ),
    "lejepa": joint_embedding("lejepa"),
    "rectified_lpjepa": joint_embedding("rectified_lpjepa"),
    "vicreg": joint_embedding("vicreg"),
    "simsiam": joint_embedding("simsiam"),
}
