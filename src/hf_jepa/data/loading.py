"""Images, videos, texts, and images or videos with texts: what each kind adds to the one way of finding splits."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .dataset import check_columns
from .frame_folders import frame_folder_splits
from .labels import number_names
from .manifests import read_list, read_text_table, resolve_paths
from .splits import Source, open_source


def load_image_dataset(
    name_or_path: str | Path,
    split: str | None = None,
    image_column: str = "image",
    label_column: str | None = None,
    streaming: bool = False,
    config_name: str | None = None,
    revision: str | None = None,
) -> Any:
    """
    Loads one split of an image dataset and checks its columns.

    Args:
        name_or_path (`str` or `Path`): What exists locally is read from disk and nothing is downloaded: a folder
            written by `save_to_disk`; a `.parquet` or `.jsonl` file; a list `.csv`, `.tsv` or `.txt` of paths and
            labels, with or without a header, relative to the list; a folder of such files named after splits; or a
            folder of images (sub-folders are classes, `train/`, `validation/`, `test/` are splits). A file is one
            split, called `train`. Anything else is the name of a dataset on the Hub.
        split (`str`, *optional*): Split, slices such as `"train[:80%]"` included, or `"all"`; by default the only one
            there is, or `"train"`.
        image_column (`str`): Column of images.
        label_column (`str`, *optional*): Column of labels: integers, `ClassLabel`s, or names, which are numbered in
            their alphabetical order over all splits.
        streaming (`bool`): Give an `IterableDataset` that reads as it goes.
        config_name (`str`, *optional*): Configuration of a Hub dataset that has several.
        revision (`str`, *optional*): Commit, branch or tag of a Hub dataset.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`.

    Raises:
        ValueError: If the path, split or column does not exist, a list is malformed, or the dataset cannot be reached.
    """
    return open_images(name_or_path, split, image_column, label_column, streaming, config_name, revision).take(split)


def open_images(
    name_or_path: str | Path,
    split: str | None = None,
    image_column: str = "image",
    label_column: str | None = None,
    streaming: bool = False,
    config_name: str | None = None,
    revision: str | None = None,
) -> Source:
    """All splits of a dataset of images, their columns checked; see [`load_image_dataset`]."""
    lists = partial(read_list, media_column=image_column, other_column=label_column or "label")
    source = open_source(name_or_path, lists, split, streaming, config_name, revision)
    source = _checked(source, image_column, label_column, "image_column")
    return replace(source, splits={name: _as_images(rows, image_column) for name, rows in source.splits.items()})


def load_video_dataset(
    name_or_path: str | Path,
    split: str | None = None,
    video_column: str = "video",
    label_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Any:
    """
    Loads one split of a video dataset and checks its columns. No video is opened.

    Args:
        name_or_path (`str` or `Path`): what [`load_image_dataset`] takes, of videos. Without a header, a line of a
            list is `path label`, as V-JEPA's (a space, comma or tab between them); images and folders of frames may
            stand among the videos. A tree of folders of frames, `[train/][class/]clip/0001.jpg`, is a dataset of
            videos too; with `video_column="image"` its images are stills.
        split (`str`, *optional*): split, slices such as `"train[:1000]"` included, or `"all"`; by default the only one
            there is, or `"train"`.
        video_column (`str`): column of videos; what a list has becomes this column.
        label_column (`str`, *optional*): column of labels, see [`load_image_dataset`]; likewise.
        config_name (`str`, *optional*): configuration of a Hub dataset that has several.
        revision (`str`, *optional*): commit, branch or tag of a Hub dataset.

    Returns:
        `datasets.Dataset`.

    Raises:
        ValueError: if the path, split or column does not exist, a list is malformed, or the dataset cannot be reached.
    """
    return open_videos(name_or_path, split, video_column, label_column, config_name, revision).take(split)


def open_videos(
    name_or_path: str | Path,
    split: str | None = None,
    video_column: str = "video",
    label_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Source:
    """All splits of a dataset of videos, their columns checked; see [`load_video_dataset`]."""
    path = Path(name_or_path).expanduser()
    if path.is_dir() and video_column == "video" and (frames := frame_folder_splits(path)) is not None:
        if label_column is not None and any(label_column not in rows.column_names for rows in frames.values()):
            raise ValueError(
                f"{str(name_or_path)!r} has no column {label_column!r}: its folders of images were read as videos "
                '([SPLIT/][CLASS/]CLIP/0001.jpg), without classes. With video_column="image" its images are stills.'
            )
        return _checked(Source(str(name_or_path), frames), video_column, label_column, "video_column")
    lists = partial(read_list, media_column=video_column, other_column=label_column or "label")
    source = open_source(name_or_path, lists, split, False, config_name, revision)
    return _checked(source, video_column, label_column, "video_column")


def load_text_dataset(
    name_or_path: str | Path, split: str | None = None, config_name: str | None = None, revision: str | None = None
) -> Any:
    """
    Loads the rows of a text dataset.

    Args:
        name_or_path (`str` or `Path`): a `.jsonl`, `.json` or `.parquet` file, or a `.csv`, `.tsv` or `.txt` table
            whose first line names the columns; a folder of such files named after splits; a folder of
            `Dataset.save_to_disk`; or a dataset of the Hub. A file is one split, called `train`.
        split (`str`, *optional*): which; slices such as `train[:80%]` included, or `"all"`; by default the only one
            there is, or `"train"`.
        config_name (`str`, *optional*): configuration of a Hub dataset.
        revision (`str`, *optional*): commit, branch or tag of a Hub dataset.

    Returns:
        `datasets.Dataset`.

    Raises:
        ValueError: if there is no such dataset or split.
    """
    return open_texts(name_or_path, split, config_name, revision).take(split)


def open_texts(
    name_or_path: str | Path, split: str | None = None, config_name: str | None = None, revision: str | None = None
) -> Source:
    """All splits of a dataset of texts; see [`load_text_dataset`]."""
    return open_source(name_or_path, read_text_table, split, False, config_name, revision)


def load_vision_text_dataset(
    name_or_path: str | Path, split: str | None = None, config_name: str | None = None, revision: str | None = None
) -> tuple[Any, Path | None]:
    """
    Loads the rows of a dataset of images or videos with texts.

    Args:
        name_or_path (`str` or `Path`): a `.jsonl`, `.json` or `.parquet` manifest, whose rows hold media or paths of
            them; a list `.csv`, `.tsv` or `.txt`, with a header or with lines `path text`; a folder of such files
            named after splits; a folder of `Dataset.save_to_disk`; a folder of images or videos with a `metadata`
            file, as `datasets` reads it; or a dataset of the Hub. What can only mean a path is never looked up on the
            Hub.
        split (`str`, *optional*): which; slices such as `train[:80%]` included, or `"all"`; by default the only one
            there is, or `"train"`.
        config_name (`str`, *optional*): configuration of a Hub dataset.
        revision (`str`, *optional*): commit, branch or tag of a Hub dataset.

    Returns:
        `datasets.Dataset` and, of a manifest, the folder that its relative paths start from.

    Raises:
        ValueError: if there is no such dataset or split.
    """
    source = open_vision_texts(name_or_path, split, config_name, revision)
    return source.take(split), source.root


def open_vision_texts(
    name_or_path: str | Path,
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    other_column: str = "text",
    is_text: bool = True,
) -> Source:
    """
    All splits of a dataset of images or videos with texts, or with labels; see [`load_vision_text_dataset`].
    `other_column` is what stands beside the paths of a list without a header.
    """
    lists = partial(read_list, media_column=None, other_column=other_column, is_text=is_text)
    source = open_source(name_or_path, lists, split, False, config_name, revision)
    if is_text:
        return source
    return Source(source.name, number_names(dict(source.splits), other_column), source.root)


def _as_images(rows: Any, column: str) -> Any:
    """Paths become images, which `datasets` opens when they are looked at."""
    from datasets import Image, Value

    is_path = (rows.features or {}).get(column) in (Value("string"), Value("large_string"))
    return rows.cast_column(column, Image()) if is_path else rows


def _checked(source: Source, column: str, label_column: str | None, argument: str) -> Source:
    splits = dict(source.splits)
    if source.root is not None:
        splits = {
            name: resolve_paths(rows, column, source.root) if hasattr(rows, "__len__") else rows
            for name, rows in splits.items()
        }
    check = partial(check_columns, column=column, label_column=label_column, argument=argument)
    return Source(source.name, number_names(splits, label_column), source.root, check)
