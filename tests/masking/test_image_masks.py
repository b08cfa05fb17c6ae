"""Multi-block masks: the official draws bit for bit, and the balanced mode's promises."""

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.data import MaskCollator
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.masking.image import hashed_uniform

GOLDEN = Path(__file__).parents[1] / "golden"

# Published sums of the official collator's first two batches after torch.manual_seed(0).
FIRST_BATCHES = {
    (224, 16, 4): [(59, 17504, 36, [14184, 15444, 11772, 13140]), (74, 24710, 35, [12915, 11900, 13720, 11830])],
    (224, 14, 2): [(99, 19335, 42, [15624, 9996, 10248, 9408]), (85, 18573, 48, None)],
    (448, 16, 2): [(296, 195886, 132, [106524, 78540, 76164, 84744]), (257, 199762, 154, None)],
}


@pytest.mark.parametrize(("image_size", "patch_size", "batch_size"), FIRST_BATCHES)
def test_reference_sums(image_size, patch_size, batch_size):
    torch.manual_seed(0)
    generator = MultiBlockMaskGenerator(image_size, patch_size)
    for kept, total, target_kept, sums in FIRST_BATCHES[image_size, patch_size, batch_size]:
        context, targets = generator(batch_size)
        assert context[0].shape == (batch_size, kept)
        assert int(context[0].sum()) == total
        assert {tuple(block.shape) for block in targets} == {(batch_size, target_kept)}
        if sums:
            assert [int(block.sum()) for block in targets] == sums


@pytest.mark.parametrize(("grid", "patch_size"), [("14x14", 16), ("16x16", 14)])
def test_reference_equals_the_recorded_run(grid, patch_size):
    config = json.loads((GOLDEN / "ijepa_masks.json").read_text())["config"]
    golden = load_file(GOLDEN / "ijepa_masks.safetensors")
    torch.manual_seed(config["global_seed"])
    generator = MultiBlockMaskGenerator(224, patch_size)
    for batch in range(40):
        context, targets = generator(config["batch_size"])
        if batch == 0:
            assert torch.equal(context[0], golden[f"{grid}/example_masks_enc"])
            assert torch.equal(torch.stack(targets), golden[f"{grid}/example_masks_pred"])
        assert context[0].shape[1] == golden[f"{grid}/n_context"][batch]
        assert targets[0].shape[1] == math.prod(golden[f"{grid}/pred_block_hw"][batch].tolist())


def test_every_recorded_block_size():
    golden = load_file(GOLDEN / "ijepa_masks.safetensors")
    for grid, patch_size in (("14x14", 16), ("16x16", 14)):
        generator = MultiBlockMaskGenerator(224, patch_size)
        for counter in range(0, 2200, 7):
            draws = torch.Generator().manual_seed(counter)
            u_target, u_context = torch.rand(1, generator=draws).item(), torch.rand(1, generator=draws).item()
            target = generator._reference_size(u_target, (0.15, 0.2), (0.75, 1.5))
            context = generator._reference_size(u_context, (0.85, 1.0), (1.0, 1.0))
            assert target == tuple(golden[f"{grid}/pred_block_hw"][counter].tolist())
            assert context == tuple(golden[f"{grid}/enc_block_hw"][counter].tolist())


def test_reference_at_leaves_the_global_generator_alone():
    generator = MultiBlockMaskGenerator(224, 16)
    before = torch.get_rng_state()
    first = generator.at(torch.arange(4), 3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    again = generator.at(torch.arange(4), 3)
    assert all(torch.equal(a, b) for a, b in zip(sum(first, []), sum(again, []), strict=True))


def test_reference_gives_up_exclusions_one_by_one():
    """When targets leave no context, the official code lets the context overlap them, last block first."""
    generator = MultiBlockMaskGenerator(64, 16, target_scale=(0.5, 0.5), target_aspect_ratio=(1, 1), min_keep=4)
    context, targets = generator(16)
    assert context[0].shape[1] > 4
    overlaps = torch.isin(context[0][0], targets[-1][0]).any()
    assert overlaps


@pytest.fixture
def balanced() -> MultiBlockMaskGenerator:
    return MultiBlockMaskGenerator(224, 16, mode="balanced", seed=5)


def inclusion(generator: MultiBlockMaskGenerator, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = math.prod(generator.grid_size)
    context_count, target_count = torch.zeros(tokens), torch.zeros(tokens)
    for step in range(steps):
        context, targets = generator.at(torch.arange(64) + 64 * step, step)
        context_count += torch.bincount(torch.cat(context).flatten(), minlength=tokens)
        target_count += torch.bincount(torch.cat(targets).flatten(), minlength=tokens)
    shape = generator.grid_size
    return context_count.view(shape) / (64 * steps), target_count.view(shape) / (64 * steps)


def test_balanced_reaches_everything_and_starves_no_row(balanced):
    context, targets = inclusion(balanced, 60)
    assert targets.min() > 0
    assert targets[-1].sum() > 0.5 * targets[0].sum()
    rows = context.mean(dim=1)
    assert rows.min() > 0.5 * rows.mean()
    # Top and bottom, left and right are alike.
    torch.testing.assert_close(rows, rows.flip(0), atol=0.04, rtol=0)
    torch.testing.assert_close(context.mean(dim=0), context.mean(dim=0).flip(0), atol=0.04, rtol=0)


def test_balanced_masks_are_valid(balanced):
    lengths = {}
    for step in range(30):
        context, targets = balanced.at(torch.arange(32) + 32 * step, step)
        assert context[0].dtype == targets[0].dtype == torch.int64
        assert (context[0].diff(dim=1) > 0).all()
        assert context[0].min() >= 0
        assert max(int(block.max()) for block in targets) < 196
        hidden = torch.cat(targets, dim=1)
        assert not (context[0][:, :, None] == hidden[:, None, :]).any()
        for block in targets:
            height, width = (len(torch.unique(block[0] // 14)), len(torch.unique(block[0] % 14)))
            assert height * width == block.shape[1] > 10
            lengths.setdefault((height, width), set()).add(context[0].shape[1])
    assert len(lengths) > 3
    assert all(len(found) == 1 for found in lengths.values())


def test_balanced_context_block_moves():
    generator = MultiBlockMaskGenerator(224, 16, mode="balanced", context_scale=(0.3, 0.3), num_target_masks=1)
    context, _ = generator.at(torch.arange(64), 0)
    first_rows = {int(mask.min()) // 14 for mask in context[0]}
    assert len(first_rows) > 3


@pytest.mark.parametrize("mode", ["balanced", "reference"])
def test_exact_replay_by_draw(mode):
    generator = MultiBlockMaskGenerator(224, 16, mode=mode, seed=1)
    context, targets = generator.at(torch.arange(8), 4)
    for other in (MultiBlockMaskGenerator(224, 16, mode=mode, seed=1), generator):
        again_context, again_targets = other.at(torch.arange(8), 4)
        assert torch.equal(context[0], again_context[0])
        assert all(torch.equal(a, b) for a, b in zip(targets, again_targets, strict=True))
    assert not torch.equal(
        targets[0], MultiBlockMaskGenerator(224, 16, mode=mode, seed=2).at(torch.arange(8), 4)[1][0]
    )


def test_balanced_does_not_depend_on_how_a_step_is_split(balanced):
    whole_context, whole_targets = balanced.at(torch.arange(100, 116), 9)
    for rank in range(2):
        context, targets = balanced.at(torch.arange(100 + rank, 116, 2), 9)
        assert torch.equal(context[0], whole_context[0][rank::2])
        assert torch.equal(targets[2], whole_targets[2][rank::2])


def test_balanced_call_counts_batches(balanced):
    first, second = balanced(4), balanced(4)
    assert torch.equal(second[0][0], balanced.at(torch.arange(4, 8), 1)[0][0])
    assert not torch.equal(first[1][0], second[1][0])


def test_balanced_redraws_placements_that_leave_too_little():
    generator = MultiBlockMaskGenerator(
        40, 8, mode="balanced", target_scale=(0.3, 0.4), target_aspect_ratio=(1, 1), min_keep=1
    )
    numbers = hashed_uniform(0, 2, torch.arange(200).numpy(), generator._numbers)
    _, visible = generator._place(numbers, (3, 3))
    assert visible.sum(-1).min() < generator._context_length((3, 3))
    for step in range(20):
        context, targets = generator.at(torch.arange(200) + step * 200, step)
        assert context[0].shape[1] > 1
        assert not (context[0][:, :, None] == torch.cat(targets, dim=1)[:, None, :]).any()


@pytest.mark.parametrize("mode", ["balanced", "reference"])
def test_non_square_grids_and_two_contexts(mode):
    generator = MultiBlockMaskGenerator((96, 224), 16, mode=mode, num_context_masks=2, num_target_masks=3, min_keep=5)
    context, targets = generator(5)
    assert len(context) == 2
    assert len(targets) == 3
    assert context[0].shape == context[1].shape
    assert max(int(mask.max()) for mask in context + targets) < 6 * 14
    overlapping = MultiBlockMaskGenerator(224, 16, mode=mode, allow_overlap=True)(8)
    assert torch.isin(overlapping[0][0][0], overlapping[1][0][0]).any()


def test_hash_is_uniform_and_uncorrelated():
    values = torch.from_numpy(hashed_uniform(0, 1, torch.arange(4000).numpy(), 4))
    assert values.min() >= 0
    assert values.max() < 1
    assert torch.allclose(values.mean(0), torch.full((4,), 0.5).double(), atol=0.02)
    assert torch.allclose(values.var(0), torch.full((4,), 1 / 12).double(), atol=0.005)
    correlation = torch.corrcoef(torch.cat([values, values.roll(1, 0)], dim=1).T) - torch.eye(8)
    assert correlation.abs().max() < 0.06


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 225}, "divisible"),
        ({"mode": "fixed"}, "'fixed'"),
        ({"image_size": 4096}, "65,535"),
        ({"target_scale": (0.2, 0.1)}, "target_scale"),
        ({"context_scale": (0.5, 1.5)}, "context_scale"),
        ({"num_target_masks": 0}, "at least one mask"),
        ({"image_size": 64}, "min_keep=10"),
        ({"image_size": 64, "mode": "balanced"}, "min_keep=10"),
        ({"mode": "balanced", "num_target_masks": 40}, "context keeps only"),
    ],
)
def test_faults(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiBlockMaskGenerator(**{"image_size": 224, "patch_size": 16, **kwargs})


def test_empty_batch_is_refused(balanced):
    with pytest.raises(ValueError, match="batch_size"):
        balanced(0)


def test_collator_shares_block_sizes_within_a_step(balanced):
    collator = MaskCollator(balanced, draws_per_step=8)
    samples = [{"pixel_values": torch.full((3, 224, 224), float(draw)), "draw": draw} for draw in range(40, 48)]
    whole = collator(samples)
    parts = [collator(samples[:4]), collator(samples[4:])]
    assert whole["pixel_values"].shape == (8, 3, 224, 224)
    for name in ("context_mask", "target_mask"):
        for index, mask in enumerate(whole[name]):
            assert torch.equal(mask, torch.cat([part[name][index] for part in parts]))
    with pytest.raises(ValueError, match="one shape"):
        collator([samples[0], {"pixel_values": torch.zeros(3, 8, 8), "draw": 41}])


def test_generators_can_be_sent_to_spawned_workers():
    generator = MultiBlockMaskGenerator(224, 16, mode="balanced", seed=3)
    copied = pickle.loads(pickle.dumps(generator))
    draws = torch.arange(4)
    for ours, theirs in zip(generator.at(draws, 5), copied.at(draws, 5), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
