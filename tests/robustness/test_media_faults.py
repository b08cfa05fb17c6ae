import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_jepa.data import SeededImageDataset, SeededImageStream, TooManyBadImagesError, decode_image, eval_transform

RED = (255, 0, 0)


def encoded(image: PILImage.Image, kind: str = "PNG", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


def noise(size: int = 32) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


BAD = {
    "truncated_jpeg": encoded(noise(), "JPEG")[:-200],
    "truncated_png": encoded(noise())[:-200],
    "zero_bytes": b"",
    "text": b"<html>404 Not Found</html>",
    "one_pixel": encoded(PILImage.new("RGB", (1, 1))),
    "float_tiff": encoded(PILImage.new("F", (8, 8), 0.5), "TIFF"),
}


def build(cells: list[bytes], **kwargs) -> SeededImageDataset:
    rows = {"image": [{"bytes": cell, "path": None} for cell in cells], "label": list(range(len(cells)))}
    dataset = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("int64")}))
    return SeededImageDataset(dataset, eval_transform(8), label_column="label", **kwargs)


@pytest.mark.parametrize("kind", BAD)
def test_bad_image_is_counted_named_once_and_replaced_by_the_next(kind, caplog):
    good = encoded(PILImage.new("RGB", (8, 8), RED))
    dataset = build([good, BAD[kind], good], max_bad_fraction=0.5)
    for draw in range(3):
        sample = dataset[(1, draw)]
        assert sample["label"] == 2
        assert sample["draw"] == draw
        assert torch.equal(sample["pixel_values"], dataset[(2, draw)]["pixel_values"])
    assert dataset.num_bad == 1
    named = [record.getMessage() for record in caplog.records if "Unusable" in record.getMessage()]
    assert len(named) == 1
    assert "row 1" in named[0]


def test_last_row_is_replaced_by_the_first():
    good = encoded(PILImage.new("RGB", (8, 8), RED))
    assert build([good, good, b""], max_bad_fraction=0.5)[2]["label"] == 0


def test_run_stops_above_the_threshold():
    good = encoded(PILImage.new("RGB", (8, 8)))
    dataset = build([good] * 99 + [b"junk", good, b""], max_bad_fraction=0.01)
    assert dataset[99]["label"] == 100
    with pytest.raises(TooManyBadImagesError, match=r"2 of 102 images.*row 101.*zero bytes"):
        dataset[101]
    with pytest.raises(TooManyBadImagesError):
        build([b"junk"] * 3, max_bad_fraction=0.9)[0]


def test_workers_share_one_count():
    good = encoded(PILImage.new("RGB", (8, 8)))
    dataset = build([good, b"", good, b"", good, good], max_bad_fraction=0.5)
    samples = [s for batch in DataLoader(dataset, 1, num_workers=2, collate_fn=list) for s in batch]
    assert [sample["label"] for sample in samples] == [0, 2, 2, 4, 4, 5]
    assert dataset.num_bad == 2


def test_missing_file_is_replaced(tmp_path):
    PILImage.new("RGB", (8, 8), RED).save(tmp_path / "there.png")
    paths = [str(tmp_path / "gone.png"), str(tmp_path / "there.png")]
    dataset = Dataset.from_dict({"image": paths}, features=Features({"image": Image()}))
    sample = SeededImageDataset(dataset, eval_transform(8), max_bad_fraction=0.5)[0]
    assert sample["pixel_values"][0].mean() > 0 > sample["pixel_values"][1].mean()


def test_stream_skips_counts_and_stops():
    good, rows = encoded(PILImage.new("RGB", (8, 8), RED)), []
    rows = [{"bytes": cell, "path": None} for cell in [good, b"", good, b"junk", good]]
    images = Dataset.from_dict({"image": rows}, features=Features({"image": Image()})).to_iterable_dataset()
    stream = SeededImageStream(images, eval_transform(8))
    assert [sample["draw"] for sample in stream] == [0, 1, 2]
    assert stream.num_bad == 2
    with pytest.raises(TooManyBadImagesError, match="first 2 images"):
        list(SeededImageStream(images, eval_transform(8), max_bad_fraction=0.0))


def pixel(image: PILImage.Image, **kwargs) -> tuple | int:
    kind = kwargs.pop("kind", "PNG")
    decoded = decode_image(encoded(image, kind, **kwargs))
    assert decoded.mode in ("L", "RGB")
    return decoded.getpixel((1, 1))


def test_sixteen_bit_is_scaled_not_clipped():
    for value, expected in ((65535, 255), (32896, 128), (257, 1), (0, 0)):
        assert pixel(PILImage.fromarray(np.full((4, 4), value, np.uint16))) == expected
    assert pixel(PILImage.fromarray(np.full((4, 4), 32896, np.int32)), kind="TIFF") == 128
    with pytest.raises(ValueError, match="70000"):
        decode_image(encoded(PILImage.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"))


def test_alpha_is_composited_on_white():
    assert pixel(PILImage.new("RGBA", (4, 4), (255, 0, 0, 0))) == (255, 255, 255)
    assert pixel(PILImage.new("RGBA", (4, 4), (0, 0, 0, 51))) == (204, 204, 204)
    assert pixel(PILImage.new("RGBA", (4, 4), (9, 8, 7, 255))) == (9, 8, 7)
    assert pixel(PILImage.new("LA", (4, 4), (0, 0))) == 255
    palette = PILImage.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert pixel(palette) == RED
    assert pixel(palette, transparency=1) == (255, 255, 255)


def test_other_modes_become_rgb_or_grey():
    red, green, blue = pixel(PILImage.new("CMYK", (4, 4), (0, 255, 255, 0)), kind="JPEG", quality=100)
    assert red > 240
    assert max(green, blue) < 15
    assert pixel(PILImage.new("1", (4, 4), 1)) == 255
    assert pixel(PILImage.new("L", (4, 4), 77)) == 77


def test_exif_rotation_is_applied():
    image = PILImage.new("RGB", (8, 4))
    exif = PILImage.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(image, "JPEG", exif=exif)).size == (4, 8)
