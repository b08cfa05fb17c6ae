"""Lists as people keep them: with and without header, any delimiter, quotes; paths start from the list's folder."""

import json

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hf_jepa.data import (
    SeededImageDataset,
    VisionTextDataset,
    eval_transform,
    load_image_dataset,
    load_text_dataset,
    load_video_dataset,
    load_vision_text_dataset,
)

FILES = ["red cat.png", "Ünïcødé, 猫.png", "c.png"]


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(FILES):
        (tmp_path / "sub").mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 9, 3), 40 * number, np.uint8)).save(tmp_path / "sub" / name)
    return tmp_path


def rows_of(dataset) -> list[tuple[int, str]]:
    names = dataset.features["label"].names
    samples = SeededImageDataset(dataset, eval_transform(4, (0.0,) * 3, (1.0,) * 3), label_column="label")
    return [
        (round(float(samples[n]["pixel_values"][0, 0, 0]) * 255), names[samples[n]["label"]])
        for n in range(len(dataset))
    ]


@pytest.mark.parametrize("header", ["", "image{}label\n", "file_name{}class\n", "class{}path\n"])
@pytest.mark.parametrize("delimiter", [",", "\t", " ", ", "])
def test_lists_of_images(photos, monkeypatch, tmp_path_factory, header, delimiter):
    cells = [(f'"sub/{name}"', label) for name, label in zip(FILES, ["cat", "fox", "cat"], strict=True)]
    if header.startswith("class"):
        cells = [pair[::-1] for pair in cells]
    text = header.format(delimiter) + "\n".join(delimiter.join(pair) for pair in cells) + "\n\n"
    (photos / "list.csv").write_text(text, encoding="utf-8")
    # From anywhere: paths start from the list's folder.
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    label = "class" if "class" in header else "label"
    rows = load_image_dataset(photos / "list.csv", label_column=label)
    if label == "class":
        rows = rows.rename_column("class", "label")
    assert rows_of(rows) == [(0, "cat"), (40, "fox"), (80, "cat")]


def test_other_columns_of_a_header_are_kept(photos):
    (photos / "list.csv").write_text("id,image,label,note\n1,sub/c.png,5,x\n2,sub/c.png,6,y\n")
    rows = load_image_dataset(photos / "list.csv", label_column="label")
    assert rows.column_names == ["id", "image", "label", "note"]
    assert rows["label"][:] == [5, 6]
    with pytest.raises(ValueError, match=r"label_column='kind'.*\['id', 'image', 'label', 'note'\]"):
        load_image_dataset(photos / "list.csv", label_column="kind")


def test_the_byte_order_mark_of_spreadsheets_is_no_part_of_the_header(photos):
    (photos / "list.csv").write_text("image,label\nsub/c.png,1\n", encoding="utf-8-sig")
    assert load_image_dataset(photos / "list.csv", label_column="label")["label"][:] == [1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json", "folder"])
def test_paths_in_every_manifest_start_from_its_folder(photos, monkeypatch, tmp_path_factory, kind):
    content = [{"image": f"sub/{name}", "label": "x"} for name in FILES]
    if kind == "parquet":
        Dataset.from_list(content).to_parquet(str(photos / "m.parquet"))
    elif kind == "json":
        (photos / "m.json").write_text(json.dumps(content))
    else:
        (photos / ("m.jsonl" if kind == "jsonl" else "train.jsonl")).write_text("\n".join(map(json.dumps, content)))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    rows = load_image_dataset(photos if kind == "folder" else photos / f"m.{kind}", label_column="label")
    assert rows_of(rows) == [(0, "x"), (40, "x"), (80, "x")]


@pytest.mark.parametrize("header", ["", "image,text\n", "path,caption\n"])
def test_lists_of_pairs(photos, header):
    texts = ["a red cat, asleep", "deux renards", "42"]
    lines = [f'"sub/{name}","{text}"' for name, text in zip(FILES, texts, strict=True)]
    (photos / "pairs.csv").write_text(header + "\n".join(lines), encoding="utf-8")
    rows, root = load_vision_text_dataset(photos / "pairs.csv")
    pairs = VisionTextDataset(rows, root=root)
    assert [pairs[n]["target"] for n in range(3)] == texts
    assert [int(pairs[n]["image"][0, 0, 0]) for n in range(3)] == [0, 40, 80]
    (photos / "bare.txt").write_text("sub/c.png a text of several words\nsub/red cat.png another\n")
    assert load_vision_text_dataset(photos / "bare.txt")[0]["text"][:] == ["a text of several words", "another"]


def test_lists_of_videos_with_a_header(tmp_path):
    (tmp_path / "clips.tsv").write_text("label\tvideo\nrun\ta b.mp4\njump\tc.mp4\n")
    rows = load_video_dataset(tmp_path / "clips.tsv", label_column="label")
    assert rows["video"][:] == [str(tmp_path / "a b.mp4"), str(tmp_path / "c.mp4")]
    assert rows["label"][:] == [1, 0]


def test_tables_of_texts_need_a_header_and_whole_rows(tmp_path):
    (tmp_path / "train.csv").write_text('text,code\n"two, words","print(1)\nprint(2)"\n')
    assert load_text_dataset(tmp_path)[0] == {"text": "two, words", "code": "print(1)\nprint(2)"}
    (tmp_path / "bad.csv").write_text("text,code\na,b,c\n")
    with pytest.raises(ValueError, match=r"Row 1 of .* has 3 cells; the header \['text', 'code'\] has 2"):
        load_text_dataset(tmp_path / "bad.csv")
    (tmp_path / "none.csv").write_text("text,code\n")
    with pytest.raises(ValueError, match="no rows below its header"):
        load_text_dataset(tmp_path / "none.csv")
