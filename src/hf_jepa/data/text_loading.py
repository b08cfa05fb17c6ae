"""Text datasets from JSON lines, saved datasets or the Hub."""

from pathlib import Path
from typing import Any


def load_text_dataset(
    name_or_path: str | Path, split: str = "train", config_name: str | None = None, revision: str | None = None
) -> Any:
    """
    Loads the rows of a text dataset.

    Args:
        name_or_path (`str` or `Path`): a `.jsonl`/`.json`/`.parquet` file, a folder with `SPLIT.jsonl` (or `.json`,
            `.parquet`), a folder of `Dataset.save_to_disk`, or a dataset of the Hub.
        split (`str`): which; slices such as `train[:100]` included. A single file has all its rows in any split.
        config_name (`str`, *optional*): configuration of a Hub dataset.
        revision (`str`, *optional*): commit, branch or tag of a Hub dataset.

    Returns:
        `datasets.Dataset`.

    Raises:
        ValueError: if there is no such dataset or split.
    """
    import datasets

    path = Path(name_or_path).expanduser()
    name, _, part = split.partition("[")
    part = f"[{part}" if part else ""
    try:
        if path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()):
            saved = datasets.load_from_disk(str(path))
            rows = saved[name] if isinstance(saved, datasets.DatasetDict) else saved
            if not part:
                return rows
            start, _, stop = part[1:-1].partition(":")
            return rows.select(range(*slice(int(start or 0), int(stop) if stop else None).indices(len(rows))))
        if path.is_dir():
            kinds = (".jsonl", ".json", ".parquet")
            file = next((path / f"{name}{kind}" for kind in kinds if (path / f"{name}{kind}").is_file()), None)
            if file is None:
                held = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
                raise ValueError(f"the folder has no {name}.jsonl, .json or .parquet, but {held}")
            path = file
        if path.is_file():
            kind = "parquet" if path.suffix == ".parquet" else "json"
            return datasets.load_dataset(kind, data_files={"train": str(path)}, split=f"train{part}")
        return datasets.load_dataset(str(name_or_path), config_name, split=split, revision=revision)
    except Exception as error:
        raise ValueError(f"Cannot load the split {split!r} of {str(name_or_path)!r}: {error}") from error
