import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hf_jepa.data import IMAGENET_MEAN, IMAGENET_STD, eval_transform, forked_rng, train_transform


def photo(height: int, width: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("size", [(28, 28), (40, 25), (9, 200), (200, 9)])
def test_train_transform_equals_torchvision_draw_for_draw(size):
    image = photo(*size)
    expected = v2.Compose(
        [
            v2.RandomResizedCrop(24, scale=(0.3, 1.0), antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    transform = train_transform(24)
    for seed in range(20):
        with forked_rng(seed):
            ours = transform(image)
        with forked_rng(seed):
            theirs = expected(image)
        assert ours.shape == (3, 24, 24)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_train_transform_does_not_flip_unless_asked():
    ramp = Image.fromarray(np.tile(np.arange(0, 250, 10, dtype=np.uint8), (25, 1)))
    plain, flipping = (
        train_transform(16, crop_scale=(1.0, 1.0), mean=(0.0,), std=(1.0,), hflip=hflip) for hflip in (False, True)
    )

    def is_rising(pixels: torch.Tensor) -> bool:
        return bool(pixels[0, 0, 0] < pixels[0, 0, -1])

    assert all(is_rising(plain(ramp)) for _ in range(20))
    assert {is_rising(flipping(ramp)) for _ in range(20)} == {True, False}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_channels_follow_the_statistics(mode):
    image = photo(20, 20, mode)
    assert train_transform(8, mean=(0.3,), std=(0.4,))(image).shape == (1, 8, 8)
    assert eval_transform(8)(image).shape == (3, 8, 8)


def test_eval_transform_keeps_pixels_of_fitting_images_and_centres_others():
    image = photo(12, 12, "L")
    expected = (torch.from_numpy(np.array(image)).float()[None] / 255 - 0.25) / 0.5
    assert torch.equal(eval_transform(12, mean=(0.25,), std=(0.5,))(image), expected)
    wide = Image.new("L", (60, 20), 0)
    wide.paste(255, (20, 0, 40, 20))
    assert eval_transform(20, mean=(0.0,), std=(1.0,))(wide).min() == 1
    assert eval_transform((10, 30), mean=(0.0,), std=(1.0,))(wide).shape == (1, 10, 30)


def test_eval_transform_close_to_resize_and_centre_crop():
    image = photo(9, 6).resize((640, 960))
    expected = v2.functional.center_crop(v2.functional.resize(image, 64), 56)
    ours = eval_transform(56, mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=56 / 64)(image)
    expected = v2.functional.to_dtype(v2.functional.to_image(expected), torch.float32, scale=True)
    torch.testing.assert_close(ours, expected.as_subclass(torch.Tensor), rtol=0, atol=2 / 255)


def test_transforms_can_be_pickled_for_spawned_workers():
    image = photo(30, 30)
    transform = pickle.loads(pickle.dumps(train_transform(16)))
    with forked_rng(3):
        first = transform(image)
    with forked_rng(3):
        assert torch.equal(first, train_transform(16)(image))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": 8, "crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"image_size": 8, "crop_scale": (0.9, 0.3)}, "crop_scale"),
        ({"image_size": 8, "mean": (0.5,)}, "mean and std"),
        ({"image_size": 8, "mean": (0.5,), "std": (0.0,)}, "std"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        train_transform(**kwargs)
