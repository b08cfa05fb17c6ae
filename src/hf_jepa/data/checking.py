"""All that is wrong with a dataset at once: unreadable, too short, without text, the same in two splits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader, Dataset

from .chat_views import as_messages
from .decoding import decode_image
from .labels import row_content
from .loading import open_images, open_texts, open_videos, open_vision_texts
from .manifests import LIST_SUFFIXES, medium_of, read_list, resolve_paths
from .splits import Source
from .video_decoding import open_video

Kind = Literal["images", "videos", "pairs", "texts"]


@dataclass(frozen=True)
class Fault:
    """
    What is wrong with a row.

    Args:
        kind (`str`): `"bad"`, `"short"` or `"duplicate"`.
        split (`str`): of the row.
        row (`int`): its number.
        path (`str`, *optional*): of its file.
        reason (`str`): for a person.
    """

    kind: str
    split: str
    row: int
    path: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.kind:<9} {self.split} row {self.row}{f' ({self.path})' if self.path else ''}: {self.reason}"


def check_data(
    name_or_path: str | Path,
    kind: Kind | None = None,
    column: str | None = None,
    text_column: str = "text",
    min_frames: int = 2,
    num_workers: int = 0,
) -> tuple[list[Fault], int]:
    """
    Reads every row of every split of a dataset, videos frame by frame, and says all that is wrong with it.

    Args:
        name_or_path (`str` or `Path`): what [`load_image_dataset`], [`load_video_dataset`] or
            [`load_vision_text_dataset`] takes.
        kind (`str`, *optional*): `"images"`, `"videos"`, `"pairs"` of either with a text, or `"texts"`: pairs of Text
            and Code, or chats in `messages`, for an LLM; found out by default.
        column (`str`, *optional*): of images or videos, by default `"image"` or `"video"`, whichever there is; of
            texts the one of Code, by default `"code"`.
        text_column (`str`): of the texts of pairs, or of Text.
        min_frames (`int`): videos with fewer frames are short: what a clip spans, for clips without repeated frames.
        num_workers (`int`): processes that read.

    Returns:
        `tuple` of a list of [`Fault`], by split and row, duplicates last, and the number of rows.

    Raises:
        ValueError: if the dataset cannot be opened, or has no rows of the kind.
    """
    kind = kind or _kind_of(Path(name_or_path).expanduser())
    if kind == "texts":
        return _check_texts(name_or_path, text_column, column or "code")
    source, column = _open(name_or_path, kind, column)
    texts = text_column if kind == "pairs" else None
    faults, contents, count = [], {}, 0
    for split, rows in source.splits.items():
        if texts is not None and texts not in rows.column_names:
            raise ValueError(f"Split {split!r} of {source.name!r} has no column {texts!r}, but {rows.column_names}.")
        checks = _Checks(rows, column, texts, kind, min_frames)
        for row, path, fault, content in DataLoader(checks, batch_size=None, num_workers=num_workers):
            count += 1
            if fault is not None:
                faults.append(Fault(fault[0], split, row, path, fault[1]))
            if content is not None:
                contents.setdefault(content, []).append((split, row, path))
    return faults + list(_duplicates(contents)), count


def _kind_of(path: Path) -> Kind:
    if path.is_dir():
        if any(path.rglob("metadata.*")):
            return "pairs"
        names = [file.name for file in path.rglob("*") if file.is_file()]
        medium = medium_of(names)
        if medium is not None:
            return "videos" if medium == "video" else "images"
        if names and all(name.endswith((".json", ".jsonl")) for name in names):
            return _kind_of_rows(path)
    elif path.suffix in (".json", ".jsonl") and path.is_file():
        return _kind_of_rows(path)
    elif path.suffix in LIST_SUFFIXES and path.is_file():
        return "videos" if "video" in read_list(path, None, "label").column_names else "images"
    elif not path.exists():
        raise ValueError(
            f"There is no file or folder {str(path)!r}; of a dataset on the Hub say what it holds: --kind images, "
            "videos, pairs or texts."
        )
    raise ValueError(f"What {str(path)!r} holds does not show: say --kind images, videos, pairs or texts.")


def _kind_of_rows(path: Path) -> Kind:
    columns = next(iter(open_texts(path).splits.values())).column_names
    return "pairs" if {"image", "video"} & {*columns} else "texts"


def _check_texts(name: str | Path, text_column: str, code_column: str) -> tuple[list[Fault], int]:
    faults, contents, count = [], {}, 0
    for split, rows in open_texts(name).splits.items():
        known = {"messages", text_column, code_column} & {*rows.column_names}
        if "messages" not in known and len(known) < 2:
            raise ValueError(
                f"Split {split!r} of {str(name)!r} has the columns {rows.column_names}, neither 'messages' nor "
                f"{text_column!r} and {code_column!r}; name yours: --text-column TEXT --column CODE."
            )
        for number, row in enumerate(rows):
            count += 1
            try:
                pair = as_messages(row, text_column=text_column, code_column=code_column)[-2:]
            except ValueError as error:
                faults.append(Fault("bad", split, number, None, str(error)))
                continue
            contents.setdefault(tuple(turn["content"] for turn in pair), []).append((split, number, None))
    return faults + list(_duplicates(contents)), count


def _open(name: str | Path, kind: Kind, column: str | None) -> tuple[Source, str]:
    if kind != "pairs":
        column = column or kind[:-1]
        source = (open_images if kind == "images" else open_videos)(name, None, column)
    else:
        source = open_vision_texts(name)
        columns = next(iter(source.splits.values())).column_names
        column = column or next((known for known in ("video", "image") if known in columns), "image")
    for rows in source.splits.values():
        if column not in rows.column_names:
            raise ValueError(f"{source.name!r} has no column {column!r}, but {rows.column_names}.")
    if kind != "pairs" or source.root is None:
        return source, column
    splits = {split: resolve_paths(rows, column, source.root) for split, rows in source.splits.items()}
    return Source(source.name, splits, source.root), column


class _Checks(Dataset):
    """Of each row: its number, its path, what is wrong, and a hash of its content."""

    def __init__(self, rows: Any, column: str, text_column: str | None, kind: Kind, min_frames: int) -> None:
        from datasets import Image, Video

        rows = rows.with_format(None)
        self.is_video = kind == "videos" or column == "video"
        if isinstance(rows.features[column], (Image, Video)):
            rows = rows.cast_column(column, type(rows.features[column])(decode=False))
        self.rows, self.column, self.text_column, self.min_frames = rows, column, text_column, min_frames

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, str | None, tuple[str, str] | None, Any]:
        row = self.rows[index]
        cell = row[self.column]
        path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
        try:
            fault = self._fault(cell, row)
            content = row_content(cell)[1]()
        except Exception as error:  # PIL's, FFmpeg's, the file system's: all of them are what is looked for
            return index, path, ("bad", " ".join(str(error).split())), None
        return index, path, fault, content

    def _fault(self, cell: Any, row: dict[str, Any]) -> tuple[str, str] | None:
        if not self.is_video:
            decode_image(cell)
        else:
            with open_video(cell) as video:
                # All of them: a file that was cut off, or lost a part, has its first frames.
                for start in range(0, video.num_frames, 32):
                    video.frames(range(start, min(start + 32, video.num_frames)))
                if video.num_frames < self.min_frames and not video.is_image:
                    return "short", f"{video.num_frames} frames, fewer than {self.min_frames}"
        if self.text_column is not None:
            text = row[self.text_column]
            if not isinstance(text, (str, list)) or not (text.strip() if isinstance(text, str) else text):
                return "bad", f"no text in {self.text_column!r}"
        return None


def _duplicates(contents: dict[Any, list[tuple[str, int, str | None]]]) -> Iterator[Fault]:
    """Rows that an earlier split has too; within a split, the same content twice may be meant."""
    for places in contents.values():
        first = places[0]
        for split, row, path in places[1:]:
            if split != first[0]:
                where = f"{first[0]} row {first[1]}" + (f" ({first[2]})" if first[2] else "")
                yield Fault("duplicate", split, row, path, f"has the content of {where}")
