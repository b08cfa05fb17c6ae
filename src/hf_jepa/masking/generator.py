"""What the generators of masks for images and clips share."""

from typing import Any, Literal

import torch

from ..positions import pair


class MaskGenerator:
    """
    Masks of one batch after the other, or (`at`) of given samples.

    Args:
        mode (`str`): `"reference"` or `"balanced"`.
        seed (`int`): of `at`, and of the balanced mode.

    Raises:
        `ValueError`: for another mode.
    """

    def __init__(self, mode: Literal["reference", "balanced"], seed: int):
        if mode not in ("reference", "balanced"):
            raise ValueError(f'`mode` must be "reference" or "balanced", got {mode!r}.')
        self.mode = mode
        self.seed = seed
        self.counter = -1

    def __call__(self, batch_size: int) -> Any:
        """
        Masks of the next batch, as `at` returns them. The state is `counter`, the number of batches made so far minus
        one, and in reference mode the global generator that the released code draws from: torch's, numpy's for tubes,
        Python's for block-wise masks.

        Args:
            batch_size (`int`): images or clips.

        Raises:
            `ValueError`: for a batch of none.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.counter += 1
        if self.mode == "reference":
            return self._reference(batch_size, self.counter)
        first = self.counter * batch_size
        return self.at(torch.arange(first, first + batch_size), self.counter)


def image_grid(image_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """
    Rows and columns of an image, in patches.

    Raises:
        `ValueError`: if patches do not divide the image.
    """
    image, patch = pair(image_size), pair(patch_size)
    if min(*image, *patch) < 1 or image[0] % patch[0] or image[1] % patch[1]:
        raise ValueError(f"The image size {image} must be divisible by the patch size {patch}.")
    return image[0] // patch[0], image[1] // patch[1]


def check_ranges(**ranges: tuple[tuple[float, float], float]) -> None:
    """
    Args:
        ranges (`((low, high), most)`): of a setting, and the highest value that makes sense.

    Raises:
        `ValueError`: for a range that does not ascend, or leaves what makes sense.
    """
    for name, ((low, high), most) in ranges.items():
        if not 0 < low <= high <= most:
            raise ValueError(f"`{name}` must be an ascending pair in (0, {most}], got {(low, high)}.")
