"""From frames to pixels: against OpenCV's numbers, transformers' processor and plain formulas."""

import pickle

import numpy as np
import pytest
import torch
from transformers import VJEPA2VideoProcessor

from hf_jepa.data import IMAGENET_MEAN, IMAGENET_STD, resize_as_cv2, video_eval_transform, video_train_transform
from hf_jepa.data.transforms import random_resized_crop_box

# cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), OpenCV 5.0.0 and 4.10.0 alike, of the uint8 image
# arange(48).reshape(6, 8) * 37 % 256
CV2 = {
    (4, 5): [[21, 80, 139, 192, 59], [81, 140, 199, 60, 62], [141, 200, 99, 63, 122], [201, 87, 63, 123, 182]],
    (3, 4): [[39, 113, 187, 69], [119, 193, 75, 85], [199, 81, 91, 165]],
    (9, 13): [
        [0, 16, 38, 61, 84, 107, 129, 152, 175, 198, 220, 95, 3],
        [20, 36, 58, 81, 104, 127, 150, 172, 195, 173, 117, 61, 23],
        [47, 62, 85, 108, 131, 153, 176, 194, 190, 128, 19, 34, 50],
        [73, 89, 112, 134, 157, 180, 203, 201, 92, 43, 39, 61, 76],
        [100, 116, 138, 161, 184, 207, 166, 109, 53, 42, 65, 87, 103],
        [127, 142, 165, 188, 199, 195, 107, 23, 46, 68, 91, 114, 130],
        [153, 169, 192, 214, 180, 71, 48, 49, 72, 95, 118, 141, 156],
        [180, 196, 213, 157, 101, 45, 54, 76, 99, 122, 145, 167, 183],
        [200, 215, 228, 94, 28, 51, 73, 96, 119, 142, 164, 187, 203],
    ],
}
NO_STATISTICS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
PROBE = {
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "hflip": False,
    "auto_augment": "rand-m7-n4-mstd0.5-inc1",
    "erase_probability": 0.25,
}


def noise(num_frames: int, height: int, width: int) -> torch.Tensor:
    # Channels last in memory, as decoders give frames
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num_frames, height, width, 3), generator=generator, dtype=torch.uint8).permute(
        0, 3, 1, 2
    )


@pytest.mark.parametrize("size", CV2)
def test_resize_is_opencvs_to_the_last_bit(size):
    image = (torch.arange(48).view(6, 8) * 37 % 256).byte()
    resized = resize_as_cv2(image.expand(2, 1, 6, 8), size)
    assert resized[1, 0].tolist() == CV2[size]
    part = resize_as_cv2(image.expand(1, 1, 6, 8), size, crop=(1, 1, 2, 3))
    assert torch.equal(part[0], resized[0, :, 1:3, 1:4])


def test_resize_to_the_same_size_changes_nothing():
    frames = noise(2, 9, 7)
    assert torch.equal(resize_as_cv2(frames, (9, 7)), frames)


@pytest.mark.parametrize("size", [(120, 213), (213, 120), (90, 90)])
@pytest.mark.parametrize("crop_size", [64, 112])
def test_antialiased_evaluation_is_transformers_processor(size, crop_size):
    frames = noise(3, *size)
    expected = VJEPA2VideoProcessor(crop_size=crop_size)(frames, return_tensors="pt")["pixel_values_videos"][0]
    ours = video_eval_transform(crop_size, "antialias")(frames)
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


def test_evaluation_cuts_the_centre_of_the_resized_frame():
    frames = noise(2, 60, 101)
    # short side int(56 * 256 / 224) = 64, long side int(64 * 101 / 60) = 107; the margin of 25.5 rounds to even
    resized = resize_as_cv2(frames, (64, 107))
    pixels = video_eval_transform(56, **NO_STATISTICS)(frames)
    assert torch.equal(pixels, resized[:, :, 4:60, 26:82].float())
    normalized = video_eval_transform(56)(frames)
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(normalized, (pixels - mean) / std)
    assert not torch.equal(normalized, video_eval_transform(56, "antialias")(frames))


@pytest.mark.parametrize("upright", [False, True])
def test_views_lie_along_the_long_side(upright):
    frames = noise(2, 40, 81)
    resized = resize_as_cv2(frames, (20, 40))
    if upright:
        frames, resized = frames.transpose(2, 3), resized.transpose(2, 3)
    views = video_eval_transform(20, num_views=3, **NO_STATISTICS)(frames)
    assert views.shape == (3, 2, 3, 20, 20)
    for start, view in zip((0, 10, 20), views, strict=True):
        cut = resized[:, :, start : start + 20] if upright else resized[:, :, :, start : start + 20]
        # One unit is what swapping rows and columns may cost in fixed point.
        assert (view - cut.float()).abs().max() <= upright


def test_training_takes_one_crop_for_all_frames():
    frames = noise(1, 40, 60).expand(5, -1, -1, -1)
    transform = video_train_transform((24, 32), hflip=False, **NO_STATISTICS)
    torch.manual_seed(3)
    pixels = transform(frames)
    assert pixels.shape == (5, 3, 24, 32)
    assert pixels.dtype == torch.float32
    assert (pixels == pixels[:1]).all()
    torch.manual_seed(3)
    left, top, right, bottom = random_resized_crop_box(40, 60, (0.3, 1.0), (0.75, 1.35))
    cut = frames[:, :, top:bottom, left:right].float()
    # No antialiasing: with it, noise would lose most of its contrast.
    expected = torch.nn.functional.interpolate(cut, (24, 32), mode="bilinear", align_corners=False, antialias=False)
    torch.testing.assert_close(pixels, expected)


def test_training_crops_keep_to_scale_and_ratio():
    areas, ratios = [], []
    for seed in range(400):
        torch.manual_seed(seed)
        left, top, right, bottom = random_resized_crop_box(400, 500, (0.3, 1.0), (0.75, 1.35))
        areas.append((right - left) * (bottom - top) / 200_000)
        ratios.append((right - left) / (bottom - top))
    assert 0.29 < min(areas) < 0.35
    assert 0.9 < max(areas) <= 1.0
    assert 0.745 < min(ratios) < 0.77
    assert 1.3 < max(ratios) < 1.36


def test_training_mirrors_half_of_the_clips():
    frames = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    frames[..., 8:] = 255
    transform = video_train_transform(16, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), **NO_STATISTICS)
    torch.manual_seed(0)
    mirrored = [bool(transform(frames)[0, 0, 0, 0]) for _ in range(200)]
    assert 70 < sum(mirrored) < 130
    never = video_train_transform(16, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip=False, **NO_STATISTICS)
    assert not any(bool(never(frames)[0, 0, 0, 0]) for _ in range(20))


def test_impossible_scales_take_the_centre_as_droid_does():
    # 16:9 frames, all tries above the frame: a centre crop of round(1.35 * 36) = 49 columns
    frames = noise(2, 36, 64)
    transform = video_train_transform((36, 49), crop_scale=(1.777, 1.777), hflip=False, **NO_STATISTICS)
    assert torch.equal(transform(frames), frames[..., 7:56].float())


def test_probe_augmentation_is_the_same_for_all_frames():
    frames = noise(1, 40, 60).expand(4, -1, -1, -1)
    transform = video_train_transform(24, **{**PROBE, "erase_probability": 1.0})
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        pixels = transform(frames)
        assert (pixels == pixels[:1]).all()
        torch.manual_seed(seed)
        assert torch.equal(pixels, transform(frames))
        drawn.append(pixels)
    assert not torch.equal(*drawn)


def test_random_augmentation_and_erasing_change_pixels():
    frames = noise(2, 30, 30)
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "hflip": False}
    plain = video_train_transform(30, **whole)(frames)
    torch.manual_seed(0)
    augmented = [video_train_transform(30, **whole, auto_augment=PROBE["auto_augment"])(frames) for _ in range(4)]
    assert sum(not torch.equal(pixels, plain) for pixels in augmented) >= 3
    erased = video_train_transform(30, **whole, erase_probability=1.0)(frames)
    changed = (erased != plain).any(dim=1).float().mean(dim=(1, 2))
    assert (changed > 0.01).all()
    assert (changed < 0.5).all()


@pytest.mark.parametrize("transform", [video_train_transform(8, **PROBE), video_eval_transform(8, num_views=3)])
def test_transforms_travel_to_spawned_workers(transform):
    frames = noise(2, 20, 20)
    state = torch.get_rng_state()
    first = transform(frames)
    torch.set_rng_state(state)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(frames), first)


def test_grey_frames_keep_one_channel():
    frames = torch.from_numpy(np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8))
    transform = video_train_transform(
        8, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip=False, mean=[0.5], std=[0.5]
    )
    torch.testing.assert_close(transform(frames), (frames.float() - 127.5) / 127.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: video_train_transform(0), "image_size"),
        (lambda: video_train_transform(8, crop_scale=(0.5, 0.3)), r"crop_scale must satisfy.*\(0.5, 0.3\)"),
        (lambda: video_train_transform(8, crop_ratio=(0.0, 1.0)), "crop_ratio must satisfy"),
        (lambda: video_train_transform(8, erase_probability=1.5), "erase_probability.*1.5"),
        (lambda: video_train_transform(8, std=(1.0, 0.0, 1.0)), "std must be positive"),
        (lambda: video_eval_transform(8, "pil"), '"cv2" or "antialias", got .pil.'),
        (lambda: video_eval_transform(8, num_views=0), "num_views must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
