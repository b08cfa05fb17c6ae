"""Batches of clips with their masks, for the video models."""

from collections.abc import Sequence
from typing import Any

import torch

from ..masking import MultiBlock3DMaskGenerator, TubeMaskGenerator
from .collators import draws_of, tensors_of

Generators = Sequence[MultiBlock3DMaskGenerator | TubeMaskGenerator]


class VideoMaskCollator:
    """
    Stacks clips and adds their masks, one context and one target per recipe. Masks depend on the samples' draw numbers
    only, so batches are the same with any number of workers, ranks and accumulation steps.

    Args:
        mask_generators (`list` of [`MultiBlock3DMaskGenerator`] or [`TubeMaskGenerator`], or
            `dict[int, list]`): a generator per recipe, such as the short- and the long-range one. Where clips of
            several lengths are mixed (V-JEPA 2; images are clips of one frame), a list for each number of frames: a
            batch then is made of groups of one length, in the order of the dict.
        draws_per_step (`int`, *optional*): samples of one optimizer step over all ranks and accumulation steps, which
            share their block sizes. [`JepaTrainer`] sets it; without it every batch is a step of its own.

    Returns, when called with a list of samples `{"pixel_values_videos": (F, C, H, W) float32, "draw": int}`:
        `dict` with `pixel_values_videos` `(batch, F, C, H, W)` and the lists `context_mask` and `target_mask`, whose
        int64 tensors `(batch, kept)` differ in length from recipe to recipe. With generators for several lengths, all
        three are lists of such, one entry per group; a length that the batch lacks has none. Several clips of a sample
        `(clips, F, C, H, W)` share their masks; first come the first clips of all samples, as in the released code.

    Raises:
        `ValueError`: for no generators, or generators made for another clip length; when called, for clips of one
            group that differ in shape, of a length without generators, or of another size than the masks are for.
    """

    def __init__(self, mask_generators: Generators | dict[int, Generators], draws_per_step: int | None = None):
        self.has_groups = isinstance(mask_generators, dict)
        by_length = mask_generators if self.has_groups else {None: mask_generators}
        if not by_length or not all(len(generators) for generators in by_length.values()):
            raise ValueError(f"Every clip length needs at least one mask generator, got {mask_generators}.")
        lengths = {generator.clip_size[0] for generators in by_length.values() for generator in generators}
        if not self.has_groups and len(lengths) > 1:
            raise ValueError(
                f"The mask generators are for clips of {sorted(lengths)} frames; to mix lengths, give a dict with a "
                "list of generators for each."
            )
        if not self.has_groups:
            by_length = {lengths.pop(): mask_generators}
        for length, generators in by_length.items():
            wrong = [generator.clip_size[0] for generator in generators if generator.clip_size[0] != length]
            if wrong:
                raise ValueError(f"A mask generator for {wrong[0]} frames was given for clips of {length}.")
        self.mask_generators = {length: list(generators) for length, generators in by_length.items()}
        self.draws_per_step = draws_per_step

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        draws, clips = draws_of(samples), tensors_of(samples, "pixel_values_videos")
        samples = [
            {"pixel_values_videos": clip, "draw": draw} for clip, draw in zip(clips, draws.tolist(), strict=True)
        ]
        step = int(draws[0]) // (self.draws_per_step or len(samples))
        members: dict[int, list[dict[str, Any]]] = {length: [] for length in self.mask_generators}
        for sample in samples:
            length = sample["pixel_values_videos"].shape[-4]
            if length not in members:
                raise ValueError(
                    f"A clip has {length} frames, but there are mask generators for {list(members)}; sample clips of "
                    "one of these lengths, or give `mask_generators` for it."
                )
            members[length].append(sample)
        groups = [self._group(length, group, step) for length, group in members.items() if group]
        batch = {name: [group[name] for group in groups] for name in groups[0]}
        return batch if self.has_groups else {name: values[0] for name, values in batch.items()}

    def _group(self, length: int, samples: list[dict[str, Any]], step: int) -> dict[str, Any]:
        shapes = {tuple(sample["pixel_values_videos"].shape) for sample in samples}
        if len(shapes) > 1:
            raise ValueError(
                f"Clips of {length} frames must have one shape, got {sorted(shapes)}; resize or crop them."
            )
        clips = torch.stack([sample["pixel_values_videos"] for sample in samples])
        draws = torch.tensor([sample["draw"] for sample in samples])
        masks = []
        for generator in self.mask_generators[length]:
            if generator.clip_size[1:] != tuple(clips.shape[-2:]):
                raise ValueError(
                    f"The masks are for frames of {generator.clip_size[1:]} pixels (height, width), the clips have "
                    f"{tuple(clips.shape[-2:])}; make the mask generators with the `image_size` of the transform."
                )
            masks.append(generator.at(draws, step))
        repeats = 1
        if clips.ndim == 6:
            repeats = clips.shape[1]
            clips = clips.transpose(0, 1).flatten(0, 1)
        return {
            "pixel_values_videos": clips,
            "context_mask": [context.repeat(repeats, 1) for context, _ in masks],
            "target_mask": [target.repeat(repeats, 1) for _, target in masks],
        }
