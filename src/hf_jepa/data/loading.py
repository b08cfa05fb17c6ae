from pathlib import Path
from typing import Any

from .dataset import check_columns


def _is_local(name_or_path: str) -> bool:
    """Whether the text can only mean a path: a mistyped one must never become a download."""
    path = Path(name_or_path).expanduser()
    return path.exists() or path.is_absolute() or name_or_path.startswith((".", "~")) or len(path.parts) > 2


def load_image_dataset(
    name_or_path: str | Path,
    split: str = "train",
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
            written by `save_to_disk`, a parquet file, or a folder of parquet files or images (sub-folders are classes,
            `train/`, `validation/`, `test/` are splits). Anything else is the name of a dataset on the Hub.
        split (`str`): Split, slices such as `"train[:1000]"` included.
        image_column (`str`): Column of images.
        label_column (`str`, *optional*): Column of integer labels.
        streaming (`bool`): Give an `IterableDataset` that reads as it goes.
        config_name (`str`, *optional*): Configuration of a Hub dataset that has several.
        revision (`str`, *optional*): Commit, branch or tag of a Hub dataset.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`.

    Raises:
        ValueError: If the path, split or column does not exist or the dataset cannot be reached.
    """
    dataset = load_split(name_or_path, split, streaming, config_name, revision)
    check_columns(dataset, image_column, label_column)
    return dataset


def load_split(
    name_or_path: str | Path, split: str, streaming: bool, config_name: str | None, revision: str | None
) -> Any:
    """One split of a dataset of images or videos, its columns unchecked; see [`load_image_dataset`]."""
    name_or_path = str(name_or_path)
    if _is_local(name_or_path):
        return _load_local(Path(name_or_path).expanduser(), split, streaming)
    return _load_hub(name_or_path, split, streaming, config_name, revision)


def _load_local(path: Path, split: str, streaming: bool) -> Any:
    import datasets

    if not path.exists():
        raise ValueError(f"There is no file or folder {str(path)!r}.")
    if path.is_dir() and not any(path.iterdir()):
        raise ValueError(f"The folder {str(path)!r} is empty.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _load_saved(path, split, streaming)
    try:
        if path.is_file():
            if path.suffix != ".parquet":
                raise ValueError(f"{str(path)!r} is not a .parquet file; give a folder of them.")
            # A single file is one split, whatever the caller's name for it.
            return datasets.load_dataset(
                "parquet", data_files={_bare(split): str(path)}, split=split, streaming=streaming
            )
        return datasets.load_dataset(str(path), split=split, streaming=streaming)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(f"Cannot load split {split!r} of {str(path)!r}: {error}") from error


def _load_saved(path: Path, split: str, streaming: bool) -> Any:
    import datasets

    dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise ValueError(f"Split {split!r} is not in {str(path)!r}, which has {sorted(dataset)}.")
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset


def _load_hub(name: str, split: str, streaming: bool, config_name: str | None, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config_name, split=split, streaming=streaming, revision=revision)
    except (ValueError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"{name!r} is neither a local path nor a Hub dataset whose split {split!r} can be loaded here: {error}"
        ) from error


def _bare(split: str) -> str:
    return split.split("[")[0]
