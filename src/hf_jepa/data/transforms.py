from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image

from .bands import BandImage, as_channels, channels_first

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# One tensor, or several by name.
ImageTransform = Callable[[Image.Image | BandImage], torch.Tensor | dict[str, torch.Tensor]]


def _size_pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be a positive int or (height, width), got {image_size!r}.")
    return height, width


def _channel_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    if len(mean) != len(std) or not len(mean):
        raise ValueError(f"mean and std must have a value for each channel, got {len(mean)} and {len(std)}.")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, got {tuple(std)}.")
    return tuple(torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))


def _to_normalized_tensor(image: Image.Image, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    pixels = torch.from_numpy(channels_first(as_channels(image, len(mean))))
    # Operation by operation as torchvision's ToTensor and Normalize, so that values agree to the last bit.
    pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(255).sub_(mean).div_(std)


def random_resized_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """
    Draws a crop as torchvision's `RandomResizedCrop` does, from torch's global generator.

    Args:
        height (`int`): Image height in pixels.
        width (`int`): Image width in pixels.
        scale (`tuple[float, float]`): Range of the crop's area as a share of the image's.
        ratio (`tuple[float, float]`): Range of width / height, drawn log-uniformly.

    Returns:
        `tuple[int, int, int, int]`: `(left, top, right, bottom)` in pixels, as `PIL.Image.crop` takes it.
    """
    from torchvision.transforms.v2 import RandomResizedCrop

    # It asks an image for its size alone; this one has no pixels.
    image = torch.empty(1, height, width, device="meta")
    top, left, crop_height, crop_width = RandomResizedCrop.get_params(image, list(scale), list(ratio))
    return left, top, left + crop_width, top + crop_height


# The transforms are partials of module-level functions, not closures: spawned data workers must pickle them.
def _random_crop(
    image: Image.Image,
    height: int,
    width: int,
    scale: tuple[float, float],
    mean: torch.Tensor,
    std: torch.Tensor,
    hflip: bool,
) -> torch.Tensor:
    box = random_resized_crop_box(image.height, image.width, scale, (3 / 4, 4 / 3))
    # Crop, then resize: PIL's resize(box=...) would let pixels outside the crop bleed in at its border.
    image = image.crop(box).resize((width, height), Image.Resampling.BILINEAR)
    if hflip and torch.rand(1).item() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _to_normalized_tensor(image, mean, std)


def _centre_crop(
    image: Image.Image, height: int, width: int, crop_pct: float, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    if image.size != (width, height) or crop_pct < 1:
        # The part of the source that survives "resize, then centre crop", sampled in one go: nothing larger than the
        # output is ever allocated, whatever the aspect ratio.
        shrink = crop_pct * min(image.height / height, image.width / width)
        box_width, box_height = width * shrink, height * shrink
        left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
        box = (left, top, min(left + box_width, image.width), min(top + box_height, image.height))
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return _to_normalized_tensor(image, mean, std)


def train_transform(
    image_size: int | Sequence[int],
    crop_scale: tuple[float, float] = (0.3, 1.0),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    hflip: bool = False,
) -> ImageTransform:
    """
    I-JEPA's pretraining augmentation: random resized crop (aspect ratio 3/4 to 4/3, bilinear with antialiasing), then
    normalisation. The original uses no flip, colour jitter or blur.

    Args:
        image_size (`int` or `(int, int)`): Output side, or `(height, width)`, in pixels.
        crop_scale (`tuple[float, float]`): Range of the crop's area as a share of the image's.
        mean (`Sequence[float]`): Channel means in [0, 1]. One value makes grey images, three RGB;
            other numbers take images of as many channels.
        std (`Sequence[float]`): Channel standard deviations, as many as means.
        hflip (`bool`): Mirror half of the images.

    Returns:
        `Callable`: PIL image -> float32 tensor `(channels, height, width)`. Random numbers come from torch's global
        CPU generator, which [`SeededImageDataset`] seeds for each draw.

    Raises:
        ValueError: If sizes, scales or statistics are out of range.
    """
    height, width = _size_pair(image_size)
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"crop_scale must satisfy 0 < low <= high <= 1, got {tuple(crop_scale)}.")
    scale = (float(crop_scale[0]), float(crop_scale[1]))
    mean_tensor, std_tensor = _channel_statistics(mean, std)
    return partial(
        _random_crop, height=height, width=width, scale=scale, mean=mean_tensor, std=std_tensor, hflip=hflip
    )


def eval_transform(
    image_size: int | Sequence[int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_pct: float = 1.0,
) -> ImageTransform:
    """
    Deterministic transform: the short side is resized (bilinear, antialiased) to fill `image_size / crop_pct`, the
    centre cut out, and normalised.

    Args:
        image_size (`int` or `(int, int)`): Output side, or `(height, width)`, in pixels.
        mean (`Sequence[float]`): Channel means in [0, 1]. One value makes grey images, three RGB;
            other numbers take images of as many channels.
        std (`Sequence[float]`): Channel standard deviations, as many as means.
        crop_pct (`float`): Share of the resized image that is kept; 224/256 = 0.875 is common for photos.

    Returns:
        `Callable`: PIL image -> float32 tensor `(channels, height, width)`.

    Raises:
        ValueError: If sizes or statistics are out of range.
    """
    height, width = _size_pair(image_size)
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be in (0, 1], got {crop_pct}.")
    mean_tensor, std_tensor = _channel_statistics(mean, std)
    return partial(
        _centre_crop, height=height, width=width, crop_pct=float(crop_pct), mean=mean_tensor, std=std_tensor
    )


def draws_from_torch_only(transform: ImageTransform) -> bool:
    """Whether a transform is one of this package's, whose random numbers all come from torch."""
    if getattr(transform, "draws_from_torch_only", False):
        return True
    return isinstance(transform, partial) and transform.func in (_random_crop, _centre_crop)
