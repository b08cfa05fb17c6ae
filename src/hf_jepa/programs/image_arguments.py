"""What an image recipe may say."""

from dataclasses import dataclass, field
from typing import Literal

from ..models.ijepa.configuration_ijepa import IJEPA_SIZES


@dataclass
class ModelArguments:
    family: str = field(default="ijepa", metadata={"help": "The method; `hf-jepa list` names them."})
    size: str | None = field(default=None, metadata={"help": f"Published size: {', '.join(IJEPA_SIZES)}."})
    from_encoder: str | None = field(default=None, metadata={"help": "Continue from a released encoder (id or path)."})
    teacher: str | None = field(
        default=None, metadata={"help": "I-JEPA: predict what this frozen encoder (id or path) makes; SALT."}
    )
    licence: str | None = field(
        default=None, metadata={"help": "Of the weights; default: the source's, or apache-2.0."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the square input, in pixels; default: the encoder's, or 224."}
    )
    patch_size: int | None = field(default=None, metadata={"help": "Side of a patch, in pixels."})
    num_channels: int | None = field(default=None, metadata={"help": "Default: the encoder's, or 3; 1: grey."})
    hidden_size: int | None = field(default=None, metadata={"help": "Encoder width; sizes of your own."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Encoder depth."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Encoder heads."})
    encoder: str | None = field(
        default=None, metadata={"help": "Joint embedding: vit, resnet, convnext, ... or timm/NAME of any timm model."}
    )
    encoder_args: dict | str | None = field(
        default=None, metadata={"help": "YAML mapping: fields of the encoder's config; for timm, of create_model."}
    )
    method: dict | str | None = field(
        default=None, metadata={"help": "YAML mapping: any other fields of the family's pretraining config."}
    )
    predictor_hidden_size: int | None = field(default=None, metadata={"help": "Predictor width."})
    predictor_num_hidden_layers: int | None = field(default=None, metadata={"help": "Predictor depth."})
    predictor_num_attention_heads: int | None = field(default=None, metadata={"help": "Predictor heads."})
    loss_type: str | None = field(default=None, metadata={"help": "smooth_l1, l2 or l1."})
    initialization: str | None = field(default=None, metadata={"help": "original or fan_in."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, ...; in bf16 on CPUs cpu_bf16 is fastest."}
    )


@dataclass
class DataArguments:
    dataset: str | None = field(default=None, metadata={"help": "Hub name, folder of images, saved dataset, parquet."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split to pretrain on."})
    probe_split: str | None = field(default=None, metadata={"help": "Labelled split that the probes are scored on."})
    probe_train_split: str | None = field(
        default=None, metadata={"help": "Labelled split that they are fitted on; default: train_split."}
    )
    probe_dataset: str | None = field(
        default=None, metadata={"help": "Labelled images for the probes; default: the dataset itself."}
    )
    probe_examples: int = field(default=5000, metadata={"help": "Most images that probes are fitted and scored on."})
    probe_crop_pct: float = field(default=1.0, metadata={"help": "Share of the resized image that probes see."})
    baselines: bool = field(
        default=False, metadata={"help": "Probe raw pixels and the untrained encoder too, for the card."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    label_column: str = field(default="label", metadata={"help": "Column of labels; needed for probes only."})
    streaming: bool = field(default=False, metadata={"help": "Read the dataset as it goes."})
    crop_scale: list[float] = field(default_factory=lambda: [0.3, 1.0], metadata={"help": "Area kept by the crop."})
    horizontal_flip: bool = field(default=False, metadata={"help": "Mirror half of the images."})
    image_mean: list[float] | None = field(default=None, metadata={"help": "Per channel; default ImageNet's."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Per channel; default ImageNet's."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Share of unreadable images that stops the run."})
    # Joint embedding only (colour jitter: data2vec too).
    num_views: int = field(default=2, metadata={"help": "Global views of an image."})
    num_local_views: int = field(default=0, metadata={"help": "Small views of an image."})
    local_image_size: int = field(default=96, metadata={"help": "Side of a local view, in pixels."})
    color_jitter: list[float] = field(
        default_factory=lambda: [0.4, 0.4, 0.2, 0.1],
        metadata={"help": "Strength of brightness, contrast, saturation, hue."},
    )
    color_jitter_probability: float = field(default=0.8, metadata={"help": "Share of views that are jittered."})
    grayscale_probability: float = field(default=0.2, metadata={"help": "Share of views without colour."})
    blur_probability: list[float] = field(
        default_factory=lambda: [0.5], metadata={"help": "Share of blurred views: one value, or one per global view."}
    )
    bicubic: bool = field(default=False, metadata={"help": "Resample views with the bicubic filter."})
    blur_kernel_size: int | None = field(default=None, metadata={"help": "In pixels; default: a tenth of the view."})
    solarize_probability: list[float] = field(
        default_factory=lambda: [0.0],
        metadata={"help": "Share of solarized views: one value, or one per global view."},
    )


@dataclass
class MaskArguments:
    mask_mode: Literal["reference", "balanced"] = field(default="balanced", metadata={"help": "See the generator."})
    context_scale: list[float] = field(default_factory=lambda: [0.85, 1.0], metadata={"help": "Context block area."})
    target_scale: list[float] = field(default_factory=lambda: [0.15, 0.2], metadata={"help": "Target block area."})
    target_aspect_ratio: list[float] = field(default_factory=lambda: [0.75, 1.5], metadata={"help": "Its shape."})
    num_target_masks: int = field(default=4, metadata={"help": "Target blocks per image."})
    min_keep: int = field(default=10, metadata={"help": "A mask keeps more tokens than this."})
    # data2vec only.
    num_masked: int | None = field(default=None, metadata={"help": "Masked patches; default: 120 of 196."})
    min_block: int = field(default=16, metadata={"help": "Patches that a block-wise mask's block has at least."})
