"""Lists of files with labels or texts: `.csv`, `.tsv` and `.txt`, with or without a header."""

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LIST_SUFFIXES = (".csv", ".tsv", ".txt")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
_MEDIA = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, ".npy")


def medium_of(names: Iterable[str]) -> str | None:
    """
    What files of these names are: `"image"` or `"video"`, `None` where no name shows it. Beside images a GIF is one.
    """
    suffixes = {os.path.splitext(name.lower())[1] for name in names}
    if suffixes & {*VIDEO_SUFFIXES} - {".gif"}:
        return "video"
    if suffixes & {*IMAGE_SUFFIXES, ".npy"}:
        return "image"
    return "video" if ".gif" in suffixes else None


def read_list(path: Path, media_column: str | None, other_column: str, is_text: bool = False) -> Any:
    """
    A list of images or videos. Commas, tabs or spaces stand between the columns, cells may be quoted, and a header is
    recognised by holding no file. Without a header a line is `path label`, where the path may hold spaces, or a path.

    Args:
        path (`Path`): the list. Relative paths in it start from its folder.
        media_column (`str`, *optional*): what the column of paths becomes; `None` for `image` or `video`, by suffix.
        other_column (`str`): what the other column becomes where there is one without a name, or just one.
        is_text (`bool`): the other column holds texts, not labels: it may have spaces, and stays text.

    Returns:
        `datasets.Dataset`: absolute paths, and labels as int64 if all are whole numbers, else as strings.

    Raises:
        ValueError: naming the line that is malformed.
    """
    from datasets import Dataset

    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise ValueError(f"The list {str(path)!r} is empty.")
    names, rows = _columns(text, path) or _lines(text, path, is_text)
    folder = path.parent.absolute()
    place = _path_column(names, rows, media_column, folder)
    media = media_column or medium_of(row[place] for row in rows) or "video"
    names = [media if number == place else name for number, name in enumerate(names)]
    if len(names) == 2 and other_column not in names:
        names[1 - place] = other_column
    columns = {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}
    columns[media] = [_absolute(cell, folder) for cell in columns[media]]
    labels = columns.get(other_column)
    if labels and not is_text and all(re.fullmatch(r"-?\d+", label) for label in labels):
        columns[other_column] = [int(label) for label in labels]
    return Dataset.from_dict(columns)


def read_text_table(path: Path) -> Any:
    """
    Rows of texts from a `.csv`, `.tsv` or `.txt` file, whose first line names the columns.

    Raises:
        ValueError: for a row with more or fewer cells than the header.
    """
    from datasets import Dataset

    text = path.read_text(encoding="utf-8-sig")
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    names, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row] or [[]]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise ValueError(
                f"Row {number} of {str(path)!r} has {len(row)} cells; the header {names} has {len(names)}."
            )
    if not rows:
        raise ValueError(f"{str(path)!r} has no rows below its header {names}.")
    return Dataset.from_dict({name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)})


def resolve_paths(dataset: Any, column: str, folder: Path) -> Any:
    """A map-style dataset whose paths, if the column holds texts, are absolute: from the manifest's folder on."""
    from datasets import Value

    if dataset.features.get(column) not in (Value("string"), Value("large_string")):
        return dataset
    folder, names = folder.absolute(), dataset.column_names
    paths = [cell and _absolute(cell, folder) for cell in dataset[column]]
    dataset = dataset.add_column("absolute path", paths).remove_columns(column)
    return dataset.rename_column("absolute path", column).select_columns(names)


def _absolute(cell: str, folder: Path) -> str:
    return cell if "://" in cell else str(folder / Path(cell).expanduser())


def _is_media(cell: str, folder: Path) -> bool:
    return cell.lower().endswith(_MEDIA) or "://" in cell or bool(cell) and (folder / cell).exists()


def _columns(text: str, path: Path) -> tuple[list[str], list[list[str]]] | None:
    """The table, if one delimiter gives all lines as many cells and it is clear which of them are paths."""
    folder = path.parent
    for delimiter in "\t, ":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [[cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row)]
        width = len(rows[0])
        if width < 2 or any(len(row) != width for row in rows):
            continue
        if len(rows) > 1 and not any(_is_media(cell, folder) for cell in rows[0]):
            if any(_is_media(cell, folder) for cell in rows[1]):
                return rows[0], rows[1:]
        elif width == 2 and all(_is_media(row[0], folder) for row in rows):
            return ["path", ""], rows
    return None


def _lines(text: str, path: Path, is_text: bool) -> tuple[list[str], list[list[str]]]:
    """Lines `path label` (of which the path may hold blanks and commas), `path text`, or `path`."""
    pattern = (
        rf"(.*?(?:{'|'.join(map(re.escape, _MEDIA))}))[ ,\t]+(.+)" if is_text else r"(.*[^ ,\t])[ ,\t]+([^ ,\t]+)"
    )
    folder, rows = path.parent, []
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) > 1 and not _names_media(lines[0][1], folder) and _names_media(lines[1][1], folder):
        del lines[0]
    for number, line in lines:
        bare, parts = line.strip('"'), re.fullmatch(pattern, line, re.IGNORECASE)
        if _is_media(bare, folder):
            rows.append([bare])
        elif parts is not None:
            rows.append([part.strip('"') for part in parts.groups()])
        else:
            raise ValueError(f"Line {number} of {str(path)!r} is {line!r}, not `path label`.")
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"Some lines of {str(path)!r} have a label and some have none.")
    return ["path", ""][: len(rows[0])], rows


def _names_media(line: str, folder: Path) -> bool:
    return any(_is_media(part.strip('"'), folder) for part in (line, *re.split("[ ,\t]+", line)))


def _path_column(names: list[str], rows: list[list[str]], asked: str | None, folder: Path) -> int:
    for name in (asked, "image", "video"):
        if name in names and (asked is None or name == asked):
            return names.index(name)
    return next((place for place, cell in enumerate(rows[0]) if _is_media(cell, folder)), 0)
