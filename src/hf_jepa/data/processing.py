"""The processor of a checkpoint as a transform: what a release's users see is what probes and evaluations see."""

from functools import partial
from typing import Any

import torch
from PIL import Image

from .bands import as_channels, channels_first
from .transforms import ImageTransform


def processor_transform(processor: Any, num_channels: int | None = None) -> ImageTransform:
    """
    An image processor of transformers as the transform of a seeded dataset.

    Args:
        processor (`BaseImageProcessor`): of a checkpoint, or the one that a run will release.
        num_channels (`int`, *optional*): of the images; by default as many as the processor has means.

    Returns:
        `Callable`: PIL image -> float32 tensor `(C, H, W)`; it can be sent to data workers.
    """
    if num_channels is None:
        num_channels = len(getattr(processor, "image_mean", None) or (0, 0, 0))
    return partial(_process, processor=processor, num_channels=num_channels)


def _process(image: Image.Image, processor: Any, num_channels: int) -> torch.Tensor:
    pixels = channels_first(as_channels(image, num_channels))
    # Processors guess the layout from the shape, and guess wrong for grey and for tiny images.
    batch = processor(images=pixels, input_data_format="channels_first", return_tensors="pt")
    return batch["pixel_values"][0].float()
