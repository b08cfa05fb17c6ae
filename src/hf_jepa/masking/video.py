"""Multi-block masks for clips (V-JEPA, V-JEPA 2, V-JEPA 2.1)."""

import itertools
import math
import zlib
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from ..positions import pair
from .generator import MaskGenerator, check_ranges
from .image import hashed_bits, hashed_uniform

# Published recipes: eight small blocks or two large ones, all through the whole clip; and V-JEPA 2.1's for images.
SHORT_RANGE = {"num_blocks": 8, "spatial_scale": (0.15, 0.15)}
LONG_RANGE = {"num_blocks": 2, "spatial_scale": (0.7, 0.7)}
IMAGE_BLOCKS = {"num_blocks": 10, "spatial_scale": (0.15, 0.15), "num_frames": 1, "tubelet_size": 1}

CALIBRATION_DRAWS = 128
KEPT_QUANTILE = 0.1
# Placements of one clip that are drawn at once; the first that leaves enough on both sides is taken.
CANDIDATES = 4
# Placements without any context are drawn again, which would hardly end when rarer ones than this have some.
LEAST_SHARE_WITH_CONTEXT = 0.01

# Steps whose block sizes are drawn at once.
STEP_CHUNK = 256

Size = tuple[int, int, int]


@lru_cache(maxsize=64)
def _packed_blocks(frame: tuple[int, int], block: tuple[int, int]) -> np.ndarray:
    """The tokens of a frame that a block at each place covers: bits of uint64 numbers, `(places, words)`."""
    in_rows, in_columns = (
        np.arange(whole) - np.arange(whole - part + 1)[:, None] for whole, part in zip(frame, block, strict=True)
    )
    in_rows, in_columns = (in_rows >= 0) & (in_rows < block[0]), (in_columns >= 0) & (in_columns < block[1])
    covered = (in_rows[:, None, :, None] & in_columns[None, :, None, :]).reshape(-1, math.prod(frame))
    covered = np.pad(covered, ((0, 0), (0, -covered.shape[1] % 64)))
    return np.packbits(covered, axis=1, bitorder="little").view(np.uint64)


@lru_cache(maxsize=16)
def _size_draws(key: int, chunk: int) -> list[list[float]]:
    """Three uniform numbers for each of `STEP_CHUNK` steps."""
    return hashed_uniform(key, 0, np.arange(chunk * STEP_CHUNK, (chunk + 1) * STEP_CHUNK), 3).tolist()


def clip_grid(
    image_size: int | tuple[int, int], patch_size: int | tuple[int, int], num_frames: int, tubelet_size: int
) -> Size:
    """
    Time slots, rows and columns of a clip's tokens.

    Raises:
        `ValueError`: if patches do not divide the image, or tubelets the frames.
    """
    image, patch = pair(image_size), pair(patch_size)
    if min(*image, *patch) < 1 or image[0] % patch[0] or image[1] % patch[1]:
        raise ValueError(f"The image size {image} must be divisible by the patch size {patch}.")
    if min(num_frames, tubelet_size) < 1 or num_frames % tubelet_size:
        raise ValueError(f"The {num_frames} frames of a clip must be divisible by the tubelet size {tubelet_size}.")
    return num_frames // tubelet_size, image[0] // patch[0], image[1] // patch[1]


@lru_cache(maxsize=64)
def _token_offsets(batch_size: int, unit_slots: int, grid: Size) -> torch.Tensor:
    """
    From units counted over a batch to tokens of each clip: `(batch, slots, 1)`, a row per time slot where a unit is a
    whole tube.
    """
    slots, frame = grid[0], math.prod(grid[1:])
    clips = torch.arange(batch_size)[:, None, None] * (unit_slots * frame)
    return torch.arange(slots if unit_slots == 1 else 1)[:, None] * frame - clips


class MultiBlock3DMaskGenerator(MaskGenerator):
    """
    Multi-block masks for clips (V-JEPA, arXiv 2404.08471, section 3.2; V-JEPA 2, arXiv 2506.09985): a few cuboids that
    may overlap are hidden; their union is the target, the rest the context. One generator is one mask recipe, such as
    `MultiBlock3DMaskGenerator(224, 16, **SHORT_RANGE)`; a model is trained on a list of them. Masks are int64 index
    tensors, ascending, in the token order (time, row, column); all clips of a batch keep the same number of tokens.

    Two modes:

    - `"reference"` reproduces the released code draw for draw, flaws included: block sizes come from a generator
      seeded with the batch counter, so that all recipes share their draw of the aspect ratio, positions from the
      global torch generator, and both masks are cut to the shortest of the batch by dropping the *latest* tokens. At
      24 clips of 16 frames and 256 px a quarter of the tokens is in neither mask, and a long-range context has 36 % of
      its tokens in the first of eight time slots and 1 % in the last. All this depends on the batch of one process.
    - `"balanced"` repairs that: what has to be left out is spread evenly over the clip from a random start (whole
      tubes where blocks span the clip), so that each token is as likely to stay as another, and how much is left out
      depends on the block size alone (10 % of placements, on each side, keep less; they are drawn again). Every recipe
      has draws of its own. Masks are a pure function of `(seed, draw, step)`: exact replay with any number of workers
      and ranks.

    Args:
        image_size (`int` or `(height, width)`): in pixels.
        patch_size (`int` or `(height, width)`): in pixels.
        num_frames (`int`): frames of a clip; 1 with `tubelet_size=1` for images.
        tubelet_size (`int`): frames of a token.
        num_blocks (`int`): cuboids per clip.
        spatial_scale (`(float, float)`): area of a cuboid as a share of the frame.
        temporal_scale (`(float, float)`): length of a cuboid as a share of the clip.
        aspect_ratio (`(float, float)`): height over width of a cuboid.
        max_temporal_keep (`float`): share of the clip, from its start, that the context may come from.
        max_keep (`int`, *optional*): context tokens at most.
        full_complement (`bool`): the target is everything that the cut context leaves.
        pred_full_complement (`bool`): the context is everything that the cut target leaves.
        inv_block (`bool`): context and target change places.
        mode (`str`): `"reference"` or `"balanced"`.
        seed (`int`): of the balanced mode, and of [`~MultiBlock3DMaskGenerator.at`] in both.

    Raises:
        `ValueError`: for scales or ratios that make no sense, frames or pixels that tokens do not divide, and grids
        too small for the blocks asked for.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_frames: int = 16,
        tubelet_size: int = 2,
        num_blocks: int = 8,
        spatial_scale: tuple[float, float] = (0.15, 0.15),
        temporal_scale: tuple[float, float] = (1.0, 1.0),
        aspect_ratio: tuple[float, float] = (0.75, 1.5),
        max_temporal_keep: float = 1.0,
        max_keep: int | None = None,
        full_complement: bool = False,
        pred_full_complement: bool = False,
        inv_block: bool = False,
        mode: Literal["reference", "balanced"] = "reference",
        seed: int = 0,
    ):
        super().__init__(mode, seed)
        self.grid_size = clip_grid(image_size, patch_size, num_frames, tubelet_size)
        self.clip_size = (num_frames, *pair(image_size))
        check_ranges(
            spatial_scale=(spatial_scale, 1.0),
            temporal_scale=(temporal_scale, 1.0),
            aspect_ratio=(aspect_ratio, math.inf),
        )
        if num_blocks < 1 or not 0 < max_temporal_keep <= 1 or (max_keep is not None and max_keep < 1):
            raise ValueError(
                "Need at least one block, `max_temporal_keep` in (0, 1] and `max_keep` of 1 or more, got "
                f"num_blocks {num_blocks}, max_temporal_keep {max_temporal_keep}, max_keep {max_keep}."
            )
        if math.prod(self.grid_size[1:]) >= 2**16:
            raise ValueError(f"Frames of {self.grid_size[1:]} have more than 65,535 tokens; use larger patches.")
        if full_complement and pred_full_complement:
            raise ValueError("Choose one of `full_complement` and `pred_full_complement`; they contradict each other.")
        self.num_blocks = num_blocks
        self.scales = (tuple(temporal_scale), tuple(spatial_scale), tuple(aspect_ratio))
        self.visible_slots = max(1, int(self.grid_size[0] * max_temporal_keep))
        self.max_keep = max_keep
        self.full_complement = full_complement
        self.pred_full_complement = pred_full_complement
        self.inv_block = inv_block
        recipe = (self.grid_size, num_blocks, self.scales, self.visible_slots, max_keep)
        recipe += (full_complement, pred_full_complement, inv_block)
        # Recipes and clip lengths share a seed, but none of their draws.
        self._key = int(hashed_bits(seed, zlib.crc32(repr(recipe).encode()), np.zeros(1), 1)[0, 0])
        self._lengths: dict[Size, tuple[int, int]] = {}
        self._check_every_size()

    def at(self, draws: torch.LongTensor, step: int) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Masks as a pure function of `(seed, draws, step)`; what collators use.

        Args:
            draws (int64 tensor of shape `(batch,)`): the running number of each sample in the run.
            step (`int`): the optimizer step, which all its samples share; it fixes the block size.

        Returns:
            `context_mask` and `target_mask`: int64 tensors of shape `(batch, kept)`, `kept` of their own each.
        """
        if self.mode == "balanced":
            return self._balanced(np.asarray(draws), step)
        seed = hashed_bits(self._key, step, np.asarray(draws[:1]), 1)[0, 0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed >> np.uint64(1)))
            return self._reference(len(draws), step)

    # --- reference -----------------------------------------------------------------------------------------------

    def _reference_size(self, u_time: float, u_space: float, u_aspect: float) -> Size:
        slots, rows, columns = self.grid_size
        time, space, aspect = (
            low + u * (high - low) for (low, high), u in zip(self.scales, (u_time, u_space, u_aspect), strict=True)
        )
        area = int(rows * columns * space)
        height, width = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
        return max(1, int(slots * time)), min(height, rows), min(width, columns)

    def _reference(self, batch_size: int, counter: int) -> tuple[torch.LongTensor, torch.LongTensor]:
        generator = torch.Generator().manual_seed(counter)
        size = self._reference_size(*(torch.rand(1, generator=generator).item() for _ in range(3)))
        contexts, targets = [], []
        while len(contexts) < batch_size:
            visible = torch.ones(self.grid_size, dtype=torch.int32)
            for _ in range(self.num_blocks):
                visible *= self._reference_block(size)
            visible[self.visible_slots :] = 0
            context = visible.flatten().nonzero().squeeze(1)
            if len(context):
                contexts.append(context)
                targets.append((visible.flatten() == 0).nonzero().squeeze(1))
        # The cut keeps the first indices, the earliest ones.
        context_mask = torch.stack([mask[: min(map(len, contexts))] for mask in contexts])[:, : self.max_keep]
        target_mask = torch.stack([mask[: min(map(len, targets))] for mask in targets])
        return self._arranged(context_mask, target_mask)

    def _reference_block(self, size: Size) -> torch.Tensor:
        top, left, start = (torch.randint(0, self.grid_size[axis] - size[axis] + 1, (1,)).item() for axis in (1, 2, 0))
        block = torch.ones(self.grid_size, dtype=torch.int32)
        block[start : start + size[0], top : top + size[1], left : left + size[2]] = 0
        return block

    def _arranged(self, context: torch.Tensor, target: torch.Tensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        if self.full_complement:
            target = self._complement(context)
        elif self.pred_full_complement:
            context = self._complement(target)
        return (target, context) if self.inv_block else (context, target)

    def _complement(self, mask: torch.LongTensor) -> torch.LongTensor:
        left = torch.ones(len(mask), math.prod(self.grid_size), dtype=torch.bool).scatter_(1, mask, False)
        return left.nonzero()[:, 1].view(len(mask), -1)

    # --- balanced ------------------------------------------------------------------------------------------------

    def _balanced_size(self, u_time: float, u_space: float, u_aspect: float) -> Size:
        slots, rows, columns = self.grid_size
        time, space, aspect = (
            low + u * (high - low) for (low, high), u in zip(self.scales, (u_time, u_space, u_aspect), strict=True)
        )
        area = rows * columns * space
        height = min(max(round(math.sqrt(area * aspect)), 1), rows)
        return min(max(round(slots * time), 1), slots), height, min(max(round(area / height), 1), columns)

    def _unit_slots(self, size: Size) -> int:
        """Time slots that are told apart: one where blocks span the clip, so that a unit of a mask is a whole tube."""
        whole = size[0] == self.visible_slots == self.grid_size[0] and self.max_keep is None
        return 1 if whole else self.grid_size[0]

    def _candidates(self, draws: np.ndarray, stream: int, size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Candidates for the hidden units of each clip: bits `(n, candidates, unit slots, words)`, their number
        `(n, candidates)`, and 32 random bits `(n,)` for the cut.
        """
        all_slots, *frame = self.grid_size
        blocks, slots = _packed_blocks(tuple(frame), size[1:]), self._unit_slots(size)
        numbers = CANDIDATES * self.num_blocks
        random = hashed_bits(self._key, stream, draws, 1 + numbers // 2 * (1 + (slots > 1))).view(np.uint32)
        # 16 bits of randomness are plenty for the place of a block. Blocks come first: one reduction joins them.
        shape = (len(draws), CANDIDATES, self.num_blocks)
        places = (random[:, 2 : 2 + numbers] >> np.uint32(16)) * np.uint32(len(blocks)) >> np.uint32(16)
        hidden = blocks.take(places.reshape(shape).transpose(2, 0, 1), axis=0)[..., None, :]
        if slots > 1:
            starts = (random[:, -numbers:] >> np.uint32(16)) * np.uint32(all_slots - size[0] + 1) >> np.uint32(16)
            since = np.arange(slots) - starts.reshape(shape).transpose(2, 0, 1)[..., None].astype(np.int64)
            hidden = np.where(((since >= 0) & (since < size[0]))[..., None], hidden, np.uint64(0))
        hidden = np.bitwise_or.reduce(hidden, axis=0)
        if slots > self.visible_slots:
            hidden[:, :, self.visible_slots :] = np.bitwise_or.reduce(blocks, axis=0)
        counts = np.bitwise_count(hidden).sum(axis=(2, 3), dtype=np.int64)
        return hidden, counts, random[:, 0]

    def _balanced(self, draws: np.ndarray, step: int) -> tuple[torch.LongTensor, torch.LongTensor]:
        size = self._balanced_size(*_size_draws(self._key, step // STEP_CHUNK)[step % STEP_CHUNK])
        visible_length, hidden_length = self._kept_units(size)
        frame, slots = math.prod(self.grid_size[1:]), self._unit_slots(size)
        units = frame * slots
        most = units - 1 if self.pred_full_complement else units - visible_length
        least = 1 if self.full_complement else hidden_length

        hidden, counts, random = self._candidates(draws, 1, size)
        hidden, counts, missing = _first_fit(hidden, counts, least, most)
        for stream in itertools.count(2):
            if not len(missing):
                break
            again, again_counts, _ = self._candidates(draws[missing], stream, size)
            hidden[missing], counts[missing], still = _first_fit(again, again_counts, least, most)
            missing = missing[still]

        hidden = np.unpackbits(hidden.view(np.uint8), axis=-1, count=frame, bitorder="little").view(bool)
        context = self._spread(~hidden, units - counts, visible_length, random)
        target = self._spread(hidden, counts, hidden_length, random)
        return self._arranged(context, target)

    def _spread(self, members: np.ndarray, counts: np.ndarray, length: int, random: np.ndarray) -> torch.LongTensor:
        """
        Tokens of `length` of each clip's members `(n, unit slots, frame)`, evenly spread over them from a random
        start: systematic sampling, by which all are equally likely to stay.
        """
        n, slots, _ = members.shape
        # Member `(j * count + r) // length` of `count`, for `j < length` and a random `r < count`, after the members
        # of the clips before: one division for all.
        places = np.arange(length) * counts[:, None]
        places += ((counts.cumsum() - counts) * length + (random * counts >> 32))[:, None]
        places //= length
        units = torch.from_numpy(np.flatnonzero(members).take(places))
        return (units[:, None] + _token_offsets(n, slots, self.grid_size)).view(n, -1)

    def _kept_units(self, size: Size) -> tuple[int, int]:
        """Units that contexts and targets of a block size keep."""
        if size not in self._lengths:
            self._lengths[size] = self._calibrated_units(size)
        return self._lengths[size]

    def _calibrated_units(self, size: Size) -> tuple[int, int]:
        _, counts, _ = self._candidates(np.arange(CALIBRATION_DRAWS), 1, size)
        units = math.prod(self.grid_size[1:]) * self._unit_slots(size)
        counts = counts[counts < units]
        if counts.size < LEAST_SHARE_WITH_CONTEXT * CALIBRATION_DRAWS * CANDIDATES:
            raise ValueError(
                f"{self.num_blocks} blocks of {size} (time, height, width) leave no context on a grid of "
                f"{self.grid_size}; lower `spatial_scale` or `num_blocks`, use larger frames or smaller patches."
            )
        visible = max(1, int(np.quantile(units - counts, KEPT_QUANTILE)))
        return min(visible, self.max_keep or visible), int(np.quantile(counts, KEPT_QUANTILE))

    # --- checks --------------------------------------------------------------------------------------------------

    def _check_every_size(self) -> None:
        """Refuses, before the first batch, a grid on which some batch would have no valid masks."""
        steps = [np.linspace(0.0, 1.0, 101).tolist() if low < high else [0.0] for low, high in self.scales]
        draw = self._reference_size if self.mode == "reference" else self._balanced_size
        frames = {draw(0.0, u_space, u_aspect)[1:] for u_space in steps[1] for u_aspect in steps[2]}
        if min(map(min, frames)) < 1:
            raise ValueError(
                f"A block on a grid of {self.grid_size} would have no token; raise `spatial_scale`, or use larger "
                "frames or smaller patches."
            )
        longest = draw(1.0, 0.0, 0.0)[0]
        for size in frames:
            self._kept_units((longest, *size))


def _first_fit(
    hidden: np.ndarray, counts: np.ndarray, least: int, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first candidate of each clip with `least` to `most` hidden units, and the clips that have none."""
    fits = (counts >= least) & (counts <= most)
    chosen = fits.argmax(axis=1)
    chosen += np.arange(0, fits.size, fits.shape[1])
    rows = hidden.reshape(fits.size, *hidden.shape[2:])
    return rows.take(chosen, axis=0), counts.take(chosen), np.flatnonzero(~fits.take(chosen))
