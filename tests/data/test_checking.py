"""`hf-jepa check-data`: all that is wrong with a folder, at once."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hf_jepa.cli import main
from hf_jepa.data.checking import check_data
from hf_jepa.data.manifests import medium_of


def write_image(path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def told(faults) -> list[tuple[str, str, str]]:
    return [(fault.kind, fault.split, fault.path.rpartition("/")[2]) for fault in faults]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for number in range(4):
        write_image(folder / "train" / "cat" / f"{number}.png", number)
    write_image(folder / "test" / "cat" / "new.png", 90)
    shutil.copy(folder / "train" / "cat" / "2.png", folder / "test" / "cat" / "again.png")
    shutil.copy(folder / "train" / "cat" / "2.png", folder / "train" / "cat" / "twice in one split.png")
    (folder / "train" / "cat" / "empty.jpg").write_bytes(b"")
    (folder / "test" / "cat" / "empty too.jpg").write_bytes(b"")
    whole = (folder / "train" / "cat" / "3.png").read_bytes()
    (folder / "train" / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_image(folder / "train" / "cat" / "tiny.png", 0)
    Image.new("RGB", (1, 1)).save(folder / "train" / "cat" / "tiny.png")
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images(images, num_workers):
    faults, count = check_data(images, num_workers=num_workers)
    assert count == 11
    assert sorted(told(faults)) == [
        ("bad", "test", "empty too.jpg"),
        ("bad", "train", "cut.png"),
        ("bad", "train", "empty.jpg"),
        ("bad", "train", "tiny.png"),
        ("duplicate", "test", "again.png"),
    ]
    assert "train row 2" in faults[-1].reason


def test_the_command_lists_them_and_fails(images, tmp_path, capsys):
    assert main(["check-data", str(images)]) == 1
    output = capsys.readouterr()
    assert "empty.jpg): the image is empty (zero bytes)" in output.out
    assert len(output.out.splitlines()) == 5
    assert "4 bad, 1 duplicate of 11 rows." in output.err
    write_image(tmp_path / "good" / "a.png", 1)
    assert main(["check-data", str(tmp_path / "good")]) == 0
    assert "1 rows, all of them usable" in capsys.readouterr().out


def test_videos(tmp_path, write_video):
    for name, count in (("long", 12), ("short", 5)):
        write_video(tmp_path / "clips" / "train" / f"{name}.mp4", num_frames=count)
    whole = (tmp_path / "clips" / "train" / "long.mp4").read_bytes()
    (tmp_path / "clips" / "train" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "clips" / "test").mkdir()
    shutil.copy(tmp_path / "clips" / "train" / "long.mp4", tmp_path / "clips" / "test" / "same.mp4")
    faults, count = check_data(tmp_path / "clips", min_frames=8)
    assert count == 4
    assert sorted(told(faults)) == [
        ("bad", "train", "cut.mp4"),
        ("duplicate", "test", "same.mp4"),
        ("short", "train", "short.mp4"),
    ]
    # A part behind the middle is gone; the first frames and the last are there.
    write_video(tmp_path / "hole" / "hole.mp4", num_frames=90)
    data = bytearray((tmp_path / "hole" / "hole.mp4").read_bytes())
    start, end = data.index(b"mdat"), data.rindex(b"moov")
    middle = slice(start + 6 * (end - start) // 10, start + 9 * (end - start) // 10)
    data[middle] = bytes(middle.stop - middle.start)
    (tmp_path / "hole" / "hole.mp4").write_bytes(data)
    faults, _ = check_data(tmp_path / "hole")
    assert told(faults) == [("bad", "train", "hole.mp4")]
    (tmp_path / "list.csv").write_text("clips/train/long.mp4 0\nclips/train/missing.mp4 1\n")
    faults, count = check_data(tmp_path / "list.csv")
    assert (told(faults), count) == ([("bad", "train", "missing.mp4")], 2)
    assert "there is no file" in faults[0].reason


def test_pairs(tmp_path):
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.png", number)
    rows = [{"image": f"images/{n}.png", "text": text} for n, text in enumerate(["a cat", " ", "a dog"])]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text(json.dumps({"image": "images/2.png", "text": "another text"}))
    faults, count = check_data(tmp_path, "pairs")
    assert count == 4
    assert [str(fault).replace(str(tmp_path), "") for fault in faults] == [
        "bad       train row 1 (/images/1.png): no text in 'text'",
        "duplicate test row 0 (/images/2.png): has the content of train row 2 (/images/2.png)",
    ]
    with pytest.raises(ValueError, match="has no column 'caption'"):
        check_data(tmp_path, "pairs", text_column="caption")
    with pytest.raises(ValueError, match="There is no file or folder '.*nowhere'; of a dataset on the Hub say"):
        check_data(tmp_path / "nowhere")


def test_folders_of_frames(tmp_path):
    for clip in ("good", "with a hole"):
        for number in range(3):
            write_image(tmp_path / "train" / clip / f"{number}.png", 10 * number)
    (tmp_path / "train" / "with a hole" / "1.png").write_bytes(b"")
    faults, count = check_data(tmp_path, "videos")
    assert count == 2
    assert told(faults) == [("bad", "train", "with a hole")]
    assert "zero bytes" in faults[0].reason


def test_what_does_not_show_is_asked_for(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="say --kind images, videos, pairs or texts"):
        check_data(tmp_path / "rows.parquet")


def test_a_gif_beside_photos_is_a_photo(tmp_path):
    write_image(tmp_path / "photos" / "a" / "0.png", 0)
    write_image(tmp_path / "photos" / "a" / "1.gif", 90)
    assert check_data(tmp_path / "photos") == ([], 2)
    (tmp_path / "list.tsv").write_text("photos/a/1.gif\t0\nphotos/a/0.png\t1\n")
    assert check_data(tmp_path / "list.tsv") == ([], 2)
    assert [medium_of(names) for names in (["1.gif"], ["1.gif", "a.mp4", "b.png"])] == ["video", "video"]
    assert medium_of(["notes.md"]) is None


def test_pairs_of_texts(tmp_path):
    rows = [{"text": "a", "code": "1"}, {"text": " ", "code": "2"}, {"text": "c", "code": "3"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[2]))
    faults, count = check_data(tmp_path)
    assert count == 4
    assert [str(fault) for fault in faults] == [
        "bad       train row 1: The Text view (the user's content) is empty; drop such rows.",
        "duplicate test row 0: has the content of train row 2",
    ]
    (tmp_path / "qa.csv").write_text("question,answer\na,1\n")
    assert check_data(tmp_path / "qa.csv", "texts", column="answer", text_column="question") == ([], 1)
    with pytest.raises(ValueError, match="name yours: --text-column TEXT --column CODE"):
        check_data(tmp_path / "qa.csv", "texts")
