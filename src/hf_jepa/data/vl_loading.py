"""Rows of images and videos with texts, from manifests, folders, saved datasets or the Hub."""

from pathlib import Path
from typing import Any

from .loading import _is_local, _load_local
from .text_loading import load_text_dataset

_MANIFESTS = (".jsonl", ".json", ".parquet")


def load_vision_text_dataset(
    name_or_path: str | Path, split: str = "train", config_name: str | None = None, revision: str | None = None
) -> tuple[Any, Path | None]:
    """
    Loads the rows of a dataset of images or videos with texts.

    Args:
        name_or_path (`str` or `Path`): a `.jsonl`, `.json` or `.parquet` manifest, whose rows hold media or paths of
            them; a folder with `SPLIT.jsonl` (or `.json`, `.parquet`); a folder of `Dataset.save_to_disk`; a folder of
            images or videos with a `metadata` file, as `datasets` reads it; or a dataset of the Hub. What can only
            mean a path is never looked up on the Hub.
        split (`str`): which; slices such as `train[:100]` included.
        config_name (`str`, *optional*): configuration of a Hub dataset.
        revision (`str`, *optional*): commit, branch or tag of a Hub dataset.

    Returns:
        `datasets.Dataset` and, of a manifest, the folder that its relative paths start from.

    Raises:
        ValueError: if there is no such dataset or split.
    """
    path, name = Path(name_or_path).expanduser(), split.partition("[")[0]
    if not _is_local(str(name_or_path)):
        return load_text_dataset(name_or_path, split, config_name, revision), None
    if not path.exists():
        raise ValueError(f"There is no file or folder {str(path)!r}.")
    if path.is_file() or any((path / f"{name}{kind}").is_file() for kind in _MANIFESTS):
        return load_text_dataset(path, split), path.parent if path.is_file() else path
    if any((path / marker).is_file() for marker in ("dataset_info.json", "dataset_dict.json")):
        return load_text_dataset(path, split), None
    return _load_local(path, split, streaming=False), None
