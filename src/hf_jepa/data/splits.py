"""From the name or the path of a dataset to one of its splits, the same way for every kind of data."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..file_errors import file_at_fault
from .manifests import LIST_SUFFIXES

logger = logging.get_logger(__name__)

_TABLES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_ARCHIVES = {".tar": "webdataset"}
# A folder that has files of these names has these splits; other files of its top are notes.
SPLIT_NAMES = ("train", "training", "validation", "valid", "val", "dev", "test", "eval")
WAYS_OUT = (
    "Ways out: parts of a split ('train[:80%]' and 'train[80%:]', or 'train[:1000]'); in `hf-jepa evaluate` and "
    "`report` a dataset for each (--train-dataset and --test-dataset) or rows held out at random (--holdout 0.2)."
)


class MissingSplitError(ValueError):
    """A split that a dataset has not; `split` is what was asked for."""

    def __init__(self, message: str, split: str) -> None:
        super().__init__(message)
        self.split = split


@dataclass(frozen=True)
class Source:
    """
    A dataset with all its splits.

    Args:
        name (`str`): as the caller gave it.
        splits (`Mapping[str, datasets.Dataset]`): or `IterableDataset`.
        root (`Path`, *optional*): of a manifest, the folder that relative paths in it start from.
        check (`Callable`, *optional*): called with the rows that are taken; raises for what they lack.
    """

    name: str
    splits: Mapping[str, Any]
    root: Path | None = None
    check: Callable[[Any], None] | None = None

    def take(self, split: str | None = "train") -> Any:
        """
        Rows of a split.

        Args:
            split (`str`, *optional*): a name, `"all"`, a slice such as `"train[:80%]"`, or several joined by `+`. By
                default the only split there is, or `"train"`.

        Returns:
            `datasets.Dataset` or `datasets.IterableDataset`.

        Raises:
            ValueError: for a split that does not exist; the message says which do, and what else to do.
        """
        from datasets import concatenate_datasets

        parts = []
        for name, start, stop in self.ranges(split):
            rows = self.splits[name]
            if not hasattr(rows, "__len__"):
                rows = rows.skip(start) if start else rows
                parts.append(rows if stop is None else rows.take(stop - start))
            else:
                whole = (start, stop) == (0, len(rows))
                parts.append(rows if whole else rows.select(range(start, stop)))
        taken = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
        if self.check is not None:
            self.check(taken)
        return taken

    def ranges(self, split: str | None) -> list[tuple[str, int, int | None]]:
        """Name, first row and end of each part of a split; streams have no known end."""
        from datasets import ReadInstruction

        if split is None:
            split = next(iter(self.splits)) if len(self.splits) == 1 else "train"
        if split.partition("[")[0] == "all" and "all" not in self.splits:
            split = "+".join(name + split[3:] for name in self.splits)
        parts = []
        for spec in split.split("+"):
            name = spec.partition("[")[0].strip()
            if name not in self.splits:
                raise MissingSplitError(
                    f"{self.name!r} has no split {name!r}, only {self._described()}. {WAYS_OUT}", split
                )
            if hasattr(self.splits[name], "__len__"):
                (part,) = ReadInstruction.from_spec(spec).to_absolute({name: len(self.splits[name])})
                parts.append((name, part.from_ or 0, len(self.splits[name]) if part.to is None else part.to))
            else:
                parts.append((name, *_stream_range(spec)))
        return parts

    def _described(self) -> str:
        sizes = {name: len(rows) if hasattr(rows, "__len__") else None for name, rows in self.splits.items()}
        return ", ".join(f"{name!r}" + ("" if size is None else f" ({size} rows)") for name, size in sizes.items())


def is_local(name_or_path: str) -> bool:
    """Whether the text can only mean a path: a mistyped one must never become a download."""
    path = Path(name_or_path).expanduser()
    is_file = path.suffix in (*_TABLES, *_ARCHIVES, *LIST_SUFFIXES)
    return path.exists() or path.is_absolute() or name_or_path.startswith((".", "~")) or len(path.parts) > 2 or is_file


def open_source(
    name_or_path: str | Path,
    read_list: Callable[[Path], Any],
    split: str | None = None,
    streaming: bool = False,
    config_name: str | None = None,
    revision: str | None = None,
) -> Source:
    """
    Opens a dataset with all its splits.

    Args:
        name_or_path (`str` or `Path`): what exists locally is read from disk and nothing is downloaded: a file
            (`.parquet`, `.jsonl`, `.json`, or a list `.csv`, `.tsv`, `.txt`), which is one split called `train`; a
            folder with such files named after splits; one of `save_to_disk`; or a folder of files, as `datasets` reads
            it. Anything else is the name of a dataset on the Hub.
        read_list (`Callable`): makes a `Dataset` of a list.
        split (`str`, *optional*): that is going to be asked for; a file of its name is one.
        streaming (`bool`): splits are `IterableDataset`s.
        config_name (`str`, *optional*), revision (`str`, *optional*): of a Hub dataset.

    Returns:
        [`Source`].

    Raises:
        ValueError: if there is no such dataset, or it cannot be read.
    """
    import datasets

    name = str(name_or_path)
    if not is_local(name):
        try:
            splits = datasets.load_dataset(name, config_name, streaming=streaming, revision=revision)
        except (ValueError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ValueError(
                f"{name!r} is neither a local path nor a Hub dataset that can be loaded here: {error}"
            ) from error
        return Source(name, splits)
    path = Path(name).expanduser()
    if not path.exists():
        raise ValueError(f"There is no file or folder {name!r}.")
    if path.is_file():
        return Source(name, {"train": _read_file(path, read_list, streaming)}, path.parent)
    if not any(path.iterdir()):
        raise ValueError(f"The folder {name!r} is empty.")
    for archive in (*path.glob("*.tar"), *path.glob("*/*.tar")):
        _refuse_cut_archive(archive)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Source(name, _read_saved(path, streaming))
    if files := _split_files(path, split):
        return Source(name, {key: _read_file(file, read_list, streaming) for key, file in files.items()}, path)
    try:
        splits = datasets.load_dataset(name if path.is_absolute() else str(path), streaming=streaming)
    except Exception as error:  # of `datasets`, of the builders it finds, of the file system
        cause = error.__cause__ or error
        raise ValueError(f"Cannot load {name!r}: {cause}{file_at_fault(cause)}") from error
    is_table = any(file.suffix in _TABLES and file.stem != "metadata" for file in path.iterdir())
    return Source(name, splits, path if is_table else None)


def _split_files(folder: Path, split: str | None) -> dict[str, Path]:
    asked = [spec.partition("[")[0] for spec in (split or "").split("+")]
    found = {}
    for name in dict.fromkeys((*SPLIT_NAMES, *asked)):
        for suffix in (*_TABLES, *LIST_SUFFIXES):
            # A list beside a folder of its name is the folder's index, in whatever form.
            hidden = suffix in LIST_SUFFIXES and (folder / name).is_dir()
            if name and name not in found and not hidden and (folder / f"{name}{suffix}").is_file():
                found[name] = folder / f"{name}{suffix}"
    return found


def _read_file(path: Path, read_list: Callable[[Path], Any], streaming: bool) -> Any:
    import datasets

    if path.suffix in LIST_SUFFIXES:
        rows = read_list(path)
        return rows.to_iterable_dataset() if streaming else rows
    kinds = _TABLES | _ARCHIVES
    if path.suffix not in kinds:
        known = ", ".join((*kinds, *LIST_SUFFIXES))
        raise ValueError(f"{str(path)!r} is none of {known}; give one of them, or a folder of files.")
    if path.suffix in _ARCHIVES:
        _refuse_cut_archive(path)
    try:
        return datasets.load_dataset(
            kinds[path.suffix], data_files={"train": str(path)}, split="train", streaming=streaming
        )
    except Exception as error:  # of pyarrow, of `datasets`, of the file system
        raise ValueError(f"Cannot read {str(path)!r}: {_broken_line(path) or error}") from error


def _refuse_cut_archive(path: Path) -> None:
    """
    One that ends within a header gives fewer rows without a word; tar files consist of blocks of 512 bytes. They end
    with two of zeros, but some writers leave these out, so that their lack is a warning.
    """
    size = path.stat().st_size
    if size % 512:
        raise ValueError(
            f"{str(path)!r} was cut off: it has {size} bytes, and tar files have multiples of 512; copy or write it "
            "again."
        )
    with path.open("rb") as archive:
        archive.seek(max(size - 1024, 0))
        if any(archive.read()):
            logger.warning(f"{str(path)!r} does not end as tar files do. If it was cut off, rows are missing.")


def _broken_line(path: Path) -> str | None:
    if path.suffix != ".jsonl":
        return None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            if line.strip():
                json.loads(line)
        except json.JSONDecodeError as error:
            return f"Line {number} of {str(path)!r} is not JSON: {error}."
    return "it has no rows" if not path.read_text(encoding="utf-8").strip() else None


def _read_saved(path: Path, streaming: bool) -> Mapping[str, Any]:
    import datasets

    saved = datasets.load_from_disk(str(path))
    splits = (
        saved if isinstance(saved, datasets.DatasetDict) else {re.split(r"\W", str(saved.split or "train"))[0]: saved}
    )
    if streaming:
        return {name: rows.to_iterable_dataset() for name, rows in splits.items()}
    return splits


def _stream_range(spec: str) -> tuple[int, int | None]:
    """The rows of a slice of a stream, which can only be counted from its start."""
    start, _, stop = spec.partition("[")[2].rstrip("]").partition(":")
    if not all(part.strip().isdigit() for part in (start, stop) if part):
        raise ValueError(f"A stream is cut by row numbers from its start, as 'train[1000:2000]', got {spec!r}.")
    return int(start or 0), int(stop) if stop else None
