"""Random views of an image: shapes, seeds, grey images, faults."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hf_jepa.data import MultiViewCollator, MultiViewTransform, SeededImageDataset, ViewAugmentation


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(view: Image.Image) -> np.ndarray:
    return np.asarray(view, dtype=np.float32)


MINIMAL = {
    "crop_scale": (0.08, 1.0),
    "color_jitter": (0.8, 0.8, 0.8, 0.2),
    "blur_kernel_size": 7,
    "solarize_probability": 0.2,
}
NOTHING = {
    "crop_scale": (1.0, 1.0),
    "color_jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "blur_probability": 0.0,
    "flip_probability": 0.0,
}


def test_views_have_the_shapes_they_were_asked_for(image):
    transform = MultiViewTransform(
        4 * [ViewAugmentation(32, **MINIMAL)], 3 * [ViewAugmentation((12, 16), (0.05, 0.3), bicubic=True)]
    )
    views = transform(image)
    assert views["pixel_values"].shape == (4, 3, 32, 32)
    assert views["pixel_values"].dtype == torch.float32
    assert views["local_pixel_values"].shape == (3, 3, 12, 16)
    assert len({tuple(view.flatten().tolist()) for view in views["pixel_values"]}) == 4
    assert "local_pixel_values" not in MultiViewTransform([ViewAugmentation(8)])(image)


def test_each_operation_does_what_its_name_says(image):
    square = image.crop((0, 0, 32, 32))
    assert np.array_equal(pixels_of(ViewAugmentation(32, **NOTHING)(square)), pixels_of(square))
    flipped = ViewAugmentation(32, **{**NOTHING, "flip_probability": 1.0})(square)
    assert np.array_equal(pixels_of(flipped), pixels_of(square)[:, ::-1])
    grey = pixels_of(ViewAugmentation(32, **{**NOTHING, "grayscale_probability": 1.0})(square))
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert grey.std() > 0
    solarized = pixels_of(ViewAugmentation(32, **{**NOTHING, "solarize_probability": 1.0})(square))
    original = pixels_of(square)
    assert np.array_equal(solarized, np.where(original < 128, original, 255 - original))
    blurred = pixels_of(ViewAugmentation(32, **{**NOTHING, "blur_probability": 1.0, "blur_sigma": (2.0, 2.0)})(square))
    assert blurred.std() < 0.6 * original.std()
    assert abs(blurred.mean() - original.mean()) < 3
    for strengths in ((0.8, 0, 0, 0), (0, 0.8, 0, 0), (0, 0, 0.8, 0), (0, 0, 0, 0.4)):
        jitter = {**NOTHING, "color_jitter": strengths, "color_jitter_probability": 1.0}
        assert not np.array_equal(pixels_of(ViewAugmentation(32, **jitter)(square)), original), strengths


def test_jitter_is_torchvisions(image):
    from torchvision.transforms.v2 import ColorJitter

    square = image.crop((0, 0, 32, 32))
    strengths = (0.8, 0.8, 0.8, 0.2)
    ours = ViewAugmentation(32, **{**NOTHING, "color_jitter": strengths, "color_jitter_probability": 1.0})
    theirs = ColorJitter(*strengths)
    statistics = []
    for augment in (ours, theirs):
        torch.manual_seed(0)
        drawn = np.stack([pixels_of(augment(square)).mean(axis=(0, 1)) for _ in range(300)])
        statistics.append((drawn.mean(axis=0), drawn.std(axis=0)))
    for first, second in zip(*statistics, strict=True):
        # Standard errors are about 3 grey levels.
        assert np.abs(first - second).max() < 10


def test_grey_images_stay_grey_and_skip_colour(image):
    grey = image.convert("L").crop((0, 0, 32, 32))
    augment = {**NOTHING, "color_jitter": (0, 0, 0.8, 0.4), "color_jitter_probability": 1.0}
    augment |= {"grayscale_probability": 1.0}
    transform = MultiViewTransform(2 * [ViewAugmentation(32, **augment)], mean=[0.0], std=[1.0])
    views = transform(grey)["pixel_values"]
    assert views.shape == (2, 1, 32, 32)
    expected = torch.from_numpy(pixels_of(grey) / 255)
    torch.testing.assert_close(views, expected.expand(2, 1, 32, 32))
    whole = MultiViewTransform([ViewAugmentation(32, **MINIMAL)], mean=[0.5], std=[0.5])
    assert whole(image)["pixel_values"].shape == (1, 1, 32, 32)


def test_views_depend_on_seed_and_draw_alone(image):
    rows = Dataset.from_dict({"image": [image, image.rotate(90)], "label": [0, 1]})
    transform = MultiViewTransform(2 * [ViewAugmentation(16, **MINIMAL)], [ViewAugmentation(8)])
    dataset = SeededImageDataset(rows, transform, seed=3, label_column="label")
    state = torch.get_rng_state()
    first, other = dataset[(0, 5)], dataset[(0, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = dataset[(0, 5)]
    for name in ("pixel_values", "local_pixel_values"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert first["draw"] == 5
    assert first["label"] == 0

    batch = MultiViewCollator()([first, other])
    assert batch["pixel_values"].shape == (2, 2, 3, 16, 16)
    assert batch["local_pixel_values"].shape == (2, 1, 3, 8, 8)
    assert batch.keys() == {"pixel_values", "local_pixel_values"}


def test_the_collator_refuses_unequal_views():
    collator = MultiViewCollator()
    with pytest.raises(ValueError, match="one shape"):
        collator([{"pixel_values": torch.zeros(2, 3, 8, 8)}, {"pixel_values": torch.zeros(2, 3, 8, 9)}])
    with pytest.raises(ValueError, match="one shape"):
        collator([{"pixel_values": torch.zeros(2, 3, 8, 8)}, {"pixel_values": torch.zeros(3, 3, 8, 8)}])
    with pytest.raises(ValueError, match="MultiViewTransform"):
        collator([{"pixel_values": torch.zeros(3, 8, 8)}])
    whole = {"pixel_values": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(ValueError, match="local_pixel_values"):
        collator([{**whole, "local_pixel_values": torch.zeros(1, 3, 4, 4)}, whole])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"color_jitter": (0.4, 0.4, 0.4)}, "color_jitter"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "hue"),
        ({"blur_kernel_size": 4}, "odd"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"solarize_probability": 1.2}, "solarize_probability"),
    ],
)
def test_bad_augmentations_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ViewAugmentation(**{"image_size": 8, **kwargs})


def test_views_that_cannot_be_stacked_are_refused():
    with pytest.raises(ValueError, match="one size"):
        MultiViewTransform([ViewAugmentation(8), ViewAugmentation(9)])
    with pytest.raises(ValueError, match="at least one global view"):
        MultiViewTransform([], [ViewAugmentation(8)])
