"""Block-wise masks for images (BEiT; data2vec vision)."""

import math
import random
from typing import Literal

import numpy as np
import torch

from .generator import MaskGenerator, image_grid
from .image import hashed_bits

# The original tries this often to place a block of a round before it gives the round up.
MAX_ATTEMPTS = 10
# Of the 14x14 patches of the published models.
PUBLISHED_MASKED_SHARE = 120 / 196


def masked_indices(mask: torch.BoolTensor) -> torch.LongTensor:
    """
    Boolean masks as the index tensor that models take. An image with fewer masked tokens than another repeats its
    last index; models count a repeated index once.

    Args:
        mask (`torch.BoolTensor` of shape `(batch, tokens)`): True where masked.

    Returns:
        int64 tensor of shape `(batch, kept)`: ascending indices, `kept` the largest count of the batch.

    Raises:
        `ValueError`: for another shape or type, or an image without a masked token.
    """
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be boolean of shape (batch, tokens), got {mask.dtype} {tuple(mask.shape)}.")
    counts = mask.sum(dim=1)
    if not len(counts) or not counts.all():
        raise ValueError("Every image needs at least one masked token.")
    order = mask.long().argsort(dim=1, descending=True, stable=True)
    place = torch.arange(int(counts.max()), device=mask.device).expand(len(mask), -1)
    return order.gather(1, place.minimum(counts[:, None] - 1))


def visible_indices(mask: torch.LongTensor, num_tokens: int) -> torch.LongTensor:
    """
    The tokens that index masks leave visible, in the same form as [`masked_indices`].

    Args:
        mask (int64 tensor of shape `(batch, kept)`): the masked tokens.
        num_tokens (`int`): tokens of one image.

    Returns:
        int64 tensor of shape `(batch, visible)`.
    """
    visible = torch.ones(mask.shape[0], num_tokens, dtype=torch.bool, device=mask.device)
    return masked_indices(visible.scatter_(1, mask, False))


class BlockwiseMaskGenerator(MaskGenerator):
    """
    Block-wise masks (BEiT, arXiv 2106.08254, algorithm 1, as used by data2vec, arXiv 2202.03555): rectangles of random
    size and aspect ratio are laid over the grid, overlaps allowed, until enough patches are masked.

    Two modes:

    - `"reference"` reproduces the released code draw for draw from Python's `random`. It stops as soon as no block
      fits into what is left, so the number of masked patches varies from image to image (at 224/16: 119.5 of 120 on
      average). Shorter rows repeat their last index, see [`masked_indices`].
    - `"balanced"` masks exactly `num_masked` patches of every image: a round that finds no block is tried again, and
      the block that would mask too much is cut at a side chosen at random.

    Args:
        image_size (`int` or `(height, width)`): in pixels.
        patch_size (`int` or `(height, width)`): in pixels.
        num_masked (`int`, *optional*): masked patches per image; defaults to the published share, 120 of 196.
        min_block (`int`): patches that a block has at least, unless fewer are left to mask.
        max_block (`int`, *optional*): new patches that a block masks at most; defaults to the whole grid.
        aspect_ratio (`(float, float)`): range of a block's height over its width, drawn log-uniformly.
        mode (`str`): `"reference"` or `"balanced"`.
        seed (`int`): of the balanced mode, and of [`~BlockwiseMaskGenerator.at`] in both.

    Raises:
        `ValueError`: for sizes or ratios that make no sense, and for grids that blocks of `min_block` do not fit into.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_masked: int | None = None,
        min_block: int = 16,
        max_block: int | None = None,
        aspect_ratio: tuple[float, float] = (0.3, 1 / 0.3),
        mode: Literal["reference", "balanced"] = "reference",
        seed: int = 0,
    ):
        super().__init__(mode, seed)
        self.grid_size = image_grid(image_size, patch_size)
        tokens = math.prod(self.grid_size)
        self.num_masked = round(tokens * PUBLISHED_MASKED_SHARE) if num_masked is None else num_masked
        self.min_block = min_block
        self.max_block = tokens if max_block is None else max_block
        self.aspect_ratio = tuple(aspect_ratio)
        if not 0 < self.num_masked < tokens:
            raise ValueError(
                f"`num_masked` must lie between 1 and {tokens - 1} of {tokens} patches, got {num_masked}."
            )
        if not 0 < min_block <= self.max_block:
            raise ValueError(f"Need 0 < `min_block` <= `max_block`, got {min_block} and {self.max_block}.")
        low, high = self.aspect_ratio
        if not 0 < low <= high < math.inf:
            raise ValueError(f"`aspect_ratio` must be an ascending pair of positive numbers, got {(low, high)}.")
        shapes = [self._block_shape(min_block, low * (high / low) ** (step / 100)) for step in range(101)]
        if not any(self._fits(*shape) for shape in shapes):
            raise ValueError(
                f"No block of {min_block} patches with an aspect ratio in {(low, high)} fits into a grid of "
                f"{self.grid_size} without spanning it; lower `min_block`."
            )

    def at(self, draws: torch.LongTensor, step: int) -> list[torch.LongTensor]:
        """
        Masks as a pure function of `(seed, draws)`; what collators use.

        Args:
            draws (int64 tensor of shape `(batch,)`): the running number of each sample in the run.
            step (`int`): the optimizer step; unused, images share nothing.

        Returns:
            `target_mask`: a list of one int64 tensor of shape `(batch, kept)`, the masked patches.
        """
        seeds = hashed_bits(self.seed, 0, np.asarray(draws), 1)[:, 0].tolist()
        return self._collate([self._mask(random.Random(seed)) for seed in seeds])

    def _reference(self, batch_size: int, counter: int) -> list[torch.LongTensor]:
        return self._collate([self._mask(random) for _ in range(batch_size)])

    @staticmethod
    def _collate(masks: list[np.ndarray]) -> list[torch.LongTensor]:
        return [masked_indices(torch.from_numpy(np.stack(masks)).flatten(1))]

    @staticmethod
    def _block_shape(area: float, aspect: float) -> tuple[int, int]:
        return int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))

    def _fits(self, height: int, width: int) -> bool:
        # A block never spans the grid, in the original and here.
        return 0 < height < self.grid_size[0] and 0 < width < self.grid_size[1]

    def _mask(self, draws: random.Random) -> np.ndarray:
        """Booleans of the grid's shape. `draws` is a generator, or the module `random` itself."""
        mask = np.zeros(self.grid_size, dtype=bool)
        left = self.num_masked
        while left > 0:
            new = self._place_block(mask, left, draws)
            if not new and self.mode == "reference":
                break
            left -= new
        return mask

    def _place_block(self, mask: np.ndarray, left: int, draws: random.Random) -> int:
        """Masks one more block in place; returns the number of patches that it added."""
        most = min(left, self.max_block)
        low, high = map(math.log, self.aspect_ratio)
        for _ in range(MAX_ATTEMPTS):
            area = draws.uniform(self.min_block, most)
            height, width = self._block_shape(area, math.exp(draws.uniform(low, high)))
            if height >= self.grid_size[0] or width >= self.grid_size[1]:
                continue
            top = draws.randint(0, self.grid_size[0] - height)
            column = draws.randint(0, self.grid_size[1] - width)
            block = mask[top : top + height, column : column + width]
            new = block.size - np.count_nonzero(block)
            if 0 < new <= most:
                block[:] = True
                return new
            if new and self.mode == "balanced":
                self._mask_part(block, most, draws)
                return most
        return 0

    @staticmethod
    def _mask_part(block: np.ndarray, count: int, draws: random.Random) -> None:
        """Masks `count` free patches of a block, line by line from one of its four sides."""
        view = block.T if draws.random() < 0.5 else block
        view = view[::-1] if draws.random() < 0.5 else view
        rows, columns = np.nonzero(~view)
        view[rows[:count], columns[:count]] = True
