"""What a stranger's images are like: other channels, bits, shapes and names; every loader and transform takes them."""

from io import BytesIO

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Value
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from hf_jepa.data import (
    MultiViewTransform,
    SeededImageDataset,
    TooManyBadImagesError,
    ViewAugmentation,
    decode_image,
    eval_transform,
    load_image_dataset,
    processor_transform,
    train_transform,
)

TWELVE = {"mean": [0.5] * 12, "std": [0.25] * 12}


@pytest.fixture
def bands() -> np.ndarray:
    """(H, W, C) of an image that is not square; every channel has a level of its own."""
    return (np.zeros((20, 30, 12), np.uint8) + 20 * np.arange(12, dtype=np.uint8)).copy()


def levels(pixels: torch.Tensor) -> list[int]:
    """The level of each channel of normalised pixels."""
    return (pixels.mean((1, 2)) * 0.25 + 0.5).mul(255).round().int().tolist()


@pytest.mark.parametrize("kind", ["npy", "channels first", "tiff", "lists", "16 bits"])
def test_twelve_channels(bands, tmp_path, kind):
    expected = (20 * np.arange(12)).tolist()
    if kind == "lists":
        rows = Dataset.from_dict(
            {"image": [bands] * 2, "label": [0, 1]},
            Features({"image": Array3D((20, 30, 12), "uint8"), "label": Value("int64")}),
        )
    else:
        if kind == "tiff":
            pages = [Image.fromarray(bands[:, :, channel]) for channel in range(12)]
            pages[0].save(tmp_path / "a b.tiff", save_all=True, append_images=pages[1:])
        else:
            array = {
                "npy": bands,
                "channels first": bands.transpose(2, 0, 1),
                "16 bits": bands.astype(np.uint16) * 257,
            }
            np.save(tmp_path / "a b.npy", array[kind])
        suffix = "tiff" if kind == "tiff" else "npy"
        (tmp_path / "list.csv").write_text(f'"a b.{suffix}",0\n"a b.{suffix}",1\n')
        rows = load_image_dataset(tmp_path / "list.csv", label_column="label")
    for transform in (eval_transform((16, 24), **TWELVE), train_transform(16, hflip=True, **TWELVE)):
        samples = SeededImageDataset(rows, transform, label_column="label")
        for batch in DataLoader(samples, 2, num_workers=2 if kind == "npy" else 0, collate_fn=list):
            assert [levels(sample["pixel_values"]) for sample in batch] == [expected] * 2
    views = MultiViewTransform([ViewAugmentation(16, color_jitter_probability=0, blur_probability=1)] * 2, **TWELVE)
    assert levels(SeededImageDataset(rows, views)[0]["pixel_values"][1]) == expected
    processor = ViTImageProcessor(
        size={"height": 16, "width": 24},
        image_mean=[0.5] * 12,
        image_std=[0.25] * 12,
        input_data_format="channels_first",
    )
    assert levels(SeededImageDataset(rows, processor_transform(processor))[0]["pixel_values"]) == expected


def test_channels_that_do_not_fit_are_named(bands):
    rows = Dataset.from_dict({"image": [bands.tolist()]})
    with pytest.raises(ValueError, match="the image has 12 channels and cannot become RGB: give the transform"):
        SeededImageDataset(rows, eval_transform(8))[0]
    with pytest.raises(ValueError, match=r"has 3 channel\(s\), and 12 means"):
        eval_transform(8, **TWELVE)(Image.new("RGB", (9, 9)))
    with pytest.raises(ValueError, match="does not tell which axis its channels are"):
        decode_image(np.zeros((12, 5, 12), np.uint8))
    with pytest.raises(ValueError, match="array of float64 and shape"):
        decode_image(np.zeros((12, 5, 3)))


def test_jitter_of_bands_is_that_of_grey_images(bands):
    jitter = ViewAugmentation(16, (1.0, 1.0), color_jitter_probability=1, blur_probability=0, flip_probability=0)
    grey = MultiViewTransform([jitter], mean=[0.5], std=[0.25])
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 12), np.uint8)
    torch.manual_seed(0)
    all_bands = MultiViewTransform([jitter], **TWELVE)(decode_image(noise))["pixel_values"][0]
    for channel in (0, 11):
        torch.manual_seed(0)
        one = grey(Image.fromarray(noise[:, :, channel]))["pixel_values"][0, 0]
        torch.testing.assert_close(all_bands[channel], one)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def kinds() -> dict[str, tuple[bytes, list[int]]]:
    """Encoded images 4 wide and 6 high, and the RGB value of their upper left pixel."""
    red = Image.new("RGB", (4, 6), (200, 10, 30))
    rotated = Image.new("RGB", (6, 4), (200, 10, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    transparent = Image.new("RGBA", (4, 6), (200, 10, 30, 0))
    deep = Image.fromarray(np.full((6, 4), 100 * 257, np.uint16))
    return {
        "palette": (saved(red.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), [200, 10, 30]),
        "alpha": (saved(transparent, "PNG"), [255, 255, 255]),
        "16 bits": (saved(deep, "PNG"), [100, 100, 100]),
        "grey": (saved(Image.new("L", (4, 6), 7), "TIFF"), [7, 7, 7]),
        "cmyk": (saved(Image.new("CMYK", (4, 6), (0, 255, 255, 0)), "TIFF"), [255, 0, 0]),
        "lying on its side": (saved(rotated, "TIFF", exif=exif), [200, 10, 30]),
        "one bit": (saved(Image.new("1", (4, 6), 1), "PNG"), [255, 255, 255]),
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_kind_of_file_in_folders_of_any_name(tmp_path, num_workers):
    (tmp_path / "photos" / "пёс").mkdir(parents=True)
    for empty in ("nothing yet", "cat"):
        (tmp_path / "photos" / empty).mkdir()
    Image.new("RGB", (4, 6), (1, 2, 3)).save(tmp_path / "photos" / "cat" / "0.png")
    for name, (data, _) in kinds().items():
        suffix = "tiff" if data[:2] in (b"II", b"MM") else "png"
        (tmp_path / "photos" / "пёс" / f"{name} 猫.{suffix}").write_bytes(data)
    rows = load_image_dataset(tmp_path / "photos", label_column="label")
    # A class without images is no class.
    assert rows.features["label"].names == ["cat", "пёс"]
    samples = SeededImageDataset(rows, eval_transform((6, 4), [0.0] * 3, [1.0] * 3), label_column="label")
    loaded = [sample for batch in DataLoader(samples, 3, num_workers=num_workers, collate_fn=list) for sample in batch]
    found = sorted((sample["pixel_values"][:, 0, 0] * 255).round().int().tolist() for sample in loaded)
    assert found == sorted([[1, 2, 3], *(value for _, value in kinds().values())])
    assert samples.num_bad == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_of_no_bytes_is_named(tmp_path, num_workers):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "9 leer.jpg").write_bytes(b"")
    rows = load_image_dataset(tmp_path)
    samples = SeededImageDataset(rows, eval_transform(8), max_bad_fraction=0.5)
    assert sum(len(batch) for batch in DataLoader(samples, 2, num_workers=num_workers, collate_fn=list)) == 4
    assert samples.num_bad == 1
    with pytest.raises(TooManyBadImagesError, match="9 leer.jpg.*zero bytes"):
        list(SeededImageDataset(rows, eval_transform(8)))


@pytest.mark.filterwarnings("ignore")
def test_a_tiff_that_pil_cannot_read_says_what_to_do():
    cut = saved(Image.new("RGB", (4, 4)), "TIFF")[:4] + b"\xff" * 30
    with pytest.raises(ValueError, match="save it as .npy"):
        decode_image(cut)
