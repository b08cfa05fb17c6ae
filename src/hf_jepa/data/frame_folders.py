"""Videos that are kept as folders of frames."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .decoding import decode_image
from .manifests import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from .splits import SPLIT_NAMES
from .video_readers import VideoDecodeError, VideoReader, check_clip_size


class FrameFolderReader(VideoReader):
    """A folder of frames, in the order of the numbers in their names. It has no clock."""

    fps = begin = duration = 0.0

    def __init__(self, folder: str | Path) -> None:
        self._files = frame_files(Path(folder))
        self.num_frames = len(self._files)
        if not self._files:
            raise VideoDecodeError("the folder has no images")

    def _frames(self, indices: np.ndarray) -> torch.Tensor:
        unique, inverse = np.unique(indices, return_inverse=True)
        images = [np.array(decode_image(str(self._files[index])).convert("RGB")) for index in unique]
        if len(sizes := {image.shape for image in images}) > 1:
            raise VideoDecodeError(f"frames have different sizes: {sorted(shape[:2] for shape in sizes)}")
        check_clip_size(len(images), *images[0].shape[:2])
        return torch.from_numpy(np.stack(images)[inverse]).permute(0, 3, 1, 2)

    def _frames_at(self, seconds: np.ndarray) -> torch.Tensor:
        raise VideoDecodeError(
            "frames in a folder have no clock: choose clips by frame_step, not by frames per second"
        )

    def _rotation(self) -> int:
        return 0


def frame_files(folder: Path) -> list[Path]:
    """
    The images of a folder in their order, `frame2.jpg` before `frame10.jpg`.

    Args:
        folder (`Path`): of frames.

    Returns:
        `list[Path]`.
    """
    frames = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(frames, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path.stem)])


def _parts(stem: str) -> list[str]:
    # Text and numbers take turns, text first, so that numbers are only compared with numbers.
    return re.split(r"(\d+)", stem)


def frame_folder_splits(folder: Path) -> dict[str, Any] | None:
    """
    The splits of a tree whose leaves are folders of frames: `[train/][class/]clip/0001.jpg`.

    Args:
        folder (`Path`): the root.

    Returns:
        `dict` from names of splits to a `Dataset` of the columns `video` (paths of folders) and, where there are
        folders of classes, `label`; `None` if the tree has videos, or no folders of images.

    Raises:
        ValueError: if some clips lie in folders of classes and some do not.
    """
    from datasets import ClassLabel, Dataset

    leaves = set()
    for path in folder.rglob("*"):
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES and path.is_file():
            return None
        if suffix in IMAGE_SUFFIXES and path.parent != folder:
            leaves.add(path.parent)
    if not leaves:
        return None
    places = [leaf.relative_to(folder).parts for leaf in sorted(leaves)]
    has_splits = all(parts[0] in SPLIT_NAMES for parts in places)
    depths = {len(parts) - has_splits for parts in places}
    if len(depths) > 1 or not 1 <= min(depths) <= 2:
        raise ValueError(
            f"{str(folder)!r} has folders of images at depths {sorted(depths)}; videos as frames lie in "
            "[SPLIT/][CLASS/]CLIP/, all alike. List other trees in a .csv of `folder label`."
        )
    names = sorted({parts[-2] for parts in places}) if depths == {2} else None
    splits: dict[str, dict[str, list]] = {}
    for parts in places:
        rows = splits.setdefault(parts[0] if has_splits else "train", {"video": []})
        rows["video"].append(str((folder / Path(*parts)).absolute()))
        if names:
            rows.setdefault("label", []).append(names.index(parts[-2]))
    datasets = {name: Dataset.from_dict(rows) for name, rows in splits.items()}
    if names:
        datasets = {name: rows.cast_column("label", ClassLabel(names=names)) for name, rows in datasets.items()}
    return datasets
