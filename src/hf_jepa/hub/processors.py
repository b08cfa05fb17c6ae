"""The image and video processors that releases hold, with everything that they do written out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..encoders import is_video_encoder

_VIDEO_FILE, _IMAGE_FILE = PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")


def default_image_processor(
    config: Any, image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN, image_std: Sequence[float] = IMAGENET_DEFAULT_STD
) -> Any:
    """
    The processor of an in-tree vision encoder, with its statistics written out: I-JEPA's models were trained with
    ImageNet's mean and deviation, and the in-tree default for their type is 0.5.

    Args:
        config: The encoder's config; `image_size` is an int or (height, width).
        image_mean: Per channel, of pixels scaled to [0, 1].
        image_std: Per channel.

    Returns:
        A `ViTImageProcessor`.
    """
    from transformers import ViTImageProcessor

    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=list(image_mean), image_std=list(image_std)
    )


def default_video_processor(
    crop_size: int,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Any:
    """
    The evaluation transform of the V-JEPA family, written out: the short side to `int(crop_size * 256 / 224)`, a
    centre crop, ImageNet statistics (released code). Which frames of a video to take is the caller's.

    Args:
        crop_size: Height and width in pixels.
        image_mean: Per channel, of pixels scaled to [0, 1].
        image_std: Per channel.

    Returns:
        A `VJEPA2VideoProcessor`.
    """
    from transformers import VJEPA2VideoProcessor

    return VJEPA2VideoProcessor(crop_size=crop_size, image_mean=list(image_mean), image_std=list(image_std))


def default_processor(model: PreTrainedModel, **statistics: Sequence[float]) -> Any:
    """
    The processor of a composite or encoder whose checkpoint has none.

    Args:
        model: An image model with an `image_size`, or a video model with a `crop_size`, of its own or its encoder's.
        statistics: `image_mean` and `image_std`.
    """
    encoder_config = getattr(model.config, "encoder_config", None) or model.config
    if is_video_encoder(model):
        return default_video_processor(encoder_config.crop_size, **statistics)
    # Joint-embedding configs know the size of their images themselves: a convolutional encoder's does not say.
    sized = model.config if hasattr(model.config, "image_size") else encoder_config
    return default_image_processor(sized, **statistics)


def saved_processor(model: PreTrainedModel, folders: Sequence[Path]) -> Any | None:
    """The processor in the first of the folders that has one for the model, if any has."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    is_video = is_video_encoder(model)
    name = _VIDEO_FILE if is_video else _IMAGE_FILE
    folder = next((folder for folder in folders if (folder / name).is_file()), None)
    if folder is None:
        return None
    return (AutoVideoProcessor if is_video else AutoImageProcessor).from_pretrained(folder)
