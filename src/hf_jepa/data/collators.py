"""Batches for the mask-predicting and for the joint-embedding models."""

from typing import Any

import numpy as np
import torch

from ..masking import BlockwiseMaskGenerator, MultiBlockMaskGenerator


def tensors_of(samples: list[dict[str, Any]], name: str) -> list[torch.Tensor]:
    """
    One entry of every sample; arrays become tensors.

    Raises:
        `ValueError`: for a sample without it, or where it is neither tensor nor array.
    """
    for sample in samples:
        if not isinstance(sample.get(name), torch.Tensor | np.ndarray):
            found = f"is a {type(sample[name]).__name__}" if name in sample else "is missing"
            raise ValueError(
                f"Samples must hold a tensor `{name}`, which {found} in one with {', '.join(map(str, sample))}. "
                "Trainers transform the rows of a `datasets.Dataset` by themselves; in a dataset of your own do it "
                "with one of `hf_jepa.data`."
            )
    return [torch.as_tensor(sample[name]) for sample in samples]


def draws_of(samples: list[dict[str, Any]]) -> torch.Tensor:
    """
    Numbers of the samples in the run, int64.

    Raises:
        `ValueError`: for a sample without one.
    """
    if any("draw" not in sample for sample in samples):
        raise ValueError(
            "Samples need `draw`, their number in the run, which decides their masks: the seeded datasets of "
            "`hf_jepa.data` and the trainers add it; elsewhere count the samples."
        )
    return torch.tensor([int(sample["draw"]) for sample in samples])


class MaskCollator:
    """
    Stacks images and adds their masks. Masks depend on the samples' draw numbers only, so batches are the same with
    any number of workers, ranks and accumulation steps.

    Args:
        mask_generator ([`MultiBlockMaskGenerator`] or [`BlockwiseMaskGenerator`]): makes the masks; its grid must be
            that of the images.
        draws_per_step (`int`, *optional*): samples of one optimizer step over all ranks and accumulation steps, which
            share their block sizes. [`JepaTrainer`] sets it; without it every batch is a step of its own.

    Returns, when called with a list of samples `{"pixel_values": (C, H, W) float32, "draw": int}`:
        `dict` with `pixel_values` `(batch, C, H, W)` and the lists `context_mask` and `target_mask` of int64 tensors
        of shape `(batch, kept)`; block-wise masks give no `context_mask`, what they do not hide is seen.

    Raises:
        `ValueError`: for samples without image or draw, or whose images differ in shape.
    """

    def __init__(
        self, mask_generator: MultiBlockMaskGenerator | BlockwiseMaskGenerator, draws_per_step: int | None = None
    ):
        self.mask_generator = mask_generator
        self.draws_per_step = draws_per_step

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        images = tensors_of(samples, "pixel_values")
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"The images of a batch must have one shape, got {sorted(shapes)}; resize or crop them.")
        draws = draws_of(samples)
        step = int(draws[0]) // (self.draws_per_step or len(samples))
        masks = self.mask_generator.at(draws, step)
        names = ("context_mask", "target_mask")
        masks = dict(zip(names, masks, strict=True)) if isinstance(masks, tuple) else {"target_mask": masks}
        return {"pixel_values": torch.stack(images), **masks}


class MultiViewCollator:
    """
    Stacks the views of images. Nothing is drawn here.

    Returns, when called with a list of samples `{"pixel_values": (views, C, H, W) float32, "local_pixel_values":
    (local views, C, h, w) float32 (optional)}`:
        `dict` with `pixel_values` `(batch, views, C, H, W)` and, where samples have it, `local_pixel_values`.

    Raises:
        `ValueError`: for samples without a view dimension, or whose views differ in number or shape.
    """

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = ["pixel_values", *(["local_pixel_values"] if "local_pixel_values" in samples[0] else [])]
        batch = {}
        for name in names:
            views = tensors_of(samples, name)
            shapes = sorted({tuple(view.shape) for view in views})
            if len(shapes) > 1 or len(shapes[0]) != 4:
                raise ValueError(
                    f"`{name}` must have one shape (views, channels, height, width) in every sample, got {shapes}; "
                    "make the views with MultiViewTransform."
                )
            batch[name] = torch.stack(views)
        return batch
