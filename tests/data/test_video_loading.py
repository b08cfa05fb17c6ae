"""Folders, lists, parquet files and saved datasets of videos; none is opened."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Video

from hf_jepa.data import ClipSampler, SeededVideoDataset, load_video_dataset, video_train_transform


@pytest.fixture
def folder(tmp_path, write_video):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("jump", "run"):
            for i in range(count):
                write_video(tmp_path / split / name / f"{i}.mp4", num_frames=4)
    return tmp_path


def test_folder_has_classes_and_splits(folder):
    dataset = load_video_dataset(folder, "train", label_column="label")
    assert len(dataset) == 6
    assert dataset.features["label"].names == ["jump", "run"]
    assert len(load_video_dataset(str(folder), "test")) == 4
    assert len(load_video_dataset(folder, "train[:4]")) == 4
    with pytest.raises(ValueError, match="validation"):
        load_video_dataset(folder, "validation")
    clips = SeededVideoDataset(dataset, ClipSampler(2, frame_step=1), video_train_transform(16), label_column="label")
    assert sorted(clips[index]["label"] for index in range(6)) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", "])
def test_list_of_paths_and_numbers(folder, separator):
    lines = [f"train/jump/0.mp4{separator}7", f"{folder}/train/run/1.mp4{separator}3", "", f"a b.mp4{separator}7"]
    (folder / "list.csv").write_text("\n".join(lines))
    dataset = load_video_dataset(folder / "list.csv", label_column="label")
    assert dataset["label"][:] == [7, 3, 7]
    paths = [folder / "train/jump/0.mp4", folder / "train/run/1.mp4", folder / "a b.mp4"]
    assert dataset["video"][:] == list(map(str, paths))
    assert load_video_dataset(folder / "list.csv", "train[1:]")["video"][:] == list(map(str, paths[1:]))
    assert len(load_video_dataset(folder / "list.csv", "train[:34%]")) == 1


def test_list_with_names_or_without_labels(folder):
    (folder / "names.txt").write_text("a.mp4 run\nb.png jump\nc.webm run\n")
    dataset = load_video_dataset(folder / "names.txt", video_column="clip", label_column="action")
    assert dataset.features["action"] == ClassLabel(names=["jump", "run"])
    assert dataset["action"][:] == [1, 0, 1]
    (folder / "bare.txt").write_text("a.mp4\nb c.MP4\n")
    assert load_video_dataset(folder / "bare.txt")["video"][1] == str(folder / "b c.MP4")
    with pytest.raises(ValueError, match="label_column='label' is not a column .*: name yours, or put the files"):
        load_video_dataset(folder / "bare.txt", label_column="label")


def test_list_of_json_rows(folder):
    rows = [{"video": "a.mp4", "label": 4, "note": "x"}, {"video": "/b.mp4", "label": 2, "note": "y"}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_video_dataset(folder / "rows.jsonl", label_column="label")
    assert dataset[0] == {"video": str(folder / "a.mp4"), "label": 4, "note": "x"}
    assert dataset[1]["video"] == "/b.mp4"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "clip7\n", r"Line 1 of .* is 'clip7', not `path label`"),
        ("a.csv", "x.mp4 3\ny.mp4\n", "Some lines of .* have a label and some have none"),
        ("a.csv", "\n\n", "is empty"),
        ("a.jsonl", '{"video": "x.mp4"\n', "Line 1 of .* is not JSON"),
        ("a.jsonl", '{"clip": "x.mp4"}\n', "video_column='video' is not a column"),
        ("a.json", "[]", "Cannot read"),
    ],
)
def test_malformed_lists_are_named_with_their_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_video_dataset(tmp_path / name)


def test_parquet_files_and_saved_datasets(folder, tmp_path):
    cells = [{"bytes": (folder / f"train/run/{i}.mp4").read_bytes(), "path": f"{i}.mp4"} for i in range(3)]
    features = Features({"video": Video(), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"video": cells, "label": [0, 1, 1]}, features=features)
    rows.to_parquet(str(tmp_path / "train.parquet"))
    rows.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "train.parquet", tmp_path / "saved"):
        dataset = load_video_dataset(path, label_column="label")
        clips = SeededVideoDataset(dataset, ClipSampler(2, frame_step=1), video_train_transform(16))
        assert [clips[index]["pixel_values_videos"].shape for index in range(3)] == 3 * [(2, 3, 16, 16)]


def test_missing_columns_and_paths_are_named_and_nothing_is_downloaded(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"video_column='clip'.*\['label', 'video'\]"):
        load_video_dataset(folder, video_column="clip")

    def refuse(*args, **kwargs):
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    for path in (folder / "nowhere", "./nowhere.csv", "some/mistyped/list.csv"):
        with pytest.raises(ValueError, match="no file or folder"):
            load_video_dataset(path)
