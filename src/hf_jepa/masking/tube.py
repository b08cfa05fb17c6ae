"""Tube masks for clips (an ablation of V-JEPA)."""

import math
from typing import Literal

import numpy as np
import torch

from ..positions import pair
from .generator import MaskGenerator
from .image import hashed_bits
from .video import clip_grid


class TubeMaskGenerator(MaskGenerator):
    """
    Random tubes (an ablation of V-JEPA, arXiv 2404.08471; VideoMAE's masks): random patches of a frame are visible
    through the whole clip, all others are the target.

    Args:
        image_size (`int` or `(height, width)`): in pixels.
        patch_size (`int` or `(height, width)`): in pixels.
        num_frames (`int`): frames of a clip.
        tubelet_size (`int`): frames of a token.
        ratio (`float`): share of a frame that is hidden; the visible patches are rounded down.
        mode (`str`): with `"reference"`, calling the generator draws from numpy's global generator, as the released
            code does; `"balanced"` draws from `(seed, draw)`, for a whole batch at once.
        seed (`int`): of the balanced mode, and of [`~TubeMaskGenerator.at`], which is the same in both.

    Raises:
        `ValueError`: for frames or pixels that tokens do not divide, or a ratio that leaves nothing on one side.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        num_frames: int = 16,
        tubelet_size: int = 2,
        ratio: float = 0.9,
        mode: Literal["reference", "balanced"] = "reference",
        seed: int = 0,
    ):
        super().__init__(mode, seed)
        self.grid_size = clip_grid(image_size, patch_size, num_frames, tubelet_size)
        self.clip_size = (num_frames, *pair(image_size))
        frame = math.prod(self.grid_size[1:])
        self.num_visible = int(frame * (1.0 - ratio))
        if not 0 < self.num_visible < frame:
            raise ValueError(
                f"A `ratio` of {ratio} leaves {self.num_visible} of the {frame} patches of a frame visible; choose "
                "one that leaves some on both sides."
            )
        self.ratio = ratio

    def at(self, draws: torch.LongTensor, step: int) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Masks as a pure function of `(seed, draws)`; what collators use.

        Args:
            draws (int64 tensor of shape `(batch,)`): the running number of each sample in the run.
            step (`int`): the optimizer step; unused, clips share nothing.

        Returns:
            `context_mask` and `target_mask`: int64 tensors of shape `(batch, kept)`.
        """
        order = hashed_bits(self.seed, 0, np.asarray(draws), math.prod(self.grid_size[1:])).argsort(axis=1)
        visible = np.zeros(order.shape, dtype=bool)
        np.put_along_axis(visible, order[:, : self.num_visible], True, axis=1)
        return self._masks(visible)

    def _reference(self, batch_size: int, counter: int) -> tuple[torch.LongTensor, torch.LongTensor]:
        frame = math.prod(self.grid_size[1:])
        visible = np.hstack([np.zeros(frame - self.num_visible), np.ones(self.num_visible)])
        shuffled = []
        for _ in range(batch_size):
            row = visible.copy()
            np.random.shuffle(row)
            shuffled.append(row == 1)
        return self._masks(np.stack(shuffled))

    def _masks(self, visible: np.ndarray) -> tuple[torch.LongTensor, torch.LongTensor]:
        n, frame = visible.shape
        starts = np.arange(0, self.grid_size[0] * frame, frame)[:, None]
        masks = [(np.nonzero(kept)[1].reshape(n, 1, -1) + starts).reshape(n, -1) for kept in (visible, ~visible)]
        return torch.from_numpy(masks[0]), torch.from_numpy(masks[1])
