"""Rows of media with texts from every kind of place."""

import json
import shutil

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_jepa.data import VisionTextDataset, load_vision_text_dataset


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


def shades(rows, root=None) -> list[tuple[int, str]]:
    dataset = VisionTextDataset(rows, root=root)
    return [(int(dataset[n]["image"][0, 0, 0]), dataset[n]["target"]) for n in range(len(dataset))]


def test_manifests_have_paths_of_their_own(pictures, monkeypatch):
    lines = [json.dumps({"image": f"{number}.png", "text": f"shade {number}"}) for number in range(3)]
    (pictures / "train.jsonl").write_text("\n".join(lines))
    expected = [(0, "shade 0"), (10, "shade 1"), (20, "shade 2")]
    for name in (pictures, pictures / "train.jsonl"):
        rows, root = load_vision_text_dataset(name)
        assert root == pictures
        assert shades(rows, root) == expected
    rows, root = load_vision_text_dataset(pictures, "train[:2]")
    assert shades(rows, root) == expected[:2]
    # Absolute paths stay what they are.
    rows = Dataset.from_dict({"image": [str(pictures / "2.png")], "text": ["w"]})
    assert shades(rows, root="elsewhere") == [(20, "w")]


def test_folders_with_metadata_and_saved_datasets(pictures, tmp_path):
    lines = [json.dumps({"file_name": f"{number}.png", "text": f"shade {number}"}) for number in range(3)]
    (tmp_path / "folder").mkdir()
    shutil.copytree(pictures, tmp_path / "folder" / "train")
    (tmp_path / "folder" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    rows, root = load_vision_text_dataset(tmp_path / "folder")
    assert root is None
    assert sorted(shades(rows)) == [(0, "shade 0"), (10, "shade 1"), (20, "shade 2")]
    rows.save_to_disk(str(tmp_path / "saved"))
    assert sorted(shades(load_vision_text_dataset(tmp_path / "saved")[0])) == sorted(shades(rows))


def test_places_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        load_vision_text_dataset(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="'nobody/nothing' is neither a local path nor a Hub dataset"):
        load_vision_text_dataset("nobody/nothing")
