"""Masks of clips over time, as a picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_jepa.masking import LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator
from hf_jepa.visualization import plot_clip_masks


def masks_of(size: int = 48) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generators = [
        MultiBlock3DMaskGenerator(size, 8, num_frames=8, mode="balanced", **recipe)
        for recipe in (SHORT_RANGE, LONG_RANGE)
    ]
    contexts, targets = zip(*(generator(2) for generator in generators), strict=True)
    return list(contexts), list(targets)


def test_the_picture_has_a_strip_for_the_clip_and_two_for_every_pair(tmp_path):
    clip = torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    path = plot_clip_masks(clip, *masks_of(), (4, 6, 6), tmp_path / "masks.png")
    one = plot_clip_masks(clip, *(masks[:1] for masks in masks_of()), (4, 6, 6), tmp_path / "one.png")
    with Image.open(path) as two_pairs, Image.open(one) as one_pair:
        assert two_pairs.height > 1.4 * one_pair.height
        assert abs(two_pairs.width - one_pair.width) < 0.02 * two_pairs.width


def test_hidden_tubes_are_pale_in_the_context_strip_and_only_there(tmp_path):
    clip = torch.zeros(2, 3, 16, 16)
    context, target = torch.tensor([[0, 1]]), torch.tensor([[2, 3]])
    path = plot_clip_masks(clip, [context], [target], (1, 2, 2), tmp_path / "masks.png")
    with Image.open(path) as picture:
        pixels = torch.tensor(np.asarray(picture.convert("RGB")), dtype=torch.int64)
    assert (pixels.sum(-1) == 0).float().mean() > 0.2
    assert ((pixels.float() - pixels.float().mean(-1, keepdim=True)).abs().amax(-1) > 5).any()


@pytest.mark.parametrize(
    ("grid", "message"),
    [((4, 6, 6), "outside the 144"), ((3, 6, 6), "do not divide clips of 8"), ((4, 5, 6), "does not divide images")],
)
def test_masks_of_another_grid_are_refused(tmp_path, grid, message):
    contexts, targets = masks_of()
    contexts[0][0, 0] = 144
    with pytest.raises(ValueError, match=message):
        plot_clip_masks(torch.rand(8, 3, 48, 48), contexts, targets, grid, tmp_path / "masks.png")


def test_masks_that_do_not_pair_up_are_refused(tmp_path):
    contexts, targets = masks_of()
    with pytest.raises(ValueError, match="as many context as target masks, got 2 and 1"):
        plot_clip_masks(torch.rand(8, 3, 48, 48), contexts, targets[:1], (4, 6, 6), tmp_path / "masks.png")
