import sys

import pytest
import torch

from hf_jepa.visualization._figure import (
    HIDDEN,
    check_grid,
    check_images,
    check_mask,
    new_figure,
    outline,
    patch_map,
    show_only,
)


def test_show_only_keeps_exactly_the_named_patches():
    image = torch.rand(12, 20, 3) * 0.5
    kept = show_only(image, patch_map(torch.tensor([0, 7, 14]), (3, 5)))
    for row in range(3):
        for column in range(5):
            window = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            expected = image[window] if row * 5 + column in (0, 7, 14) else torch.tensor(HIDDEN).expand(4, 4, 3)
            torch.testing.assert_close(kept[window], expected)


def test_fading_mixes_the_hidden_colour_with_the_image():
    image = torch.rand(4, 4, 3)
    faded = show_only(image, patch_map(torch.tensor([3]), (2, 2)), fade=0.25)
    torch.testing.assert_close(faded[2:, 2:], image[2:, 2:])
    torch.testing.assert_close(faded[:2], 0.75 * image[:2] + 0.25 * torch.tensor(HIDDEN))


def test_outline_is_the_border_between_inside_and_outside():
    axis = new_figure(1, 1).subplots()
    # An L of three patches on a 2 x 3 grid of 10 x 20 pixel patches: 8 unit edges.
    outline(axis, patch_map(torch.tensor([0, 3, 4]), (2, 3)), (20, 60), "red")
    segments = {tuple(map(tuple, s.tolist())) for s in axis.collections[0].get_segments()}
    assert segments == {
        ((0, 0), (20, 0)),
        ((20, 0), (20, 10)),
        ((20, 10), (40, 10)),
        ((40, 10), (40, 20)),
        ((0, 20), (20, 20)),
        ((20, 20), (40, 20)),
        ((0, 0), (0, 10)),
        ((0, 10), (0, 20)),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_rgb_in_the_unit_range(channels):
    pixels = torch.randint(0, 256, (2, channels, 4, 6), dtype=torch.uint8)
    expected = (pixels.float() / 255).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    torch.testing.assert_close(check_images(pixels), expected)
    torch.testing.assert_close(check_images(pixels.float() / 255), expected)
    stretched = check_images((pixels.float() / 255 - 0.4) / 0.2)
    assert stretched.amin() == 0
    assert stretched.amax() == 1


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 2, 4, 4), torch.zeros(3, 4, 4), torch.zeros(0, 3, 4, 4), torch.full((1, 1, 4, 4), torch.nan)],
)
def test_bad_images_are_refused(images):
    with pytest.raises(ValueError, match="`images`"):
        check_images(images)


def test_bad_grids_and_masks_are_refused():
    images = torch.zeros(2, 12, 20, 3)
    assert check_grid((3, 5), images) == (3, 5)
    with pytest.raises(ValueError, match=r"\(5, 5\) does not divide images of 12 x 20"):
        check_grid(5, images)
    with pytest.raises(ValueError, match="outside the 15 patches"):
        check_mask(torch.tensor([[0, 15], [1, 2]]), 2, 15, "mask")
    for mask in (torch.zeros(2, 3), torch.zeros(1, 3, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long), [[0]]):
        with pytest.raises(ValueError, match=r"`mask` must be integer patch indices of shape \(2, K\)"):
            check_mask(mask, 2, 15, "mask")


def test_missing_matplotlib_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"hf-jepa\[viz\]"):
        new_figure(1, 1)
