"""Video datasets from folders, lists, parquet files, saved datasets or the Hub."""

import json
import re
from pathlib import Path
from typing import Any

from .dataset import check_columns
from .loading import load_split
from .video_decoding import IMAGE_SUFFIXES

LIST_SUFFIXES = (".csv", ".txt", ".jsonl")
VIDEO_SUFFIXES = (".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


def load_video_dataset(
    name_or_path: str | Path,
    split: str = "train",
    video_column: str = "video",
    label_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Any:
    """
    Loads one split of a video dataset and checks its columns. No video is opened.

    Args:
        name_or_path (`str` or `Path`): what exists locally is read from disk and nothing is downloaded:

            - a list of videos: `.csv` or `.txt` with lines `path label`, as V-JEPA's (a space, comma or tab between
              them, no header), or `.jsonl` with rows such as `{"video": path, "label": 3}`. Paths are relative to the
              list; images may stand among the videos. Labels are numbers, or names, which are numbered in their
              alphabetical order in this list, or absent.
            - a folder of videos (sub-folders are classes; `train/`, `validation/`, `test/` are splits) or of parquet
              files, one written by `save_to_disk`, or a parquet file.

            Anything else is the name of a dataset on the Hub.
        split (`str`): split, slices such as `"train[:1000]"` included. A list is one split, whatever its name.
        video_column (`str`): column of videos; what a `.csv` or `.txt` list has becomes this column.
        label_column (`str`, *optional*): column of integer labels; likewise.
        config_name (`str`, *optional*): configuration of a Hub dataset that has several.
        revision (`str`, *optional*): commit, branch or tag of a Hub dataset.

    Returns:
        `datasets.Dataset`.

    Raises:
        ValueError: if the path, split or column does not exist, a list is malformed, or the dataset cannot be reached.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file() and path.suffix in LIST_SUFFIXES:
        label = label_column or "label"
        rows = _read_jsonl(path, video_column) if path.suffix == ".jsonl" else _read_lines(path, video_column, label)
        dataset = _part(_as_dataset(path, rows, video_column, label), split)
    else:
        dataset = load_split(name_or_path, split, False, config_name, revision)
    check_columns(dataset, video_column, label_column, "video_column")
    return dataset


def _read_lines(path: Path, video_column: str, label_column: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        line = line.strip()
        if not line:
            continue
        if line.lower().endswith((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)):
            rows.append({video_column: line})
            continue
        parts = re.fullmatch(r"(.*[^ ,\t])[ ,\t]+([^ ,\t]+)", line)
        if parts is None:
            raise ValueError(f"Line {number} of {str(path)!r} is {line!r}, not `path label`.")
        rows.append({video_column: parts[1], label_column: parts[2]})
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"Some lines of {str(path)!r} have a label and some have none.")
    if all(re.fullmatch(r"-?\d+", row.get(label_column, "")) for row in rows):
        rows = [{**row, label_column: int(row[label_column])} for row in rows]
    return rows


def _read_jsonl(path: Path, video_column: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"Line {number} of {str(path)!r} is not JSON: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get(video_column), str):
            raise ValueError(f"Line {number} of {str(path)!r} has no path in {video_column!r}: {line[:80]}")
        rows.append(row)
    return rows


def _as_dataset(path: Path, rows: list[dict[str, Any]], video_column: str, label_column: str) -> Any:
    """Rows with absolute paths, and with classes where the labels are names."""
    from datasets import ClassLabel, Dataset

    if not rows:
        raise ValueError(f"The list {str(path)!r} is empty.")
    folder = path.parent.absolute()
    for row in rows:
        if "://" not in row[video_column]:
            row[video_column] = str(folder / row[video_column])
    labels = [row.get(label_column) for row in rows]
    if not all(isinstance(label, str) for label in labels):
        return Dataset.from_list(rows)
    classes = ClassLabel(names=sorted(set(labels)))
    rows = [{**row, label_column: classes.str2int(label)} for row, label in zip(rows, labels, strict=True)]
    return Dataset.from_list(rows).cast_column(label_column, classes)


def _part(dataset: Any, split: str) -> Any:
    from datasets import ReadInstruction

    if "[" not in split:
        return dataset
    name = split.split("[")[0]
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
    return dataset.select([index for part in parts for index in range(part.from_ or 0, part.to or len(dataset))])
