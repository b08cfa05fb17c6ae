import pytest
import torch

from hf_jepa.data import VideoMaskCollator
from hf_jepa.masking import IMAGE_BLOCKS, LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator, TubeMaskGenerator


def recipes(num_frames: int = 4, mode: str = "balanced") -> list[MultiBlock3DMaskGenerator]:
    return [MultiBlock3DMaskGenerator(64, 8, num_frames, mode=mode, **recipe) for recipe in (SHORT_RANGE, LONG_RANGE)]


def clip(draw: int, num_frames: int = 4, size: int = 64) -> dict[str, object]:
    return {"pixel_values_videos": torch.full((num_frames, 3, size, size), float(draw)), "draw": draw}


def images() -> list[MultiBlock3DMaskGenerator]:
    return [MultiBlock3DMaskGenerator(64, 8, mode="balanced", **IMAGE_BLOCKS)]


@pytest.mark.parametrize("as_dict", [False, True])
def test_one_pair_of_masks_per_recipe(as_dict):
    generators = recipes()
    collator = VideoMaskCollator({4: generators} if as_dict else generators, draws_per_step=8)
    batch = collator([clip(draw) for draw in range(40, 48)])
    if as_dict:
        assert all(len(value) == 1 for value in batch.values())
        batch = {name: value[0] for name, value in batch.items()}
    assert batch["pixel_values_videos"].shape == (8, 4, 3, 64, 64)
    for index, generator in enumerate(generators):
        context, target = generator.at(torch.arange(40, 48), 5)
        assert torch.equal(batch["context_mask"][index], context)
        assert torch.equal(batch["target_mask"][index], target)
    assert batch["context_mask"][0].shape[1] > batch["context_mask"][1].shape[1]


def test_a_step_can_be_split():
    collator = VideoMaskCollator(recipes(), draws_per_step=8)
    whole = collator([clip(draw) for draw in range(8, 16)])
    parts = [collator([clip(draw) for draw in draws]) for draws in (range(8, 12), range(12, 16))]
    for name in ("context_mask", "target_mask"):
        for index, mask in enumerate(whole[name]):
            assert torch.equal(mask, torch.cat([part[name][index] for part in parts]))


def test_clips_of_several_lengths_make_groups():
    by_length = {1: images(), 4: recipes(4), 8: recipes(8)}
    collator = VideoMaskCollator(by_length, draws_per_step=6)
    samples = [clip(draw, frames) for draw, frames in zip(range(12, 18), (8, 1, 4, 8, 1, 4), strict=True)]
    batch = collator(samples)
    # In the order of the dict, whatever the order of the samples.
    assert [tuple(group.shape[:2]) for group in batch["pixel_values_videos"]] == [(2, 1), (2, 4), (2, 8)]
    assert [group[:, 0, 0, 0, 0].tolist() for group in batch["pixel_values_videos"]] == [[13, 16], [14, 17], [12, 15]]
    assert [len(group) for group in batch["context_mask"]] == [1, 2, 2]
    context, target = by_length[8][1].at(torch.tensor([12, 15]), 2)
    assert torch.equal(batch["context_mask"][2][1], context)
    assert torch.equal(batch["target_mask"][2][1], target)
    assert batch["target_mask"][0][0].max() < 64

    without_images = collator([clip(12, 8), clip(13, 4)])
    assert [group.shape[1] for group in without_images["pixel_values_videos"]] == [4, 8]


def test_several_clips_of_a_sample_share_their_masks():
    collator = VideoMaskCollator([*recipes(), TubeMaskGenerator(64, 8, 4)])
    samples = [
        {"pixel_values_videos": torch.stack([torch.full((4, 3, 64, 64), 10.0 * i + n) for n in range(2)]), "draw": i}
        for i in range(3)
    ]
    batch = collator(samples)
    assert batch["pixel_values_videos"].shape == (6, 4, 3, 64, 64)
    assert batch["pixel_values_videos"][:, 0, 0, 0, 0].tolist() == [0, 10, 20, 1, 11, 21]
    for mask in batch["context_mask"] + batch["target_mask"]:
        assert len(mask) == 6
        assert torch.equal(mask[:3], mask[3:])


def test_clips_that_do_not_fit_are_named():
    collator = VideoMaskCollator(recipes())
    with pytest.raises(ValueError, match=r"A clip has 6 frames, but there are mask generators for \[4\]"):
        collator([clip(0), clip(1, 6)])
    with pytest.raises(ValueError, match="4 frames must have one shape"):
        collator([clip(0), clip(1, size=32)])
    with pytest.raises(ValueError, match=r"for frames of \(64, 64\).*\(32, 32\)"):
        collator([clip(0, size=32)])
    with pytest.raises(ValueError, match=r"2 frames.*\[4, 8\]"):
        VideoMaskCollator({4: recipes(4), 8: recipes(8)})([clip(0), clip(1, 2)])


def test_generators_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\[4, 8\] frames.*dict"):
        VideoMaskCollator([*recipes(4), *recipes(8)])
    with pytest.raises(ValueError, match="for 4 frames was given for clips of 8"):
        VideoMaskCollator({8: recipes(4)})
    for empty in ([], {}, {4: []}):
        with pytest.raises(ValueError, match="at least one"):
            VideoMaskCollator(empty)
