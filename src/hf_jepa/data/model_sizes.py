"""What a model takes: the size, the channels and the statistics of its images or frames."""

from collections.abc import Sequence
from typing import Any

from .transforms import IMAGENET_MEAN, IMAGENET_STD

Pair = Sequence[float]
Statistics = Sequence[float] | None


def input_size(model: Any) -> int | tuple[int, int]:
    """Side of the images or frames that a model is trained at, in pixels; `(height, width)` if not square."""
    for config in (model.config, getattr(model.config, "encoder_config", None)):
        for name in ("trained_size", "image_size", "crop_size"):
            if (size := getattr(config, name, None)) is not None:
                return size if isinstance(size, int) or size[0] != size[1] else size[0]
    raise ValueError(f"{type(model).__name__} does not say the size of its images; pass `data_collator` and samples.")


def num_channels(model: Any) -> int:
    """Channels of the images that a model was built for; 3 if it does not say."""
    config = getattr(model.config, "encoder_config", None) or model.config
    found = (getattr(config, name, None) for name in ("num_channels", "in_chans"))
    return next((count for count in found if count), 3)


def statistics(model: Any, image_mean: Statistics, image_std: Statistics) -> dict[str, Sequence[float]]:
    """Mean and deviation per channel; of RGB images ImageNet's where none are given, of others 0.5."""
    count = num_channels(model)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if count == 3 else ((0.5,) * count, (0.5,) * count)
    return {"mean": mean if image_mean is None else image_mean, "std": std if image_std is None else image_std}
