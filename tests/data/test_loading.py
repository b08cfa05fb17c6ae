import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from hf_jepa.data import load_image_dataset


def photos(count: int) -> list[PILImage.Image]:
    return [PILImage.fromarray(np.full((8, 8), i, np.uint8)) for i in range(count)]


@pytest.fixture
def rows() -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"image": photos(6), "label": [0, 1] * 3}, features=features)


def test_folder_of_images_has_classes_and_splits(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i, photo in enumerate(photos(count)):
                photo.save(tmp_path / split / name / f"{i}.png")
    dataset = load_image_dataset(tmp_path, "train", label_column="label")
    assert len(dataset) == 6
    assert dataset.features["label"].names == ["cat", "dog"]
    assert len(load_image_dataset(str(tmp_path), "test")) == 4
    assert len(load_image_dataset(tmp_path, "train[:4]")) == 4
    with pytest.raises(ValueError, match="validation"):
        load_image_dataset(tmp_path, "validation")


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_file_and_folder(rows, tmp_path, streaming):
    rows.to_parquet(str(tmp_path / "train.parquet"))
    for path in (tmp_path / "train.parquet", tmp_path):
        dataset = load_image_dataset(path, "train", label_column="label", streaming=streaming)
        assert [row["label"] for row in dataset] == [0, 1] * 3
        assert next(iter(dataset))["image"].size == (8, 8)


def test_saved_datasets(rows, tmp_path):
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, extra=rows.select([0])).save_to_disk(tmp_path / "many")
    assert len(load_image_dataset(tmp_path / "one", "train")) == 6
    assert len(load_image_dataset(tmp_path / "many", "extra")) == 1
    assert len(list(load_image_dataset(tmp_path / "many", "train", streaming=True))) == 6
    with pytest.raises(ValueError, match="only 'train' \\(6 rows\\), 'extra' \\(1 rows\\)"):
        load_image_dataset(tmp_path / "many", "test")


def test_missing_column_is_named_with_those_there_are(rows, tmp_path):
    rows.to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match=r"image_column='img'.*\['image', 'label'\]"):
        load_image_dataset(tmp_path, "train", image_column="img")


def test_what_is_not_there_is_an_error_and_never_a_download(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    for path in (tmp_path / "nowhere", "./nowhere", "~/nowhere/at/all", "some/mistyped/folder", "mistyped.csv"):
        with pytest.raises(ValueError, match="no file or folder"):
            load_image_dataset(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is empty"):
        load_image_dataset(tmp_path / "empty")
    (tmp_path / "notes.md").write_text("no data")
    with pytest.raises(ValueError, match=r"none of \.jsonl, \.json, \.parquet, \.tar, \.csv, \.tsv, \.txt"):
        load_image_dataset(tmp_path / "notes.md")


def test_unreachable_hub_dataset_is_a_clear_error():
    with pytest.raises(ValueError, match="nobody/no-such-images.*neither a local path nor a Hub dataset"):
        load_image_dataset("nobody/no-such-images")
