"""What a recipe for videos may say."""

from dataclasses import dataclass, field
from typing import Literal

from ..models.vjepa.configuration_vjepa import VJEPA_SIZES


@dataclass
class VideoModelArguments:
    family: str = field(default="vjepa2", metadata={"help": "The method: vjepa, vjepa2 or vjepa2_1."})
    generation: Literal["1", "2", "2.1"] | None = field(
        default=None, metadata={"help": "The same by number: V-JEPA, V-JEPA 2 or V-JEPA 2.1."}
    )
    size: str | None = field(default=None, metadata={"help": f"Published size: {', '.join(VJEPA_SIZES)}."})
    from_encoder: str | None = field(default=None, metadata={"help": "Continue from a released model (id or path)."})
    teacher: str | None = field(
        default=None, metadata={"help": "Predict what this frozen encoder (id or path) makes; SALT's second stage."}
    )
    licence: str | None = field(
        default=None, metadata={"help": "Of the weights; default: the source's, or apache-2.0."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the square frames, in pixels; default: the encoder's, or 256."}
    )
    encoder_args: dict | str | None = field(
        default=None, metadata={"help": "YAML mapping: fields of VJepaConfig; with `hidden_size`, a size of your own."}
    )
    method: dict | str | None = field(
        default=None, metadata={"help": "YAML mapping: other fields of the pretraining config."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, ...; in bf16 on CPUs cpu_bf16 is fastest."}
    )

    def __post_init__(self) -> None:
        if self.generation is not None:
            self.family = {"1": "vjepa", "2": "vjepa2", "2.1": "vjepa2_1"}[self.generation]
            self.generation = None


@dataclass
class VideoDataArguments:
    dataset: list[str] | None = field(
        default=None,
        metadata={
            "help": "One or several: lists of `path label`, folders, parquet, Hub names. What follows takes one value "
            "for all of them, or one for each."
        },
    )
    dataset_weights: list[float] | None = field(
        default=None, metadata={"help": "Share of the draws that each dataset gets; default: its rows, once an epoch."}
    )
    num_frames: list[int] = field(
        default_factory=lambda: [16], metadata={"help": "Frames of a clip. An image's are copies; 1: a still image."}
    )
    fps: list[int] | None = field(default=None, metadata={"help": "Frames per second of a clip (V-JEPA 2: 4)."})
    frame_step: list[int] | None = field(
        default=None, metadata={"help": "Or every which frame of the video (V-JEPA 1: 4)."}
    )
    video_column: list[str] = field(
        default_factory=lambda: ["video"], metadata={"help": "Column of videos, or of images."}
    )
    mix_within_batches: bool = field(
        default=True,
        metadata={"help": "With weights: False draws every micro-batch from one dataset, as V-JEPA 2.1's ranks do."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to pretrain on."})
    probe_dataset: str | None = field(
        default=None, metadata={"help": "Labelled videos that probes are fitted on and scored on."}
    )
    probe_train_split: str = field(default="train", metadata={"help": "Its split to fit on."})
    probe_split: str = field(default="test", metadata={"help": "Its split to score on."})
    label_column: str = field(default="label", metadata={"help": "Its column of labels."})
    probe_examples: int = field(default=2000, metadata={"help": "Most videos that probes are fitted and scored on."})
    crop_scale: list[float] = field(default_factory=lambda: [0.3, 1.0], metadata={"help": "Area kept by the crop."})
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 1.35], metadata={"help": "Width over height."})
    horizontal_flip: bool = field(default=True, metadata={"help": "Mirror half of the clips."})
    image_mean: list[float] | None = field(default=None, metadata={"help": "Per channel; default ImageNet's."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Per channel; default ImageNet's."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Share of unreadable videos that stops the run."})


@dataclass
class VideoMaskArguments:
    mask_mode: Literal["reference", "balanced"] = field(default="balanced", metadata={"help": "See the generator."})
    num_blocks: list[int] = field(
        default_factory=lambda: [8, 2], metadata={"help": "Cuboids of each recipe (published: short and long range)."}
    )
    spatial_scale: list[float] = field(
        default_factory=lambda: [0.15, 0.7], metadata={"help": "Area of a cuboid of each recipe, share of the frame."}
    )
    temporal_scale: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Length of a cuboid as a share of the clip; one or each."}
    )
    max_temporal_keep: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "Share of the clip, from its start, that the context comes from; one or each."},
    )
    full_complement: bool = field(default=False, metadata={"help": "Predict all that the context leaves."})
    pred_full_complement: bool = field(default=False, metadata={"help": "See all that the target leaves."})
    tube_ratio: float | None = field(
        default=None, metadata={"help": "Instead: random tubes, of which this share is hidden (V-JEPA ablation)."}
    )
