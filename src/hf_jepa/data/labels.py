"""Labels of any kind as the same integers in all splits, and splits that have nothing in common."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Benchmarks have a few pictures in both splits; with more, what is scored is memory.
MAX_SHARED = 0.1


def number_names(splits: dict[str, Any], column: str | None) -> dict[str, Any]:
    """
    Labels that are texts become `ClassLabel`s, numbered in alphabetical order over all splits of a dataset.

    Args:
        splits (`dict[str, datasets.Dataset]`): of one dataset. Streams and other labels stay as they are.
        column (`str`, *optional*): of labels.

    Returns:
        `dict[str, datasets.Dataset]`.

    Raises:
        ValueError: if rows have no label.
    """
    from datasets import ClassLabel

    texts = {name for name, rows in splits.items() if _is_text(rows, column)}
    if not texts:
        return splits
    found = set().union(*(splits[name].unique(column) for name in texts))
    if None in found:
        raise ValueError(f"Some rows have no label in {column!r}: fill them or drop these rows.")
    feature = ClassLabel(names=sorted(found))
    return {name: rows.cast_column(column, feature) if name in texts else rows for name, rows in splits.items()}


def _is_text(rows: Any, column: str | None) -> bool:
    dtype = getattr((rows.features or {}).get(column), "dtype", None)
    return hasattr(rows, "__len__") and dtype in ("string", "large_string")


def align_labels(train: Any, test: Any, column: str) -> tuple[Any, Any]:
    """
    Two splits whose equal labels are equal classes.

    Args:
        train (`datasets.Dataset`), test (`datasets.Dataset`): with labels that are integers or `ClassLabel`.
        column (`str`): of labels.

    Returns:
        `tuple` of both; where both have names that differ, numbered anew by name.

    Raises:
        ValueError: if one has names and the other numbers, or test has classes that no row of train has.
    """
    from datasets import ClassLabel

    names = [getattr(rows.features[column], "names", None) for rows in (train, test)]
    if (names[0] is None) != (names[1] is None):
        raise ValueError(
            f"The labels of one split have names ({', '.join((names[0] or names[1])[:3])}, ...) and those of the "
            "other are numbers, which could mean any of them: give both the same kind."
        )
    if names[0] != names[1]:
        feature = ClassLabel(names=list(dict.fromkeys([*names[0], *names[1]])))
        renumbered = []
        for rows, own in zip((train, test), names, strict=True):
            values = [feature.str2int(own[label]) for label in rows[column]]
            renumbered.append(rows.remove_columns(column).add_column(column, values).cast_column(column, feature))
        train, test = renumbered
        names = [feature.names] * 2
    missing = sorted(set(test[column][:]) - set(train[column][:]))
    if missing:
        shown = ", ".join(repr(names[0][label]) if names[0] else str(label) for label in missing[:5])
        raise ValueError(
            f"Test has {len(missing)} class(es) that no row of train has, and that nothing can get right: {shown}. "
            "Slices of rows that are sorted by class do this; --holdout 0.2 draws from every class, and --max-train "
            "must leave each class a row."
        )
    return train, test


def fit_and_score(train: Any, test: Any, column: str, label_column: str) -> tuple[Any, Any]:
    """
    Two splits as rows to fit on and rows to score: see [`refuse_shared_rows`] and [`align_labels`], which may raise.
    """
    refuse_shared_rows(train, test, column)
    return align_labels(train, test, label_column)


def hold_out(rows: Any, column: str | None, fraction: float, seed: int) -> tuple[Any, Any]:
    """
    Parts a dataset at random, in every class alike.

    Args:
        rows (`datasets.Dataset`): the dataset.
        column (`str`, *optional*): of labels; a class of one row stays in train.
        fraction (`float`): share of the rows, or of each class's, that is held out.
        seed (`int`): of the draw.

    Returns:
        `tuple` of the rows kept and the rows held out, each in the dataset's order.

    Raises:
        ValueError: for a share outside (0, 1), or one that holds nothing out.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"holdout must lie between 0 and 1, got {fraction}.")
    labels = np.zeros(len(rows), np.int64) if column is None else np.asarray(rows[column][:])
    order = np.random.default_rng(seed).permutation(len(rows))
    held = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    test = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    if not len(test):
        raise ValueError(f"holdout={fraction} of {len(rows)} rows leaves nothing to score: no class has two rows.")
    return rows.select(np.setdiff1d(np.arange(len(rows)), test)), rows.select(test)


def refuse_shared_rows(train: Any, test: Any, column: str, name: str = "test") -> None:
    """
    Looks for images or videos of one split in another, byte for byte. What is found is said in the log.

    Args:
        train (`datasets.Dataset`), test (`datasets.Dataset`): the splits.
        column (`str`): of images, videos, or anything else.
        name (`str`): of the second split, for the message.

    Raises:
        ValueError: if more than a tenth of the rows of `test` are in `train`. What a split has several times, such as
            clips of one colour, tells no rows apart and is not counted.
    """
    shared, same = shared_rows(train, test, column)
    if not shared:
        return
    if len(same) > MAX_SHARED * len(test):
        raise ValueError(
            f"{len(same)} of the {len(test)} rows of {name} are also in train (the first is row {same[0]}): a score "
            "on them is of rows that were learned. Give splits that share no rows."
        )
    logger.warning(
        f"{len(shared)} of the {len(test)} rows of {name} have the content of a row of train (the first is row "
        f"{shared[0]}): a score on them says nothing about new rows."
    )


def shared_rows(train: Any, test: Any, column: str) -> tuple[list[int], list[int]]:
    """
    Numbers of the rows of `test` whose content is that of a row of `train`; and those among them whose content each
    split has once.
    """
    sizes = {size for size, _ in _cells(train, column)} & {size for size, _ in _cells(test, column)}
    learned = Counter(content() for size, content in _cells(train, column) if size in sizes)
    scored = [content() if size in sizes else None for size, content in _cells(test, column)]
    counts = Counter(scored)
    shared = [place for place, content in enumerate(scored) if content is not None and content in learned]
    return shared, [place for place in shared if learned[scored[place]] == counts[scored[place]] == 1]


def content_of(path: str) -> tuple[Any, Any]:
    """Size of a file, or of the files of a folder, and a function that hashes them; of what is not there, its name."""
    if os.path.isdir(path):
        files = sorted(file for file in Path(path).iterdir() if file.is_file())
        size = sum(file.stat().st_size for file in files)
        return ("folder", size), lambda: _digest(b"".join(_digest(file.read_bytes()) for file in files))
    if not os.path.isfile(path):
        return path, lambda: path
    return os.path.getsize(path), lambda: _digest(Path(path).read_bytes())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _cells(rows: Any, column: str) -> Iterator[tuple[Any, Any]]:
    """Of each row, something quick that equal contents share, and a function that gives the whole."""
    from datasets import Image, Video

    rows = rows.with_format(None).select_columns([column])
    if isinstance(rows.features[column], (Image, Video)):
        rows = rows.cast_column(column, type(rows.features[column])(decode=False))
    for batch in rows.with_format("arrow").iter(batch_size=256):
        yield from map(row_content, batch.column(column).to_pylist())


def row_content(cell: Any) -> tuple[Any, Callable[[], Any]]:
    """Something quick that cells of equal content share, and a function that gives a hash of all of it."""
    if isinstance(cell, dict) and cell.get("bytes") is not None:
        return len(cell["bytes"]), lambda: _digest(cell["bytes"])
    if isinstance(cell, dict) and isinstance(cell.get("path"), str):
        return content_of(cell["path"])
    return content_of(cell) if isinstance(cell, str) else ("value", lambda: _digest(repr(cell).encode()))
