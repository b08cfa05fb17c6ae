import io
import math
from typing import Any

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from .bands import BandImage, from_array

# A 1-pixel image is a tracking pixel or the placeholder of a dead link; there is nothing to predict in it.
MIN_SIDE = 2
# Of all pages or channels together, as PIL's own limit: more is taken for a decompression bomb.
MAX_IMAGE_PIXELS = 178_956_970


def decode_image(value: Any) -> Image.Image | BandImage:
    """
    Decodes one cell of an image column into an 8-bit grey (`"L"`) or colour (`"RGB"`) image, or one of more channels.

    Alpha is composited on white, CMYK, palette and YCbCr become RGB, 16-bit grey is scaled by 1/257, EXIF rotation is
    applied (as `datasets` does).

    Args:
        value (`dict`, `bytes`, `str`, `PIL.Image.Image` or `np.ndarray`): `{"bytes", "path"}` as `datasets` stores an
            undecoded image, encoded bytes, a path, or decoded pixels (uint8 or uint16, `(H, W)`, `(H, W, C)` or
            `(C, H, W)`, also as nested lists, as `datasets` stores arrays). Files may be `.npy` arrays. A TIFF of
            several grey pages of one size has them as channels.

    Returns:
        `PIL.Image.Image` or [`~hf_jepa.data.bands.BandImage`]: A fully loaded image of mode `"L"` or `"RGB"`; of other
            numbers of channels than 1, 3 and 4 (with alpha), one band per channel.

    Raises:
        ValueError: If the image is empty, smaller than 2 pixels on a side, larger than `MAX_IMAGE_PIXELS`, or of a
            kind without a defined 8-bit form.
        OSError: If the file is missing, truncated or not an image (as PIL reports it).
    """
    image = _open_image(value)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"the image is {image.width}x{image.height} pixels, at least {MIN_SIDE} a side are needed")
    _refuse_absurd_size(image.width * image.height * getattr(image, "n_frames", 1) if _has_pages(image) else 0)
    if isinstance(image, BandImage):
        return image
    if _has_pages(image) and image.n_frames > 1:
        pages = [to_8bit(page.copy()) for page in ImageSequence.Iterator(image)]
        if all(page.mode == "L" and page.size == pages[0].size for page in pages):
            return BandImage(pages)
        image.seek(0)
    image.load()
    if image.format not in (None, "PNG", "BMP", "GIF"):
        image = ImageOps.exif_transpose(image)
    return to_8bit(image)


def _open_image(value: Any) -> Image.Image | BandImage:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, (np.ndarray, list)):
        return from_array(_as_array(value))
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    elif isinstance(value, str):
        value = {"bytes": None, "path": value}
    if not isinstance(value, dict):
        raise ValueError(f"the cell holds {type(value).__name__}, not an image")
    if value.get("bytes"):
        return _open_bytes(value["bytes"])
    if value.get("bytes") is None and value.get("path"):
        # `datasets` streams remote files through this reader; local paths work too.
        from datasets.utils.file_utils import xopen

        with xopen(value["path"], "rb") as file:
            data = file.read()
        if data:
            return _open_bytes(data)
    raise ValueError("the image is empty (zero bytes)")


def _has_pages(image: Image.Image | BandImage) -> bool:
    return getattr(image, "format", None) == "TIFF"


def _refuse_absurd_size(pixels: int) -> None:
    if pixels > MAX_IMAGE_PIXELS:
        raise ValueError(f"the image claims {pixels} pixels, more than MAX_IMAGE_PIXELS, {MAX_IMAGE_PIXELS}")


def _as_array(value: np.ndarray | list) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    pixels = np.asarray(value)
    # Lists have forgotten how many bits their numbers had.
    whole = np.issubdtype(pixels.dtype, np.integer) and pixels.size and pixels.min() >= 0
    return pixels.astype(np.uint8 if pixels.max() < 256 else np.uint16) if whole and pixels.max() < 65536 else pixels


def _open_bytes(data: bytes) -> Image.Image | BandImage:
    if data.startswith(b"\x93NUMPY"):
        return from_array(_read_array(data))
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} (MAX_IMAGE_PIXELS)") from error
    except (UnidentifiedImageError, ValueError) as error:
        if not data.startswith((b"II*\x00", b"MM\x00*")):
            raise
        raise ValueError(
            "PIL cannot read this TIFF, as those with more than 4 channels in a page: save it as .npy, or with a grey "
            "page per channel"
        ) from error
    if image.format == "EPS":
        raise ValueError("EPS is a program, which PIL has Ghostscript run: save the picture it draws")
    return image


def _read_array(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    # numpy sets the memory aside before it looks whether the file has as much.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"the array claims {dtype} of shape {shape}, and the file holds {len(data)} bytes")
    _refuse_absurd_size(math.prod(shape))
    return np.load(io.BytesIO(data), allow_pickle=False)


def to_8bit(image: Image.Image) -> Image.Image:
    """
    Converts any PIL image with a defined 8-bit form to mode `"L"` (grey stays grey) or `"RGB"`.

    Args:
        image (`PIL.Image.Image`): A loaded image.

    Returns:
        `PIL.Image.Image`: Mode `"L"` or `"RGB"`.

    Raises:
        ValueError: If it is a floating-point image or a 32-bit one with values outside 0..65535.
    """
    mode = image.mode
    if mode in ("L", "RGB"):
        if "transparency" not in image.info:
            return image
        image = image.convert("RGBA")
    elif mode == "1":
        return image.convert("L")
    elif mode == "I" or mode.startswith("I;16"):
        return _from_16bit(image)
    elif mode == "F":
        raise ValueError("floating-point images have no agreed 8-bit range: convert the column first")
    elif mode not in ("LA", "La", "PA", "RGBA", "RGBa") and not (mode == "P" and "transparency" in image.info):
        return image.convert("RGB")
    if mode in ("La", "RGBa"):
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    is_grey = image.mode == "LA"
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("L" if is_grey else "RGB")


def _from_16bit(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise ValueError(f"32-bit image with values {low}..{high}: only 0..65535 has a defined 8-bit form")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
