import numpy as np
import pytest
import torch
from PIL import Image

from hf_jepa.visualization import plot_masks, plot_retrieval
from hf_jepa.visualization._figure import HIDDEN

GREEN, FRAME = (0, 200, 0), (0, 158, 115)


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def area(pixels, color, tolerance=3):
    return int((np.abs(pixels.astype(int) - np.array(color)) <= tolerance).all(-1).sum())


def green_images(count, channels=3):
    images = torch.zeros(count, channels, 16, 24, dtype=torch.uint8)
    images[:, 1] = 200
    return images


def test_context_column_shows_exactly_the_visible_patches(tmp_path):
    # 4 x 6 patches; 8 of 24 visible, so the context column is one third image and two thirds hidden.
    context, target = torch.arange(8).unsqueeze(0), torch.tensor([[12, 13, 18, 19]])
    pixels = read(plot_masks(green_images(1), [context], [target], (4, 6), tmp_path / "masks.png"))
    thirds = np.array_split(pixels, 3, axis=1)
    whole = area(thirds[0], GREEN)
    assert whole > 10_000
    assert area(thirds[1], GREEN) / whole == pytest.approx(8 / 24, rel=0.05)
    assert area(thirds[1], [255 * c for c in HIDDEN]) / whole == pytest.approx(16 / 24, rel=0.05)
    # The outline covers part of the block's rim.
    assert 0.5 * 4 / 24 < area(thirds[2], GREEN) / whole <= 4 / 24


def test_one_row_per_image_and_one_column_per_mask(tmp_path):
    masks = torch.arange(12).expand(8, 12)
    two = read(plot_masks(green_images(8), [masks], [masks], (4, 6), tmp_path / "a.png", max_images=2))
    four = read(plot_masks(green_images(8), [masks, masks], [masks] * 3, (4, 6), tmp_path / "b.png", max_images=4))
    assert four.shape[0] > 1.5 * two.shape[0]
    assert four.shape[1] == pytest.approx(2 * two.shape[1], rel=0.02)


def test_masks_that_do_not_fit_are_refused(tmp_path):
    images, mask = green_images(2), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"target_mask\[1\]"):
        plot_masks(images, [mask], [mask, mask + 24], (4, 6), tmp_path / "m.png")
    with pytest.raises(ValueError, match="must be non-empty lists"):
        plot_masks(images, mask, [mask], (4, 6), tmp_path / "m.png")
    with pytest.raises(ValueError, match="must be non-empty lists"):
        plot_masks(images, [mask], [], (4, 6), tmp_path / "m.png")
    with pytest.raises(ValueError, match="`grid_size`"):
        plot_masks(images, [mask], [mask], 5, tmp_path / "m.png")
    assert not list(tmp_path.iterdir())


def test_only_the_correct_block_is_framed(tmp_path):
    images = green_images(6)
    query, mask = torch.tensor([2, 4]), torch.tensor([[0, 1], [6, 7]])
    missed = read(plot_retrieval(images, query, torch.tensor([[0, 1], [3, 5]]), mask, (4, 6), tmp_path / "missed.png"))
    found = read(
        plot_retrieval(
            images,
            query,
            torch.tensor([[0, 2], [3, 5]]),
            mask,
            (4, 6),
            tmp_path / "found.png",
            rank=torch.tensor([2, 9]),
        )
    )
    assert area(missed, FRAME) == 0
    rows, columns = np.nonzero((np.abs(found.astype(int) - np.array(FRAME)) <= 3).all(-1))
    assert len(rows) > 500
    assert rows.max() < 0.6 * found.shape[0]
    assert columns.min() > 0.7 * found.shape[1]


def test_hidden_block_is_cut_out_of_the_query(tmp_path):
    images, query, mask = green_images(3), torch.tensor([1]), torch.tensor([[7, 8, 13, 14]])
    whole = read(plot_retrieval(images, query, torch.tensor([[0]]), mask, (4, 6), tmp_path / "w.png"))
    part = read(
        plot_retrieval(
            images, query, torch.tensor([[0]]), mask, (4, 6), tmp_path / "p.png", context_mask=torch.arange(6)[None]
        )
    )
    first_whole, first_part = whole[:, : whole.shape[1] // 3], part[:, : part.shape[1] // 3]
    assert area(first_whole, GREEN) / area(first_part, GREEN) == pytest.approx(20 / 6, rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"query": torch.tensor([3])},
        {"query": torch.tensor([[0]])},
        {"retrieved": torch.tensor([[0, 3]])},
        {"retrieved": torch.tensor([[0], [1]])},
        {"target_mask": torch.tensor([[24]])},
        {"context_mask": torch.tensor([[-1]])},
        {"rank": torch.tensor([1, 2])},
    ],
)
def test_retrieval_that_does_not_fit_is_refused(changes, tmp_path):
    arguments = {"query": torch.tensor([0]), "retrieved": torch.tensor([[0, 1]]), "target_mask": torch.tensor([[5]])}
    with pytest.raises(ValueError, match=f"`{next(iter(changes))}`"):
        plot_retrieval(green_images(3), grid_size=(4, 6), path=tmp_path / "r.png", **{**arguments, **changes})
    assert not list(tmp_path.iterdir())
