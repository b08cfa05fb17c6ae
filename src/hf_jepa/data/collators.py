"""Batches for the mask-predicting models."""

from typing import Any

import torch

from ..masking import MultiBlockMaskGenerator


class MaskCollator:
    """
    Stacks images and adds their masks. Masks depend on the samples' draw numbers only, so batches are the same with
    any number of workers, ranks and accumulation steps.

    Args:
        mask_generator ([`MultiBlockMaskGenerator`]): makes the masks; its grid must be that of the images.
        draws_per_step (`int`, *optional*): samples of one optimizer step over all ranks and accumulation steps, which
            share their block sizes. [`JepaTrainer`] sets it; without it every batch is a step of its own.

    Returns, when called with a list of samples `{"pixel_values": (C, H, W) float32, "draw": int}`:
        `dict` with `pixel_values` `(batch, C, H, W)` and the lists `context_mask` and `target_mask` of int64 tensors
        of shape `(batch, kept)`.

    Raises:
        `ValueError`: for samples whose images differ in shape.
    """

    def __init__(self, mask_generator: MultiBlockMaskGenerator, draws_per_step: int | None = None):
        self.mask_generator = mask_generator
        self.draws_per_step = draws_per_step

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        images = [sample["pixel_values"] for sample in samples]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"The images of a batch must have one shape, got {sorted(shapes)}; resize or crop them.")
        draws = torch.tensor([sample["draw"] for sample in samples])
        step = int(draws[0]) // (self.draws_per_step or len(samples))
        context_mask, target_mask = self.mask_generator.at(draws, step)
        return {"pixel_values": torch.stack(images), "context_mask": context_mask, "target_mask": target_mask}
