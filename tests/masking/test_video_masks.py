"""Masks of clips: the official draws bit for bit, and the balanced mode's promises."""

import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.masking import IMAGE_BLOCKS, LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator, TubeMaskGenerator

GOLDEN = Path(__file__).parents[1] / "golden"
RECIPES = {"short": SHORT_RANGE, "long": LONG_RANGE}
MODES = ("reference", "balanced")

# Mean share of the tokens that the official collator keeps (context, target), by image size, frames and batch size.
KEPT = {
    (256, 16, 24): {"short": (0.245, 0.471), "long": (0.064, 0.704)},
    (256, 64, 12): {"short": (0.266, 0.490), "long": (0.078, 0.713)},
    (256, 16, 1): {"short": (0.381, 0.619), "long": (0.189, 0.811)},
}


def hidden_places(mask: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Masks `(batch, kept)` as booleans `(batch, time, rows, columns)`."""
    return torch.zeros(len(mask), math.prod(grid), dtype=torch.bool).scatter_(1, mask, True).view(-1, *grid)


def test_reference_equals_the_recorded_run():
    config = json.loads((GOLDEN / "vjepa_masks.json").read_text())
    golden = load_file(GOLDEN / "vjepa_masks.safetensors")
    generators = {name: MultiBlock3DMaskGenerator(224, 16, **recipe) for name, recipe in RECIPES.items()}
    torch.manual_seed(config["config"]["global_seed"])
    included = {name: [torch.zeros(8, 14, 14), torch.zeros(8, 14, 14)] for name in RECIPES}
    batches = 100
    for batch in range(batches):
        for name, generator in generators.items():
            masks = generator(24)
            for mask, kind, counts in zip(masks, ("context", "target"), included[name], strict=True):
                recorded = golden[f"vitl16_224/{name}/n_{kind}"][batch]
                assert mask.shape == (24, recorded)
                if batch == 0:
                    assert torch.equal(mask[:4], golden[f"vitl16_224/{name}/example_{kind}"].long())
                counts += hidden_places(mask, (8, 14, 14)).sum(0) / (24 * batches)
    for name in RECIPES:
        for kind, counts in zip(("context", "target"), included[name], strict=True):
            recorded = config["statistics"][f"vitl16_224/{name}"][f"{kind}_inclusion_by_time"]
            assert counts.mean(dim=(1, 2)).tolist() == pytest.approx(recorded, abs=0.03)
            assert (counts - golden[f"vitl16_224/{name}/{kind}_inclusion"]).abs().mean() < 0.015


@pytest.mark.parametrize("name", RECIPES)
def test_every_recorded_block_size(name):
    recorded = load_file(GOLDEN / "vjepa_masks.safetensors")[f"vitl16_224/{name}/block_thw"]
    generator = MultiBlock3DMaskGenerator(224, 16, **RECIPES[name])
    for counter, expected in enumerate(recorded.tolist()):
        draws = torch.Generator().manual_seed(counter)
        assert list(generator._reference_size(*(torch.rand(1, generator=draws).item() for _ in range(3)))) == expected


def test_halves_are_rounded_to_even_as_in_the_original():
    generator = MultiBlock3DMaskGenerator(40, 8, spatial_scale=(0.2, 0.2), aspect_ratio=(1.25, 1.25))
    # Five patches, and an edge of exactly 2.5.
    assert generator._reference_size(0.3, 0.5, 0.9) == (8, 2, 2)


@pytest.mark.parametrize("size", KEPT)
@pytest.mark.parametrize("name", RECIPES)
def test_reference_keeps_the_measured_shares(size, name):
    image_size, num_frames, batch_size = size
    generator = MultiBlock3DMaskGenerator(image_size, 16, num_frames, **RECIPES[name])
    torch.manual_seed(0)
    batches = 60 if batch_size > 1 else 2000
    masks = [generator(batch_size) for _ in range(batches)]
    kept = [np.mean([pair[side].shape[1] for pair in masks]) / math.prod(generator.grid_size) for side in (0, 1)]
    assert kept == pytest.approx(KEPT[size][name], abs=0.01)


def test_reference_masks_of_images_keep_the_measured_shares():
    generator = MultiBlock3DMaskGenerator(256, 16, **IMAGE_BLOCKS)
    torch.manual_seed(0)
    kept = np.mean([[mask.shape[1] for mask in generator(72)] for _ in range(60)], axis=0) / 256
    assert kept.tolist() == pytest.approx([0.161, 0.499], abs=0.01)


def test_reference_by_hand_with_scales_that_vary():
    """The steps of the original, written out once more with sets."""
    generator = MultiBlock3DMaskGenerator(
        (48, 80), 8, 12, 2, 3, (0.1, 0.4), (0.3, 0.9), (0.5, 2.0), max_temporal_keep=0.7, max_keep=20
    )
    torch.manual_seed(3)
    found = [generator(5) for _ in range(6)]
    torch.manual_seed(3)
    for counter, (context_mask, target_mask) in enumerate(found):
        draws = torch.Generator().manual_seed(counter)
        u = [torch.rand(1, generator=draws).item() for _ in range(3)]
        length, area, aspect = max(1, int(6 * (0.3 + u[0] * (0.9 - 0.3)))), int(60 * (0.1 + u[1] * (0.4 - 0.1))), 0.5
        aspect += u[2] * (2.0 - 0.5)
        height, width = min(6, round(math.sqrt(area * aspect))), min(10, round(math.sqrt(area / aspect)))
        contexts, targets = [], []
        for _ in range(5):
            hidden = {(t, y, x) for t in range(4, 6) for y in range(6) for x in range(10)}
            for _ in range(3):
                top, left, start = (
                    int(torch.randint(0, most + 1, (1,))) for most in (6 - height, 10 - width, 6 - length)
                )
                hidden |= {
                    (t, y, x)
                    for t in range(start, start + length)
                    for y in range(top, top + height)
                    for x in range(left, left + width)
                }
            numbers = sorted(60 * t + 10 * y + x for t, y, x in hidden)
            targets.append(numbers)
            contexts.append(sorted(set(range(360)) - set(numbers)))
        context_length = min(20, *map(len, contexts))
        assert context_mask.tolist() == [tokens[:context_length] for tokens in contexts]
        assert target_mask.tolist() == [tokens[: min(map(len, targets))] for tokens in targets]


@pytest.mark.parametrize("mode", MODES)
def test_complements_and_inverse(mode):
    def masks(**options):
        torch.manual_seed(0)
        generator = MultiBlock3DMaskGenerator(64, 8, 8, 2, num_blocks=3, mode=mode, **options)
        return generator, generator(6)

    for options in ({}, {"temporal_scale": (0.5, 0.5)}):
        for option, cut in (("full_complement", 0), ("pred_full_complement", 1)):
            _, (context, target) = masks(**options, **{option: True})
            together = torch.cat([context, target], dim=1).sort(dim=1).values
            assert torch.equal(together, torch.arange(256).expand(6, -1))
            if mode == "reference":
                plain = masks(**options)[1]
                assert torch.equal((context, target)[cut], plain[cut])
    generator, (context, target) = masks(inv_block=True)
    if mode == "reference":
        plain = masks()[1]
        assert torch.equal(context, plain[1])
        assert torch.equal(target, plain[0])
    else:
        kept = generator._kept_units(generator._balanced_size(*_draws_of(generator, 0)))
        assert [target.shape[1], context.shape[1]] == [4 * length for length in kept]
        assert not (hidden_places(context, (4, 8, 8)) & hidden_places(target, (4, 8, 8))).any()


@pytest.mark.parametrize("mode", MODES)
def test_the_context_ends_where_it_is_told_to(mode):
    torch.manual_seed(0)
    generator = MultiBlock3DMaskGenerator(64, 8, 8, 2, 3, max_temporal_keep=0.5, mode=mode)
    context, target = generator(4)
    assert context.max() < 2 * 64
    assert target.max() >= 2 * 64
    capped = MultiBlock3DMaskGenerator(64, 8, 8, 2, 3, max_keep=1, mode=mode)
    assert capped(4)[0].shape == (4, 1)
    assert len(capped(1)[0]) == 1


def test_reference_at_leaves_the_global_generator_alone():
    generator = MultiBlock3DMaskGenerator(64, 8, 4)
    before = torch.get_rng_state()
    first = generator.at(torch.arange(4), 3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    again = generator.at(torch.arange(4), 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.fixture(params=RECIPES)
def balanced(request) -> MultiBlock3DMaskGenerator:
    return MultiBlock3DMaskGenerator(224, 16, mode="balanced", seed=5, **RECIPES[request.param])


def test_balanced_masks_are_tubes_that_do_not_meet(balanced):
    lengths = {}
    for step in range(40):
        context, target = balanced.at(torch.arange(24) + 24 * step, step)
        assert context.dtype == target.dtype == torch.int64
        for mask in (context, target):
            assert (mask.diff(dim=1) > 0).all()
            places = hidden_places(mask, balanced.grid_size)
            assert torch.equal(places, places[:, :1].expand(-1, 8, -1, -1))
        seen, asked = (hidden_places(mask, balanced.grid_size) for mask in (context, target))
        assert not (seen & asked).any()
        size = balanced._balanced_size(*_draws_of(balanced, step))
        lengths.setdefault(size, set()).add((context.shape[1], target.shape[1]))
    # Block sizes differ from step to step, and decide how much is kept.
    assert len(lengths) > 2
    assert all(len(found) == 1 for found in lengths.values())


def _draws_of(generator: MultiBlock3DMaskGenerator, step: int) -> list[float]:
    from hf_jepa.masking.video import _size_draws

    return _size_draws(generator._key, 0)[step]


def test_balanced_keeps_more_than_the_reference_and_every_time_alike(balanced):
    name = "short" if balanced.num_blocks == 8 else "long"
    reference = json.loads((GOLDEN / "vjepa_masks.json").read_text())["statistics"][f"vitl16_224/{name}"]
    shares = np.mean([[m.shape[1] for m in balanced.at(torch.arange(24), s)] for s in range(200)], axis=0) / 1568
    assert reference["mean_context_ratio"] < shares[0] < 1.6 * reference["mean_context_ratio"]
    assert reference["mean_target_ratio"] < shares[1] < 1.2 * reference["mean_target_ratio"]


def test_balanced_targets_are_unions_of_blocks():
    generator = MultiBlock3DMaskGenerator(96, 8, 4, mode="balanced", num_blocks=1, pred_full_complement=True)
    for step in range(20):
        _, target = generator.at(torch.arange(8) + 8 * step, step)
        _, height, width = generator._balanced_size(*_draws_of(generator, step))
        for places in hidden_places(target, (2, 12, 12))[:, 0]:
            rows, columns = places.any(1).nonzero(), places.any(0).nonzero()
            assert places.sum() == height * width
            assert rows.max() - rows.min() + 1 == height
            assert columns.max() - columns.min() + 1 == width


def test_balanced_places_are_uniform():
    generator = MultiBlock3DMaskGenerator(64, 8, 8, 2, 1, (0.25, 0.25), (0.5, 0.5), (1, 1), mode="balanced")
    firsts = torch.cat([generator.at(torch.arange(500) + 500 * step, step)[1][:, 0] for step in range(30)])
    corners = torch.bincount(firsts, minlength=256).view(4, 8, 8)
    assert corners[3:].sum() == corners[:, 5:].sum() == corners[:, :, 5:].sum() == 0
    # 15,000 draws over 75 places: 200 each, give or take 14.
    assert corners[:3, :5, :5].min() > 140
    assert corners.max() < 260


def test_the_cut_prefers_no_token():
    generator = MultiBlock3DMaskGenerator(64, 8, 2, mode="balanced")
    members = torch.rand(1, 64, generator=torch.Generator().manual_seed(0)).argsort()[:, :29]
    places = hidden_places(members, (1, 8, 8)).view(1, 1, 64).expand(4000, -1, -1).numpy()
    random = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)
    kept = generator._spread(places, np.full(4000, 29), 17, random)
    counts = kept.flatten().bincount(minlength=64).numpy()
    assert set(np.flatnonzero(counts)) == set(members[0].tolist())
    np.testing.assert_allclose(counts[counts > 0] / 4000, 17 / 29, atol=0.03)
    # Everything is kept where nothing has to go.
    assert generator._spread(places[:2], np.full(2, 29), 29, random[:2]).tolist() == [sorted(members[0].tolist())] * 2


def test_balanced_blocks_shorter_than_the_clip_starve_no_time():
    options = {"num_blocks": 6, "spatial_scale": (0.3, 0.3), "temporal_scale": (0.25, 0.5)}
    shares = {}
    for mode in MODES:
        generator = MultiBlock3DMaskGenerator(64, 8, 16, 2, mode=mode, **options)
        torch.manual_seed(0)
        total = torch.zeros(8)
        for _ in range(60):
            context, target = generator(24)
            assert not (hidden_places(context, (8, 8, 8)) & hidden_places(target, (8, 8, 8))).any()
            total += hidden_places(context, (8, 8, 8)).float().mean(dim=(0, 2, 3))
        shares[mode] = total / 60
    # Blocks reach the ends of the clip less often: there is more to see there, at both ends alike.
    torch.testing.assert_close(shares["balanced"], shares["balanced"].flip(0), atol=0.03, rtol=0)
    assert shares["balanced"].min() > 0.4 * shares["balanced"].max()
    assert shares["reference"][-1] < 0.4 * shares["reference"][0]


@pytest.mark.parametrize("mode", MODES)
def test_exact_replay_by_draw(mode):
    generator = MultiBlock3DMaskGenerator(64, 8, 8, mode=mode, seed=1)
    first = generator.at(torch.arange(8), 4)
    # Workers get a copy, pickled where processes are spawned.
    for other in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator)), generator):
        assert all(torch.equal(a, b) for a, b in zip(first, other.at(torch.arange(8), 4), strict=True))
    other = MultiBlock3DMaskGenerator(64, 8, 8, mode=mode, seed=2).at(torch.arange(8), 4)
    assert first[1].shape != other[1].shape or not torch.equal(first[1], other[1])


def test_balanced_does_not_depend_on_how_a_step_is_split(balanced):
    whole = balanced.at(torch.arange(100, 116), 9)
    for rank in range(2):
        for mask, part in zip(whole, balanced.at(torch.arange(100 + rank, 116, 2), 9), strict=True):
            assert torch.equal(part, mask[rank::2])


def test_balanced_call_counts_batches(balanced):
    first, second = balanced(4), balanced(4)
    assert torch.equal(second[0], balanced.at(torch.arange(4, 8), 1)[0])
    assert first[1].shape != second[1].shape or not torch.equal(first[1], second[1])


def test_recipes_share_their_aspect_in_the_reference_only():
    """Seeds 0, 1, 2, ... for every recipe: tall blocks come together."""
    heights = {}
    for mode in MODES:
        generators = [MultiBlock3DMaskGenerator(512, 8, mode=mode, **recipe) for recipe in RECIPES.values()]
        shapes = []
        for step in range(200):
            if mode == "reference":
                draws = torch.Generator().manual_seed(step)
                u = [torch.rand(1, generator=draws).item() for _ in range(3)]
                shapes.append([g._reference_size(*u)[1] for g in generators])
            else:
                shapes.append([g._balanced_size(*_draws_of(g, step))[1] for g in generators])
        heights[mode] = np.corrcoef(np.array(shapes).T)[0, 1]
    assert heights["reference"] > 0.99
    assert abs(heights["balanced"]) < 0.2
    # Nor do clips of another length.
    lengths = [MultiBlock3DMaskGenerator(64, 8, frames, mode="balanced") for frames in (4, 8)]
    assert _draws_of(lengths[0], 0) != _draws_of(lengths[1], 0)


@pytest.mark.parametrize("mode", MODES)
def test_placements_without_context_are_drawn_again(mode):
    """On four by four patches, half of the placements of two long-range blocks hide everything."""
    generator = MultiBlock3DMaskGenerator(16, 4, 4, mode=mode, **LONG_RANGE)
    torch.manual_seed(0)
    for step in range(30):
        context, target = generator(16) if mode == "reference" else generator.at(torch.arange(16) + 16 * step, step)
        assert context.shape[1] >= 2
        assert target.shape[1] >= 12
        assert not (hidden_places(context, (2, 4, 4)) & hidden_places(target, (2, 4, 4))).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 225}, "divisible by the patch size"),
        ({"num_frames": 15}, "15 frames.*divisible by the tubelet size 2"),
        ({"num_frames": 0}, "0 frames"),
        ({"spatial_scale": (0.2, 0.1)}, "spatial_scale"),
        ({"temporal_scale": (0.5, 1.5)}, "temporal_scale"),
        ({"aspect_ratio": (0.0, 1.0)}, "aspect_ratio"),
        ({"num_blocks": 0}, "num_blocks 0"),
        ({"max_temporal_keep": 0.0}, "max_temporal_keep 0.0"),
        ({"max_keep": 0}, "max_keep 0"),
        ({"full_complement": True, "pred_full_complement": True}, "contradict"),
        ({"spatial_scale": (1.0, 1.0)}, r"leave no context on a grid of \(8, 14, 14\)"),
        ({"num_blocks": 4000}, "leave no context"),
        ({"image_size": 8192}, "65,535"),
    ],
)
def test_faults(mode, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiBlock3DMaskGenerator(**{"image_size": 224, "patch_size": 16, "mode": mode, **kwargs})


def test_more_faults():
    with pytest.raises(ValueError, match="would have no token"):
        MultiBlock3DMaskGenerator(32, 16)
    with pytest.raises(ValueError, match="'fixed'"):
        MultiBlock3DMaskGenerator(224, 16, mode="fixed")
    with pytest.raises(ValueError, match="batch_size"):
        MultiBlock3DMaskGenerator(224, 16)(0)


def test_reference_tubes_are_numpys_shuffles():
    generator = TubeMaskGenerator(224, 16)
    np.random.seed(4)
    context, target = generator(3)
    np.random.seed(4)
    assert context.shape == (3, 8 * 19)
    for seen, asked in zip(context, target, strict=True):
        row = np.array([0.0] * 177 + [1.0] * 19)
        np.random.shuffle(row)
        frame = np.flatnonzero(row)
        assert seen.tolist() == [196 * slot + patch for slot in range(8) for patch in frame]
        assert sorted(seen.tolist() + asked.tolist()) == list(range(1568))


@pytest.mark.parametrize("mode", MODES)
def test_tubes_by_draw(mode):
    generator = TubeMaskGenerator(64, 8, 4, ratio=0.75, mode=mode, seed=3)
    context, target = generator.at(torch.arange(2000), 0)
    assert context.shape == (2000, 32)
    assert target.shape == (2000, 96)
    again = pickle.loads(pickle.dumps(generator)).at(torch.arange(5, 9), 7)
    assert torch.equal(again[0], context[5:9])
    assert torch.equal(again[1], target[5:9])
    share = hidden_places(context, (2, 8, 8)).float().mean(0)
    assert torch.equal(share[0], share[1])
    assert share.min() > 0.2
    assert share.max() < 0.3
    if mode == "balanced":
        assert torch.equal(generator(4)[0], context[:4])
    with pytest.raises(ValueError, match="batch_size"):
        generator(0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ratio": 1.0}, "`ratio` of 1.0 leaves 0 of the 64"),
        ({"ratio": 0.0}, "leaves 64 of the 64"),
        ({"num_frames": 3}, "3 frames"),
        ({"mode": "random"}, "'random'"),
    ],
)
def test_tube_faults(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TubeMaskGenerator(**{"image_size": 64, "patch_size": 8, **kwargs})
