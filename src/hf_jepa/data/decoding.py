import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# A 1-pixel image is a tracking pixel or the placeholder of a dead link; there is nothing to predict in it.
MIN_SIDE = 2


def decode_image(value: Any) -> Image.Image:
    """
    Decodes one cell of an image column into an 8-bit grey (`"L"`) or colour (`"RGB"`) image.

    Alpha is composited on white, CMYK, palette and YCbCr become RGB, 16-bit grey is scaled by 1/257, EXIF rotation is
    applied (as `datasets` does).

    Args:
        value (`dict`, `bytes`, `str`, `PIL.Image.Image` or `np.ndarray`): `{"bytes", "path"}` as `datasets` stores an
            undecoded image, encoded bytes, a path, or decoded pixels (uint8, `(H, W)` or `(H, W, 3)`).

    Returns:
        `PIL.Image.Image`: A fully loaded image of mode `"L"` or `"RGB"`.

    Raises:
        ValueError: If the image is empty, smaller than 2 pixels on a side, or of a kind without a defined 8-bit form.
        OSError: If the file is missing, truncated or not an image (as PIL reports it).
    """
    image = _open_image(value)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"the image is {image.width}x{image.height} pixels, at least {MIN_SIDE} a side are needed")
    image.load()
    if image.format not in (None, "PNG", "BMP", "GIF"):
        image = ImageOps.exif_transpose(image)
    return to_8bit(image)


def _open_image(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, np.ndarray):
        return Image.fromarray(value)
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    elif isinstance(value, str):
        value = {"bytes": None, "path": value}
    if not isinstance(value, dict):
        raise ValueError(f"the cell holds {type(value).__name__}, not an image")
    if value.get("bytes"):
        return Image.open(io.BytesIO(value["bytes"]))
    if value.get("bytes") is None and value.get("path"):
        # `datasets` streams remote files through this reader; local paths work too.
        from datasets.utils.file_utils import xopen

        with xopen(value["path"], "rb") as file:
            data = file.read()
        if data:
            return Image.open(io.BytesIO(data))
    raise ValueError("the image is empty (zero bytes)")


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
