"""One way to a split, whatever the source: slices work everywhere, and what does not exist is refused."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from hf_jepa.data import load_image_dataset, load_text_dataset, load_video_dataset, load_vision_text_dataset

NAMES = ["cat", "dog"]


def shade(number: int) -> PILImage.Image:
    return PILImage.fromarray(np.full((8, 8, 3), 20 * number, np.uint8))


@pytest.fixture(params=["parquet", "jsonl", "csv", "saved", "saved dict", "class folders", "list in a folder"])
def ten_images(request, tmp_path):
    """Ten images of alternating classes in one split, as every kind of source."""
    kind = request.param
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(10):
        shade(number).save(photos / f"{number}.png")
    labels = [NAMES[number % 2] for number in range(10)]
    features = Features({"image": Image(), "label": Value("string")})
    rows = Dataset.from_dict({"image": [str(photos / f"{n}.png") for n in range(10)], "label": labels}, features)
    if kind == "parquet":
        rows.to_parquet(str(tmp_path / "data.parquet"))
        return tmp_path / "data.parquet"
    if kind == "jsonl":
        lines = [json.dumps({"image": f"photos/{n}.png", "label": labels[n]}) for n in range(10)]
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
        return tmp_path / "data.jsonl"
    if kind in ("csv", "list in a folder"):
        name = "data.csv" if kind == "csv" else "train.csv"
        (tmp_path / name).write_text("\n".join(f"photos/{n}.png,{labels[n]}" for n in range(10)))
        return tmp_path / name if kind == "csv" else tmp_path
    if kind == "saved":
        rows.save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"
    if kind == "saved dict":
        DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"
    for name in NAMES:
        (tmp_path / "classes" / name).mkdir(parents=True)
    for number in range(10):
        shade(number).save(tmp_path / "classes" / labels[number] / f"{number}.png")
    return tmp_path / "classes"


def shades(rows) -> list[int]:
    return [int(np.asarray(row["image"])[0, 0, 0]) // 20 for row in rows]


def test_slices_of_every_source_part_its_rows(ten_images):
    whole = shades(load_image_dataset(ten_images, label_column="label"))
    assert sorted(whole) == list(range(10))
    for first, second in (("train[:80%]", "train[80%:]"), ("train[:3]", "train[3:]"), ("train[:-2]", "train[-2:]")):
        parts = [load_image_dataset(ten_images, spec, label_column="label") for spec in (first, second)]
        assert shades(parts[0]) + shades(parts[1]) == whole
        assert len(parts[1]) in (2, 7)
        # Names are numbered over the whole dataset, so a slice that lacks a class counts like the others.
        assert all(part.features["label"].names == NAMES for part in parts)
    assert shades(load_image_dataset(ten_images, "all", label_column="label")) == whole
    assert shades(load_image_dataset(ten_images, "train[:2]+train[8:]")) == whole[:2] + whole[8:]


@pytest.mark.parametrize("split", ["test", "validation[:10%]"])
def test_a_split_that_does_not_exist_is_refused_with_the_ways_out(ten_images, split):
    with pytest.raises(
        ValueError, match=r"no split '(test|validation)', only 'train' \(10 rows\).*train\[:80%\]"
    ) as found:
        load_image_dataset(ten_images, split)
    assert "--holdout 0.2" in str(found.value)
    assert "--test-dataset" in str(found.value)


def test_the_only_split_is_the_default_whatever_its_name(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "a", "code": "b"}\n')
    assert load_text_dataset(tmp_path)[0] == {"text": "a", "code": "b"}
    (tmp_path / "dev.jsonl").write_text('{"text": "c", "code": "d"}\n')
    with pytest.raises(ValueError, match="no split 'train', only 'dev' .*'test'"):
        load_text_dataset(tmp_path)
    assert load_text_dataset(tmp_path, "all")["text"][:] == ["c", "a"]


def test_a_lone_file_is_not_every_split(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"text": "a", "code": "b"}\n')
    (tmp_path / "clips.csv").write_text("a.mp4 0\n")
    (tmp_path / "captions.csv").write_text("image,text\na.png,a cat\n")
    for load, name in (
        (load_text_dataset, "pairs.jsonl"),
        (load_video_dataset, "clips.csv"),
        (load_vision_text_dataset, "captions.csv"),
    ):
        load(tmp_path / name)
        with pytest.raises(ValueError, match="no split 'test'"):
            load(tmp_path / name, "test")


def test_streams_take_slices_by_row_number(tmp_path):
    rows = Dataset.from_dict({"image": [shade(n) for n in range(6)]}, Features({"image": Image()}))
    rows.to_parquet(str(tmp_path / "data.parquet"))
    part = load_image_dataset(tmp_path / "data.parquet", "train[1:4]", streaming=True)
    assert shades(part) == [1, 2, 3]
    with pytest.raises(ValueError, match="by row numbers"):
        load_image_dataset(tmp_path / "data.parquet", "train[:50%]", streaming=True)


def test_integer_labels_stay_and_rows_without_label_are_named(tmp_path):
    rows = Dataset.from_dict({"image": [shade(0)] * 2, "label": [7, 3]})
    rows.to_parquet(str(tmp_path / "a.parquet"))
    assert load_image_dataset(tmp_path / "a.parquet", label_column="label")["label"][:] == [7, 3]
    Dataset.from_dict({"image": [shade(0)] * 2, "label": ["x", None]}).to_parquet(str(tmp_path / "b.parquet"))
    with pytest.raises(ValueError, match="Some rows have no label in 'label'"):
        load_image_dataset(tmp_path / "b.parquet", label_column="label")
    features = Features({"image": Image(), "label": ClassLabel(names=["z", "a"])})
    Dataset.from_dict({"image": [shade(0)] * 2, "label": [0, 1]}, features).to_parquet(str(tmp_path / "c.parquet"))
    assert load_image_dataset(tmp_path / "c.parquet", label_column="label").features["label"].names == ["z", "a"]


def test_slices_of_a_dataset_of_the_hub(monkeypatch):
    rows = Dataset.from_dict({"image": [shade(n) for n in range(10)], "label": NAMES * 5}).cast_column(
        "image", Image()
    )
    asked = []

    def hub(*args, **kwargs):
        asked.append((args, kwargs))
        return DatasetDict(train=rows, test=rows.select([0]))

    monkeypatch.setattr("datasets.load_dataset", hub)
    part = load_image_dataset("some/photos", "train[80%:]", label_column="label", config_name="small", revision="v1")
    assert shades(part) == [8, 9]
    assert part.features["label"].names == NAMES
    assert asked == [(("some/photos", "small"), {"streaming": False, "revision": "v1"})]
    with pytest.raises(
        ValueError, match=r"'some/photos' has no split 'val', only 'train' \(10 rows\), 'test' \(1 rows\)"
    ):
        load_image_dataset("some/photos", "val")
