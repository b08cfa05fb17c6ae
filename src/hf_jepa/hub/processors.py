"""The image and video processors that releases hold, with everything that they do written out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)

from ..encoders import is_video_encoder
from ..parts import load_auto
from .sizes import channels_of, released_size

_VIDEO_FILE, _IMAGE_FILE = PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")

# Where in-tree processors find the channels of an array by themselves.
_KNOWN_CHANNELS = (1, 3, 4)


def _statistics(
    channels: int, image_mean: Sequence[float] | None, image_std: Sequence[float] | None
) -> dict[str, list[float]]:
    """Mean and deviation per channel: ImageNet's for three channels, 0.5 for another number, unless given."""
    means, deviations = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if channels != 3:
        means, deviations = IMAGENET_STANDARD_MEAN[:1] * channels, IMAGENET_STANDARD_STD[:1] * channels
    chosen = {"image_mean": list(image_mean or means), "image_std": list(image_std or deviations)}
    for name, values in chosen.items():
        if len(values) != channels:
            raise ValueError(f"`{name}` has {len(values)} values, but the model takes {channels} channels.")
    return chosen


def default_image_processor(
    config: Any, image_mean: Sequence[float] | None = None, image_std: Sequence[float] | None = None
) -> Any:
    """
    The processor of a vision encoder, with its statistics written out: I-JEPA's models were trained with ImageNet's
    mean and deviation, and the in-tree default for their type is 0.5.

    A square size keeps the aspect: the shortest edge is resized, the centre cut out. Another size is what the images
    that it was chosen for have: they are resized to it, and others are stretched (in-tree processors cannot fill a
    rectangle; they would leave black bars).

    Args:
        config: The encoder's config; `image_size` is an int or (height, width), `num_channels` 3 where it is not said.
        image_mean: Per channel, of pixels scaled to [0, 1]; by default ImageNet's, and 0.5 for another number of
            channels than three.
        image_std: Per channel; likewise.

    Returns:
        A `ViTImageProcessor`.

    Raises:
        ValueError: for another number of statistics than channels.
    """
    return image_processor(config.image_size, getattr(config, "num_channels", None) or 3, image_mean, image_std)


def image_processor(
    size: int | Sequence[int],
    channels: int = 3,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> Any:
    """As [`default_image_processor`], for a size `int` or (height, width) in pixels and a number of channels."""
    from transformers import ViTImageProcessor

    height, width = (size, size) if isinstance(size, int) else size
    box = {"height": height, "width": width}
    options = {"size": {"shortest_edge": height}, "do_center_crop": True, "crop_size": box}
    if height != width:
        options = {"size": box}
    if channels not in _KNOWN_CHANNELS:
        options["input_data_format"] = "channels_first"
    # Grey, palette and transparent pictures become what a model of colours takes; arrays of bands stay what they are.
    return ViTImageProcessor(**options, do_convert_rgb=channels == 3, **_statistics(channels, image_mean, image_std))


def default_video_processor(
    crop_size: int | Sequence[int],
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    channels: int = 3,
) -> Any:
    """
    The evaluation transform of the V-JEPA family, written out: the short side to `int(crop_size * 256 / 224)`, a
    centre crop, ImageNet statistics (released code). Which frames of a video to take is the caller's. Frames that are
    not square are resized to their size, see [`default_image_processor`].

    Args:
        crop_size: Height and width in pixels, one number or two.
        image_mean: Per channel, of pixels scaled to [0, 1]; by default ImageNet's, and 0.5 for another number of
            channels than three.
        image_std: Per channel; likewise.
        channels: Of a frame.

    Returns:
        A `VJEPA2VideoProcessor`; for frames that are not square, in-tree's plainest, a `LlavaOnevisionVideoProcessor`.

    Raises:
        ValueError: for another number of statistics than channels.
    """
    from transformers import LlavaOnevisionVideoProcessor, VJEPA2VideoProcessor

    height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    options = {"do_convert_rgb": channels == 3, **_statistics(channels, image_mean, image_std)}
    if channels not in _KNOWN_CHANNELS:
        # In-tree looks for the size of a clip among these, unless it is told about the clip; one clip at a time, then.
        options |= {"input_data_format": "channels_first", "video_metadata": {"total_num_frames": 1}}
    if height == width:
        return VJEPA2VideoProcessor(crop_size=height, **options)
    return LlavaOnevisionVideoProcessor(size={"height": height, "width": width}, **options)


def default_processor(model: PreTrainedModel, **statistics: Sequence[float] | None) -> Any:
    """
    The processor of a composite or encoder whose checkpoint has none, for the size that it was trained at.

    Args:
        model: An image model with an `image_size`, or a video model with a `crop_size`, of its own or its encoder's.
        statistics: `image_mean` and `image_std`; by default the config's own, where it has them.
    """
    for name in ("image_mean", "image_std"):
        if statistics.get(name) is None:
            statistics[name] = getattr(model.config, name, None)
    size, channels = released_size(model), channels_of(model)
    if is_video_encoder(model):
        return default_video_processor(size, channels=channels, **statistics)
    return image_processor(size, channels, **statistics)


def fit_processor(processor: Any | None, model: PreTrainedModel) -> Any:
    """
    The processor that makes what a model was trained on: the given one if it does, else one with its statistics and
    the size trained at.

    Args:
        processor (*optional*): an image or video processor.
        model: as for [`default_processor`].

    Raises:
        ValueError: for a processor of another number of channels than the model's.
    """
    if processor is None:
        return default_processor(model)
    mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
    channels = channels_of(model)
    if isinstance(mean, list | tuple) and len(mean) not in (1, channels):
        raise ValueError(
            f"The processor has statistics of {len(mean)} channels, the model takes {channels}: give "
            f"`processing_class` {channels} means and deviations."
        )
    if made_size(processor, model) == released_size(model):
        return processor
    return default_processor(model, image_mean=mean, image_std=std)


def made_size(processor: Any, model: PreTrainedModel) -> tuple[int, int]:
    """Height and width of what a processor makes of a picture, or frames, larger than it needs."""
    height, width = (2 * side for side in released_size(model))
    blank = np.zeros((height, width, channels_of(model)), dtype=np.uint8)
    options = {"return_tensors": "pt", "input_data_format": "channels_last"}
    if "pixel_values_videos" in processor.model_input_names:
        batch = processor(blank[None], video_metadata=[{"total_num_frames": 1}], **options)
    else:
        batch = processor(images=blank, **options)
    return tuple(next(iter(batch.values())).shape[-2:])


def saved_processor(model: PreTrainedModel, folders: Sequence[Path]) -> Any | None:
    """The processor in the first of the folders that has one for the model, if any has."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    is_video = is_video_encoder(model)
    name = _VIDEO_FILE if is_video else _IMAGE_FILE
    folder = next((folder for folder in folders if (folder / name).is_file()), None)
    if folder is None:
        return None
    return load_auto(AutoVideoProcessor if is_video else AutoImageProcessor, folder)
