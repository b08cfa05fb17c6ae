"""Multi-block masks for images (I-JEPA)."""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from transformers.utils import logging

from .generator import MaskGenerator, check_ranges, image_grid

logger = logging.get_logger(__name__)

# Draws before the reference mode gives up one target's exclusion.
MAX_ATTEMPTS = 20
CALIBRATION_DRAWS = 512
CONTEXT_QUANTILE = 0.1
RETRIES = 4

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of 64-bit integers with good avalanche."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=64)
def _stream_key(seed: int, stream: int) -> np.ndarray:
    base = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + _GOLDEN)
    return _mix(base + np.array([stream], dtype=np.uint64) * _GOLDEN)


@lru_cache(maxsize=64)
def _multiples(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN


def hashed_bits(seed: int, stream: int, keys: np.ndarray, count: int) -> np.ndarray:
    """
    Random bits that are a pure function of `(seed, stream, key)`: the same for a key whatever batch, worker or rank
    asks for them, and computed for all keys at once, which a generator object per key would not be.

    Args:
        seed (`int`), stream (`int`): two values that name the use.
        keys (`np.ndarray` of shape `(n,)`): non-negative integers.
        count (`int`): numbers per key.

    Returns:
        `np.ndarray` of shape `(n, count)`, uint64.
    """
    base = _mix(_stream_key(seed, stream) + keys.astype(np.uint64) * _GOLDEN)
    return _mix(base[:, None] + _multiples(count))


def hashed_uniform(seed: int, stream: int, keys: np.ndarray, count: int) -> np.ndarray:
    """As [`hashed_bits`], as float64 in [0, 1)."""
    return (hashed_bits(seed, stream, keys, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class MultiBlockMaskGenerator(MaskGenerator):
    """
    Multi-block masks (I-JEPA, arXiv 2301.08243, section 3): a few rectangular target blocks, and a large context block
    from which they are cut out. Masks are int64 index tensors of shape `(batch, kept)`, ascending, in row-major token
    order; all images of a batch keep the same number of tokens.

    Two modes:

    - `"reference"` reproduces the released code draw for draw, flaws included: block sizes come from a generator
      seeded with the batch counter, positions from the global torch generator; the last row and column are never used;
      scale and aspect ratio share one draw; at 224 px the context block never moves; contexts are truncated to the
      shortest of the batch by dropping the bottom rows.
    - `"balanced"` repairs that: every position can be drawn, scale and aspect are independent, the context block has a
      size and place of its own in every image, and a context that is too long loses a random subset. The number of
      context tokens depends on the block size alone (the 10 % quantile of what placements leave; the few placements
      that leave less are drawn again), so that it never depends on the batch size. Masks are a pure function of
      `(seed, draw, step)`: exact replay with any number of workers and ranks.

    Args:
        image_size (`int` or `(height, width)`): in pixels.
        patch_size (`int` or `(height, width)`): in pixels.
        context_scale (`(float, float)`): area of the context block as a share of the grid.
        target_scale (`(float, float)`): area of a target block as a share of the grid.
        target_aspect_ratio (`(float, float)`): height over width of a target block.
        num_context_masks (`int`), num_target_masks (`int`): blocks per image.
        min_keep (`int`): a mask must keep more tokens than this.
        allow_overlap (`bool`): whether the context may contain target tokens.
        mode (`str`): `"reference"` or `"balanced"`.
        seed (`int`): of the balanced mode, and of [`~MultiBlockMaskGenerator.at`] in both.

    Raises:
        `ValueError`: for scales or ratios that make no sense, and for grids too small for the blocks asked for.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        context_scale: tuple[float, float] = (0.85, 1.0),
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect_ratio: tuple[float, float] = (0.75, 1.5),
        num_context_masks: int = 1,
        num_target_masks: int = 4,
        min_keep: int = 10,
        allow_overlap: bool = False,
        mode: Literal["reference", "balanced"] = "reference",
        seed: int = 0,
    ):
        super().__init__(mode, seed)
        self.grid_size = image_grid(image_size, patch_size)
        check_ranges(
            context_scale=(context_scale, 1.0),
            target_scale=(target_scale, 1.0),
            target_aspect_ratio=(target_aspect_ratio, math.inf),
        )
        if min(num_context_masks, num_target_masks) < 1 or min_keep < 0:
            raise ValueError(
                f"Need at least one mask of each kind and `min_keep` >= 0, got {num_context_masks} context masks, "
                f"{num_target_masks} target masks, min_keep {min_keep}."
            )
        if math.prod(self.grid_size) >= 2**16:
            raise ValueError(f"A grid of {self.grid_size} has more than 65,535 tokens; use larger patches.")
        self.context_scale = tuple(context_scale)
        self.target_scale = tuple(target_scale)
        self.target_aspect_ratio = tuple(target_aspect_ratio)
        self.num_context_masks = num_context_masks
        self.num_target_masks = num_target_masks
        self.min_keep = min_keep
        self.allow_overlap = allow_overlap
        self._context_lengths: dict[tuple[int, int], int] = {}
        self._check_every_size()

    def at(self, draws: torch.LongTensor, step: int) -> tuple[list[torch.LongTensor], list[torch.LongTensor]]:
        """
        Masks as a pure function of `(seed, draws, step)`; what collators use.

        Args:
            draws (int64 tensor of shape `(batch,)`): the running number of each sample in the run.
            step (`int`): the optimizer step, which all its samples share; it fixes the block sizes.

        Returns:
            `context_mask` and `target_mask`: lists of int64 tensors of shape `(batch, kept)`.
        """
        if self.mode == "balanced":
            return self._balanced(np.asarray(draws), step)
        key = hashed_uniform(self.seed, step, np.asarray(draws[:1]), 1).item()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(key * 2**53))
            return self._reference(len(draws), step)

    # --- reference -----------------------------------------------------------------------------------------------

    def _reference_size(
        self, u: float, scale: tuple[float, float], aspect_ratio: tuple[float, float]
    ) -> tuple[int, int]:
        rows, columns = self.grid_size
        area = int(rows * columns * (scale[0] + u * (scale[1] - scale[0])))
        aspect = aspect_ratio[0] + u * (aspect_ratio[1] - aspect_ratio[0])
        height, width = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
        return min(height, rows - 1), min(width, columns - 1)

    def _reference(self, batch_size: int, counter: int) -> tuple[list[torch.LongTensor], list[torch.LongTensor]]:
        generator = torch.Generator().manual_seed(counter)
        u_target, u_context = (torch.rand(1, generator=generator).item() for _ in range(2))
        target_size = self._reference_size(u_target, self.target_scale, self.target_aspect_ratio)
        context_size = self._reference_size(u_context, self.context_scale, (1.0, 1.0))

        contexts, targets = [], []
        for _ in range(batch_size):
            blocks = [self._reference_block(target_size) for _ in range(self.num_target_masks)]
            hidden = [] if self.allow_overlap else blocks
            contexts.append([self._reference_context(context_size, hidden) for _ in range(self.num_context_masks)])
            targets.append([block.flatten().nonzero().squeeze(1) for block in blocks])
        return _collate(contexts), _collate(targets)

    def _reference_block(self, size: tuple[int, int]) -> torch.Tensor:
        rows, columns = self.grid_size
        # The exclusive upper bound is the original's: the last row and column are never reached.
        top = torch.randint(0, rows - size[0], (1,)).item()
        left = torch.randint(0, columns - size[1], (1,)).item()
        block = torch.zeros(self.grid_size, dtype=torch.bool)
        block[top : top + size[0], left : left + size[1]] = True
        return block

    def _reference_context(self, size: tuple[int, int], hidden: list[torch.Tensor]) -> torch.Tensor:
        attempts = 0
        while True:
            context = self._reference_block(size)
            excluded = hidden[: max(len(hidden) - attempts // MAX_ATTEMPTS, 0)]
            for block in excluded:
                context &= ~block
            kept = context.flatten().nonzero().squeeze(1)
            if len(kept) > self.min_keep:
                return kept
            attempts += 1
            if attempts % MAX_ATTEMPTS == 0:
                logger.warning(
                    f"No context of more than {self.min_keep} tokens after {attempts} draws; it may now overlap "
                    f"{attempts // MAX_ATTEMPTS} of the target blocks, as in the released code."
                )

    # --- balanced ------------------------------------------------------------------------------------------------

    def _balanced_size(self, u_scale: float, u_aspect: float) -> tuple[int, int]:
        rows, columns = self.grid_size
        area = rows * columns * (self.target_scale[0] + u_scale * (self.target_scale[1] - self.target_scale[0]))
        low, high = self.target_aspect_ratio
        aspect = low + u_aspect * (high - low)
        height = min(max(round(math.sqrt(area * aspect)), 1), rows)
        return height, min(max(round(area / height), 1), columns)

    def _balanced(self, draws: np.ndarray, step: int) -> tuple[list[torch.LongTensor], list[torch.LongTensor]]:
        u_scale, u_aspect = hashed_uniform(self.seed, 0, np.array([step]), 2)[0]
        size = self._balanced_size(u_scale, u_aspect)
        length = self._context_length(size)

        targets, visible = self._place(hashed_uniform(self.seed, 2, draws, self._numbers), size)
        short = self._shortest(visible) < length
        stream = 2
        # Nine placements in ten are long enough, by the choice of `length`; a few are tried at once.
        while short.any():
            stream += 1
            numbers = hashed_uniform(self.seed, stream, draws[short], RETRIES * self._numbers)
            tried_targets, tried_visible = self._place(numbers.reshape(-1, self._numbers), size)
            enough = (self._shortest(tried_visible) >= length).reshape(-1, RETRIES)
            chosen = enough.argmax(axis=1) + RETRIES * np.arange(len(enough))
            targets[short], visible[short] = tried_targets[chosen], tried_visible[chosen]
            short[short] = ~enough.any(axis=1)

        # The first tokens in the order of 16-bit random keys; the low half carries the token, so that one partition of
        # small integers finds them.
        tokens = visible.shape[-1]
        keys = hashed_bits(self.seed, 1, draws, self.num_context_masks * tokens) >> np.uint64(48)
        keys = (keys.astype(np.uint32) << np.uint32(16)).reshape(visible.shape) | np.arange(tokens, dtype=np.uint32)
        keys[~visible] = np.uint32(2**32 - 1)
        chosen = np.partition(keys, length - 1, axis=-1)[..., :length].astype(np.uint16)
        contexts = torch.from_numpy(np.sort(chosen, axis=-1).astype(np.int64))
        return list(contexts.unbind(1)), list(torch.from_numpy(targets).unbind(1))

    @property
    def _numbers(self) -> int:
        """Uniform numbers that place one image's blocks."""
        return 2 * self.num_target_masks + 3 * self.num_context_masks

    @staticmethod
    def _shortest(visible: np.ndarray) -> np.ndarray:
        """Tokens in the shortest context of each image, `(n,)`."""
        return np.count_nonzero(visible, axis=-1).min(axis=1)

    def _place(self, u: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """
        From uniform numbers `(n, _numbers)`: target tokens `(n, targets, kept)`, and the visible tokens
        `(n, contexts, tokens)` as booleans.
        """
        rows, columns = self.grid_size
        n, targets, contexts = len(u), self.num_target_masks, self.num_context_masks
        places = np.array([rows - size[0] + 1, columns - size[1] + 1])
        corners = (u[:, : 2 * targets].reshape(n, targets, 2) * places).astype(np.int64)
        block = (np.arange(size[0])[:, None] * columns + np.arange(size[1])).ravel()
        target_tokens = (corners @ [columns, 1])[..., None] + block

        u_context = u[:, 2 * targets :].reshape(n, contexts, 3)
        low, high = self.context_scale
        side = np.sqrt(low + u_context[..., :1] * (high - low))
        extent = np.maximum(np.rint(side * [rows, columns]), 1).astype(np.int64)
        start = (u_context[..., 1:] * ([rows + 1, columns + 1] - extent)).astype(np.int64)
        row, column = np.arange(rows), np.arange(columns)
        in_rows = (row >= start[..., :1]) & (row < start[..., :1] + extent[..., :1])
        in_columns = (column >= start[..., 1:]) & (column < start[..., 1:] + extent[..., 1:])
        visible = (in_rows[..., :, None] & in_columns[..., None, :]).reshape(n, contexts, rows * columns)
        if not self.allow_overlap:
            visible &= ~self._covered(target_tokens)[:, None]
        return target_tokens, visible

    def _covered(self, target_tokens: np.ndarray) -> np.ndarray:
        """Booleans `(n, tokens)`: the tokens inside any target block."""
        tokens = math.prod(self.grid_size)
        covered = np.zeros((len(target_tokens), tokens), dtype=bool)
        # Flat indices: several times as fast as a scatter along the rows.
        covered.ravel()[(target_tokens + tokens * np.arange(len(target_tokens))[:, None, None]).ravel()] = True
        return covered

    def _context_length(self, size: tuple[int, int]) -> int:
        if size not in self._context_lengths:
            _, visible = self._place(hashed_uniform(0, 2, np.arange(CALIBRATION_DRAWS), self._numbers), size)
            self._context_lengths[size] = int(np.quantile(self._shortest(visible), CONTEXT_QUANTILE))
        return self._context_lengths[size]

    # --- checks --------------------------------------------------------------------------------------------------

    def _check_every_size(self) -> None:
        """Refuses, before the first batch, a grid on which some batch would have no valid masks."""
        steps = np.linspace(0.0, 1.0, 101).tolist()
        for u in steps:
            if self.mode == "reference":
                target = self._reference_size(u, self.target_scale, self.target_aspect_ratio)
                context = self._reference_size(u, self.context_scale, (1.0, 1.0))
                lengths = [math.prod(context)]
                targets = [target]
            else:
                targets = [self._balanced_size(u, v) for v in steps]
                lengths = [self._context_length(size) for size in set(targets)]
            if min(map(math.prod, targets)) <= self.min_keep or min(min(targets, default=(0, 0))) < 1:
                raise ValueError(
                    f"A target block of {min(targets, key=math.prod)} tokens on a grid of {self.grid_size} does not "
                    f"keep more than min_keep={self.min_keep}; lower `min_keep`, raise `target_scale`, or use larger "
                    "images or smaller patches."
                )
            if min(lengths) <= self.min_keep:
                raise ValueError(
                    f"On a grid of {self.grid_size} the context keeps only {min(lengths)} tokens, not more than "
                    f"min_keep={self.min_keep}; lower `min_keep`, `target_scale` or `num_target_masks`."
                )


def _collate(masks: list[list[torch.LongTensor]]) -> list[torch.LongTensor]:
    """Truncates to the shortest of the batch, keeping the first indices, and stacks per mask."""
    shortest = min(len(mask) for image in masks for mask in image)
    return [torch.stack([mask[:shortest] for mask in column]) for column in zip(*masks, strict=True)]
