"""Images of any number of channels: satellites, microscopes. PIL holds four at most."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


class BandImage:
    """
    An image as one grey PIL image per channel, with what transforms ask of a PIL image.

    Args:
        bands (`list[PIL.Image.Image]`): of mode `"L"` and one size.
    """

    mode = "bands"

    def __init__(self, bands: list[Image.Image]) -> None:
        self.bands = bands
        self.size = self.width, self.height = bands[0].size

    def each(self, operation: Callable[[Image.Image], Image.Image]) -> "BandImage":
        """The image whose channels are the operation's results."""
        return BandImage([operation(band) for band in self.bands])

    def crop(self, box: tuple[int, int, int, int]) -> "BandImage":
        """As PIL's."""
        return self.each(lambda band: band.crop(box))

    def resize(self, size: tuple[int, int], *args: Any, **kwargs: Any) -> "BandImage":
        """As PIL's."""
        return self.each(lambda band: band.resize(size, *args, **kwargs))

    def transpose(self, method: Image.Transpose) -> "BandImage":
        """As PIL's."""
        return self.each(lambda band: band.transpose(method))

    def convert(self, mode: str) -> Image.Image:
        """Raises ValueError: there is no colour in the channels of this image."""
        raise ValueError(
            f"the image has {len(self.bands)} channels and cannot become {mode}: give the transform, or the "
            "processor, as many means and standard deviations"
        )


def from_array(pixels: np.ndarray) -> Image.Image | BandImage:
    """
    An image from decoded pixels.

    Args:
        pixels (`np.ndarray`, uint8 or uint16, of shape `(H, W)`, `(H, W, C)` or `(C, H, W)`): the channels are an axis
            of 3 or 4 at the end, or the shorter one of the first and the last axis. 16-bit values are scaled by 1/257.

    Returns:
        `PIL.Image.Image` of mode `"L"`, `"RGB"` or `"RGBA"` for 1, 3 and 4 channels, otherwise [`BandImage`].

    Raises:
        ValueError: for another type, or a shape that does not tell which axis the channels are.
    """
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.int64) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ValueError(f"an array of {pixels.dtype} and shape {pixels.shape} is no image: uint8 or uint16 (H, W, C)")
    if pixels.ndim == 2:
        return Image.fromarray(pixels)
    if pixels.shape[2] not in (3, 4) and pixels.shape[0] != pixels.shape[2]:
        pixels = pixels if pixels.shape[2] < pixels.shape[0] else pixels.transpose(1, 2, 0)
    elif pixels.shape[2] not in (3, 4):
        raise ValueError(f"an array of shape {pixels.shape} does not tell which axis its channels are")
    channels = pixels.shape[2]
    if channels in (3, 4):
        return Image.fromarray(np.ascontiguousarray(pixels))
    bands = [Image.fromarray(np.ascontiguousarray(pixels[:, :, channel])) for channel in range(channels)]
    return bands[0] if channels == 1 else BandImage(bands)


def as_channels(image: Image.Image | BandImage, count: int) -> Image.Image | BandImage:
    """
    The image with as many channels as a transform has means: grey and colour turn into each other, others do not.

    Raises:
        ValueError: if the image has another number of channels, and either is neither 1 nor 3.
    """
    if isinstance(image, BandImage):
        return (
            image if len(image.bands) == count else image.convert({1: "L", 3: "RGB"}.get(count, f"{count} channels"))
        )
    if count not in (1, 3):
        raise ValueError(
            f"the image has {len(image.getbands())} channel(s), and {count} means and deviations are given"
        )
    mode = "L" if count == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def channels_first(image: Image.Image | BandImage) -> np.ndarray:
    """Pixels as uint8 `(C, H, W)`, a copy: nothing may alias memory that PIL owns."""
    if isinstance(image, BandImage):
        return np.stack([np.asarray(band) for band in image.bands])
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
