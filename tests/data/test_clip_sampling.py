"""Indices of frames, computed by hand from the released rules."""

import numpy as np
import pytest

from hf_jepa.data import ClipSampler, clip_indices, frame_step_for_fps

# floor(k * 64 / 15), the last one cut to the window
WINDOW_16x4 = [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_window_is_spread_over_all_its_frames():
    assert clip_indices(300, 16, 4).tolist() == [WINDOW_16x4]
    assert clip_indices(300, 8, 2).tolist() == [[0, 2, 4, 6, 9, 11, 13, 15]]
    assert clip_indices(300, 4, 1).tolist() == [[0, 1, 2, 3]]
    assert clip_indices(300, 1, 4).tolist() == [[0]]
    indices = clip_indices(3000, 64, 7)
    assert (indices[0, 0], indices[0, -1]) == (0, 447)
    assert indices[0, 1:4].tolist() == [7, 14, 21]
    assert indices[0, 60] == 426


def test_a_drawn_start_moves_the_window_and_never_reaches_the_end():
    starts = {int(clip_indices(20, 4, 4, generator=rng(seed))[0, 0]) for seed in range(200)}
    assert starts == {0, 1, 2, 3}
    for seed in range(5):
        first = clip_indices(300, 16, 4, generator=rng(seed))
        assert (first - first[0, 0]).tolist() == [WINDOW_16x4]
        assert np.array_equal(first, clip_indices(300, 16, 4, generator=rng(seed)))
        assert first[0, 0] == rng(seed).integers(300 - 64)


def test_a_short_video_repeats_its_last_frame():
    # 50 // 4 = 12 frames at k * 50 / 11, then the last frame
    there = [0, 4, 9, 13, 18, 22, 27, 31, 36, 40, 45, 49]
    assert clip_indices(50, 16, 4).tolist() == [there + 4 * [49]]
    assert clip_indices(50, 16, 4, generator=rng()).tolist() == [there + 4 * [49]]
    assert clip_indices(64, 16, 4).tolist() == [WINDOW_16x4]
    assert clip_indices(3, 4, 4).tolist() == [[2, 2, 2, 2]]
    assert clip_indices(1, 4, 2).tolist() == [[0, 0, 0, 0]]


def test_segments_of_a_long_video_start_with_their_parts():
    indices = clip_indices(200, 4, 4, num_clips=3)
    assert indices.tolist() == [[0, 5, 10, 15], [66, 71, 76, 81], [132, 137, 142, 147]]
    drawn = clip_indices(200, 4, 4, num_clips=3, generator=rng())
    starts = rng().integers(66 - 16, size=3)
    assert (drawn - indices).tolist() == [4 * [start] for start in starts]
    assert len(set(starts.tolist())) > 1


def test_short_segments_repeat_or_overlap():
    # parts of 10 frames, windows of 16: 10 // 4 = 2 frames at 0 and 10, the second cut to 9
    assert clip_indices(30, 4, 4, num_clips=3).tolist() == [[0, 9, 9, 9], [10, 19, 19, 19], [20, 29, 29, 29]]
    # 15 // 4 = 3 frames over [0, 15], cut to 14; windows (30 - 16) // 2 = 7 apart
    overlapping = clip_indices(30, 4, 4, num_clips=3, allow_overlap=True)
    assert overlapping.tolist() == [[0, 7, 14, 14], [7, 14, 21, 21], [14, 21, 28, 28]]
    # a video no longer than one window: all segments are alike
    assert clip_indices(10, 4, 4, num_clips=3, allow_overlap=True).tolist() == 3 * [[0, 8, 8, 8]]


@pytest.mark.parametrize("allow_overlap", [False, True])
def test_any_numbers_stay_within_the_video(allow_overlap):
    for seed in range(500):
        length, frames, step, clips = (int(rng(seed).integers(1, high)) for high in (200, 33, 9, 9))
        indices = clip_indices(length, frames, step, clips, allow_overlap, rng(seed))
        assert indices.shape == (clips, frames)
        assert indices.dtype == np.int64
        assert 0 <= indices.min() <= indices.max() < length
        assert (np.diff(indices, axis=1) >= 0).all()


def test_rates_become_steps_as_released():
    rates = {29.97: 7, 30: 7, 25: 6, 24: 6, 23.976: 6, 60: 15, 15: 3, 4: 1}
    assert {rate: frame_step_for_fps(rate, 4) for rate in rates} == rates
    # slower than asked for, or no rate at all (an image)
    assert frame_step_for_fps(3, 4) == frame_step_for_fps(0.0, 4) == 1
    sampler = ClipSampler(num_frames=16, fps=4, random_start=False)
    assert np.array_equal(sampler.indices(500, 29.97), clip_indices(500, 16, 7))


def test_images_are_still_clips():
    assert ClipSampler(num_frames=16, fps=4).indices(1, 0.0, rng()).tolist() == [16 * [0]]
    assert ClipSampler(num_frames=1, frame_step=1).indices(1, 0.0, rng()).tolist() == [[0]]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "one of frame_step and fps"),
        ({"fps": 4, "frame_step": 4}, "one of frame_step and fps"),
        ({"fps": 0}, "fps must be at least 1, got 0"),
        ({"frame_step": 4, "num_frames": 0}, "num_frames must be at least 1"),
        ({"frame_step": 4, "num_clips": -1}, "num_clips must be at least 1"),
    ],
)
def test_bad_samplers_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClipSampler(**kwargs)


def test_bad_numbers_and_missing_generators_are_refused():
    with pytest.raises(ValueError, match="got 0, 4, 4 and 1"):
        clip_indices(0, 4, 4)
    with pytest.raises(ValueError, match="needs a generator"):
        ClipSampler(fps=4).indices(100, 30.0)
