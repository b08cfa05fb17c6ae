"""Block-wise masks: the released draws, exact counts, exact replay, errors."""

import random

import pytest
import torch

from hf_jepa.data import MaskCollator
from hf_jepa.masking import BlockwiseMaskGenerator, masked_indices, visible_indices


def as_boolean(mask: torch.Tensor, tokens: int = 196) -> torch.Tensor:
    return torch.zeros(len(mask), tokens, dtype=torch.bool).scatter_(1, mask, True)


def test_reference_reproduces_the_released_draws():
    random.seed(0)
    (mask,) = BlockwiseMaskGenerator(224, 16)(batch_size=3)
    hidden = as_boolean(mask)
    assert hidden.sum(1).tolist() == [118, 120, 119]
    assert hidden[0].view(14, 14).sum(1).tolist() == [4, 8, 8, 8, 4, 7, 7, 7, 10, 11, 11, 11, 11, 11]
    # Batches continue one stream, as images of the released dataset do.
    random.seed(0)
    generator = BlockwiseMaskGenerator(224, 16)
    assert [int(as_boolean(generator(1)[0]).sum()) for _ in range(3)] == [118, 120, 119]


def test_reference_counts_are_those_measured():
    random.seed(0)
    (mask,) = BlockwiseMaskGenerator(224, 16)(batch_size=1000)
    counts = as_boolean(mask).sum(1)
    assert float(counts.float().mean()) == pytest.approx(119.5, abs=0.1)
    assert float((counts == 120).float().mean()) == pytest.approx(0.7, abs=0.05)
    assert counts.min() >= 105
    assert counts.max() == 120


@pytest.mark.parametrize("mode", ["reference", "balanced"])
def test_masks_depend_on_seed_and_draw_alone(mode):
    generator = BlockwiseMaskGenerator(224, 16, mode=mode, seed=3)
    draws = torch.arange(100, 124)
    random.seed(1)
    before = random.getstate()
    (whole,) = generator.at(draws, step=0)
    assert random.getstate() == before
    parts = [as_boolean(generator.at(part, step=9)[0]) for part in draws.split(7)]
    assert torch.equal(as_boolean(whole), torch.cat(parts))
    assert torch.equal(whole.sort(1).values, whole)
    other = BlockwiseMaskGenerator(224, 16, mode=mode, seed=4).at(draws, step=0)[0]
    assert not torch.equal(as_boolean(whole), as_boolean(other))
    assert len(as_boolean(whole).unique(dim=0)) == len(draws)


@pytest.mark.parametrize(
    ("size", "options", "count"),
    [
        (224, {}, 120),
        (28, {"num_masked": 30, "min_block": 4}, 30),
        (28, {"num_masked": 48, "min_block": 4}, 48),
        ((28, 56), {"min_block": 5, "max_block": 6}, 60),
        # Blocks of 15 patches and aspect 1 round to 4 x 4: each one is too large and has to be cut.
        (28, {"num_masked": 20, "min_block": 15, "max_block": 15, "aspect_ratio": (1.0, 1.0)}, 20),
    ],
)
def test_balanced_masks_exactly_what_is_asked(size, options, count):
    generator = BlockwiseMaskGenerator(size, 16 if size == 224 else 4, mode="balanced", **options)
    (mask,) = generator(batch_size=64)
    assert mask.shape == (64, count)
    assert (mask[:, 1:] > mask[:, :-1]).all()
    tokens = generator.grid_size[0] * generator.grid_size[1]
    assert mask.min() >= 0
    assert mask.max() < tokens
    again = BlockwiseMaskGenerator(size, 16 if size == 224 else 4, mode="balanced", **options)
    assert torch.equal(again.at(torch.arange(64), 0)[0], mask)
    assert not torch.equal(generator(batch_size=64)[0], mask)


def test_balanced_masks_reach_every_place_alike():
    (mask,) = BlockwiseMaskGenerator(224, 16, mode="balanced")(batch_size=600)
    frequency = as_boolean(mask).float().mean(0).view(14, 14)
    # Corners, which fewer blocks cover, are rare but not left out.
    assert frequency.min() > 0.03
    # Cutting at a random side leaves no side behind.
    for flipped in (frequency.flip(0), frequency.flip(1), frequency.T):
        assert (frequency - flipped).abs().mean() < 0.04


def test_masks_come_in_blocks():
    (mask,) = BlockwiseMaskGenerator(224, 16, mode="balanced")(batch_size=64)
    hidden = as_boolean(mask).view(-1, 14, 14)
    alike = (hidden[:, 1:] == hidden[:, :-1]).float().mean()
    # Patches masked one by one at this ratio would agree with their neighbour in 52.5 % of places.
    assert alike > 0.75


def test_collator_makes_target_masks_alone():
    samples = [{"pixel_values": torch.zeros(3, 224, 224), "draw": draw} for draw in range(5, 9)]
    batch = MaskCollator(BlockwiseMaskGenerator(224, 16, mode="balanced"))(samples)
    assert set(batch) == {"pixel_values", "target_mask"}
    assert batch["target_mask"][0].shape == (4, 120)
    alone = MaskCollator(BlockwiseMaskGenerator(224, 16, mode="balanced"))(samples[2:3])
    assert torch.equal(alone["target_mask"][0], batch["target_mask"][0][2:3])


def test_indices_and_back():
    hidden = torch.tensor([[True, False, True, False], [False, False, False, True]])
    mask = masked_indices(hidden)
    assert mask.tolist() == [[0, 2], [3, 3]]
    assert visible_indices(mask, 4).tolist() == [[1, 3, 3], [0, 1, 2]]
    assert torch.equal(as_boolean(mask, 4), hidden)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.bool), "at least one masked token"),
        (torch.ones(2, 4), "boolean"),
        (torch.ones(4, dtype=torch.bool), "boolean of shape"),
    ],
)
def test_bad_boolean_masks(mask, message):
    with pytest.raises(ValueError, match=message):
        masked_indices(mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 220}, "divisible"),
        ({"mode": "legacy"}, "`mode`"),
        ({"num_masked": 196}, "between 1 and 195"),
        ({"num_masked": 0}, "between 1 and 195"),
        ({"min_block": 0}, "`min_block`"),
        ({"min_block": 30, "max_block": 20}, "`max_block`"),
        ({"aspect_ratio": (2.0, 1.0)}, "ascending"),
        ({"aspect_ratio": (0.0, 1.0)}, "ascending"),
        ({"image_size": 64}, "lower `min_block`"),
        ({"min_block": 196}, "lower `min_block`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockwiseMaskGenerator(**{"image_size": 224, "patch_size": 16, **arguments})


def test_empty_batch():
    with pytest.raises(ValueError, match="`batch_size`"):
        BlockwiseMaskGenerator(224, 16)(0)
