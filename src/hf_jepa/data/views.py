"""Several random views of one image, as the joint-embedding methods are trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image, ImageOps

from .bands import BandImage, as_channels
from .transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    _channel_statistics,
    _size_pair,
    _to_normalized_tensor,
    random_resized_crop_box,
)


@dataclass(frozen=True)
class ViewAugmentation:
    r"""
    How one view is made: random resized crop, colour jitter, greyscale, Gaussian blur, solarization, horizontal flip,
    in this order. The defaults are SimSiam's (and close to LeJEPA's README); MINIMAL's are
    `ViewAugmentation(128, (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), blur_kernel_size=7, solarize_probability=0.2)`.

    Args:
        image_size (`int` or `(int, int)`): output side, or `(height, width)`, in pixels.
        crop_scale (`tuple[float, float]`): range of the crop's area as a share of the image's.
        color_jitter (`tuple[float, float, float, float]`): strengths of brightness, contrast, saturation and hue.
            Only colour images have saturation and hue to change: for others the latter two are skipped.
        color_jitter_probability (`float`): share of views that are jittered.
        grayscale_probability (`float`): share of views that lose their colour; nothing to lose in grey images.
        blur_probability (`float`): share of views that are blurred.
        blur_sigma (`tuple[float, float]`): range of the blur's standard deviation, in pixels of the view.
        blur_kernel_size (`int`, *optional*): odd; torchvision's blur with this kernel. Without it, the kernel is the
            odd number next to a tenth of the view's shorter side (SimCLR's rule), and at least 3.
        solarize_probability (`float`): share of views whose pixels from 128 on are inverted.
        flip_probability (`float`): share of views that are mirrored.
        bicubic (`bool`): resample with the bicubic filter (LeJEPA's README, VICReg) instead of the bilinear.

    Raises:
        ValueError: for sizes, scales or probabilities out of range.
    """

    image_size: int | tuple[int, int]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    color_jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel_size: int | None = None
    solarize_probability: float = 0.0
    flip_probability: float = 0.5
    bicubic: bool = False

    def __post_init__(self) -> None:
        _size_pair(self.image_size)
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must satisfy 0 < low <= high <= 1, got {tuple(self.crop_scale)}.")
        if len(self.color_jitter) != 4 or min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise ValueError(
                "color_jitter must hold four strengths (brightness, contrast, saturation, hue), none negative and the "
                f"hue's at most 0.5, got {tuple(self.color_jitter)}."
            )
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must satisfy 0 < low <= high, got {tuple(self.blur_sigma)}.")
        if self.blur_kernel_size is not None and (self.blur_kernel_size < 1 or self.blur_kernel_size % 2 == 0):
            raise ValueError(f"blur_kernel_size must be odd and positive, got {self.blur_kernel_size}.")
        for name in ("color_jitter", "grayscale", "blur", "solarize", "flip"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise ValueError(f"{name}_probability must lie in [0, 1], got {value}.")

    def __call__(self, image: Image.Image) -> Image.Image:
        """One view of a PIL image (mode `"L"` or `"RGB"`), drawn from torch's global generator."""
        height, width = _size_pair(self.image_size)
        box = random_resized_crop_box(image.height, image.width, self.crop_scale, (3 / 4, 4 / 3))
        filter_ = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
        image = image.crop(box).resize((width, height), filter_)
        if _happens(self.color_jitter_probability):
            image = _jitter(image, self.color_jitter)
        if _happens(self.grayscale_probability) and image.mode == "RGB":
            image = image.convert("L").convert("RGB")
        if _happens(self.blur_probability):
            image = self._blur(image)
        if _happens(self.solarize_probability):
            image = _each(image, lambda band: ImageOps.solarize(band, 128))
        if _happens(self.flip_probability):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _blur(self, image: Image.Image) -> Image.Image:
        from torchvision.transforms.v2 import functional as tv

        sigma = torch.empty(1).uniform_(*self.blur_sigma).item()
        kernel = self.blur_kernel_size or max(3, min(image.size) // 10 | 1)
        return _each(image, lambda band: tv.gaussian_blur(band, [kernel, kernel], [sigma, sigma]))


def _happens(probability: float) -> bool:
    # Drawn even when it cannot matter, so that views with other probabilities see the same crops.
    return torch.rand(1).item() < probability


def _each(image: Image.Image | BandImage, operation: Callable[[Image.Image], Image.Image]) -> Image.Image | BandImage:
    return image.each(operation) if isinstance(image, BandImage) else operation(image)


def _apply(image: Image.Image, operation: Callable[[Image.Image, float], Image.Image], factor: float) -> Image.Image:
    return operation(image, factor)


def _jitter(image: Image.Image, strengths: Sequence[float]) -> Image.Image:
    """torchvision's `ColorJitter`, but a strength of 0 draws its factor too: crops stay as they are."""
    from torchvision.transforms.v2 import ColorJitter
    from torchvision.transforms.v2 import functional as tv

    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths[:3]]
    order, *factors = ColorJitter.get_params(*ranges, (-strengths[3], strengths[3]))
    for index in order.tolist():
        if strengths[index] and (index < 2 or image.mode == "RGB"):
            image = _each(image, partial(_apply, operation=operations[index], factor=factors[index]))
    return image


class MultiViewTransform:
    r"""
    Makes the views of an image; goes into [`SeededImageDataset`], which seeds every draw.

    Args:
        global_views (`Sequence` of [`ViewAugmentation`]): one per global view, all of one size.
        local_views (`Sequence` of [`ViewAugmentation`]): one per local view, all of one size; may be empty.
        mean (`Sequence[float]`): channel means in [0, 1]. One value makes grey images, three RGB;
            other numbers take images of as many channels.
        std (`Sequence[float]`): channel standard deviations, as many as means.

    Returns, when called with a PIL image:
        `dict` with `pixel_values` `(views, C, H, W)` float32 and, if there are local views, `local_pixel_values`
        `(local views, C, h, w)` float32.

    Raises:
        ValueError: for no global view, or views that are to be stacked and differ in size.

    Example:

    ```python
    >>> from hf_jepa.data import MultiViewTransform, ViewAugmentation
    >>> transform = MultiViewTransform(
    ...     2 * [ViewAugmentation(224, crop_scale=(0.3, 1.0))], 6 * [ViewAugmentation(98, crop_scale=(0.05, 0.3))]
    ... )
    ```
    """

    draws_from_torch_only = True

    def __init__(
        self,
        global_views: Sequence[ViewAugmentation],
        local_views: Sequence[ViewAugmentation] = (),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if not len(global_views):
            raise ValueError("MultiViewTransform needs at least one global view.")
        for name, views in (("global_views", global_views), ("local_views", local_views)):
            sizes = {_size_pair(view.image_size) for view in views}
            if len(sizes) > 1:
                raise ValueError(f"All of `{name}` must have one size, got {sorted(sizes)}; they become one tensor.")
        self.global_views, self.local_views = tuple(global_views), tuple(local_views)
        self.mean, self.std = _channel_statistics(mean, std)

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        image = as_channels(image, len(self.mean))
        views = {"pixel_values": self._stack(image, self.global_views)}
        if self.local_views:
            views["local_pixel_values"] = self._stack(image, self.local_views)
        return views

    def _stack(self, image: Image.Image, views: tuple[Callable, ...]) -> torch.Tensor:
        return torch.stack([_to_normalized_tensor(view(image), self.mean, self.std) for view in views])
