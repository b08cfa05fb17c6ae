from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import snapshot_download

from ..file_errors import naming
from ..silence import limited_silence
from .decoding import decode_image
from .trajectories import Trajectories
from .video_decoding import open_video

# Seconds by which a frame may miss the time stamp of its row, in frames.
_TOLERANCE = 0.5


class LeRobotTrajectories(Trajectories):
    """
    A dataset in LeRobot's layout, versions 2 and 3: `meta/info.json`, rows in parquet files, frames in mp4 files or as
    images in the rows. Needs no LeRobot; videos need the `video` extra.

    Args:
        repo_or_path (`str` or `Path`): Hub dataset repository, or a local folder.
        camera (`str`, *optional*): Column of frames; the only one there is by default.
        action (`str`): Column of actions.
        state (`str`): Column of states, if the dataset has it.
        revision (`str`, *optional*): Of the repository.

    Raises:
        ValueError: If the folder has no such layout, the version is another, or a column is missing.
    """

    def __init__(
        self,
        repo_or_path: str | Path,
        camera: str | None = None,
        action: str = "action",
        state: str = "observation.state",
        revision: str | None = None,
    ) -> None:
        folder = Path(repo_or_path)
        if not folder.is_dir():
            with limited_silence():
                folder = Path(snapshot_download(str(repo_or_path), repo_type="dataset", revision=revision))
        if not (folder / "meta" / "info.json").is_file():
            raise ValueError(f"{repo_or_path} is no LeRobot dataset: it has no meta/info.json.")
        with naming(repo_or_path):
            self._read(folder, str(repo_or_path), camera, action, state)
        # Opening a video means reading all its packets.
        self._open = lru_cache(maxsize=8)(open_video)

    def _read(self, folder: Path, name: str, camera: str | None, action: str, state: str) -> None:
        self.folder = folder
        self.info: dict[str, Any] = json.loads((folder / "meta" / "info.json").read_text())
        version = str(self.info.get("codebase_version", "")).lstrip("v")
        if version[:2] not in ("2.", "3."):
            raise ValueError(f"LeRobot's layouts 2 and 3 can be read, {name} has version {version or 'none'}.")
        features = self.info["features"]
        cameras = [key for key, each in features.items() if each["dtype"] in ("video", "image")]
        if camera is None and len(cameras) != 1:
            raise ValueError(f"Say which camera: {name} has {', '.join(cameras) or 'none'}.")
        self.camera = camera or cameras[0]
        for column in (self.camera, action):
            if column not in features:
                raise ValueError(f"{name} has no column {column!r}; there are {', '.join(features)}.")
        self._is_video = features[self.camera]["dtype"] == "video"
        columns = [action, *([state] if state in features else []), "episode_index", "timestamp"]
        files = sorted((folder / "data").rglob("*.parquet"))
        if not files:
            raise ValueError(f"{name} has no parquet files under data/.")
        table = _read_rows(files, columns if self._is_video else [*columns, self.camera])
        self._rows = table.with_format("arrow")
        actions, owners, self._times = _columns(table, action, "episode_index", "timestamp")
        self._actions = actions.reshape(len(owners), -1).astype(np.float32)
        self._states = None
        if state in columns:
            self._states = _columns(table, state)[0].reshape(len(owners), -1).astype(np.float32)
        if (np.diff(owners) < 0).any():
            raise ValueError(f"{name}: the rows of its parquet files are not in the order of episodes.")
        self.numbers, self._starts, self.lengths = np.unique(owners, return_index=True, return_counts=True)
        self.action_dim = self._actions.shape[1]
        self._places = self._video_places() if self._is_video and version.startswith("3.") else {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = lru_cache(maxsize=8)(open_video)

    def actions(self, episode: int) -> np.ndarray:
        return self._actions[self._slice(episode)]

    def states(self, episode: int) -> np.ndarray | None:
        return None if self._states is None else self._states[self._slice(episode)]

    def frames(self, episode: int, rows: np.ndarray) -> np.ndarray:
        places = int(self._starts[episode]) + np.asarray(rows)
        if not self._is_video:
            cells = self._rows[places.tolist()].column(self.camera).to_pylist()
            return np.stack([np.asarray(decode_image(cell)) for cell in cells])
        path, offset = self._video(episode)
        reader = self._open(path)
        seconds = self._times[places] + offset
        index = np.rint(seconds * reader.fps).astype(np.int64)
        if (np.abs(index / reader.fps - seconds) * reader.fps > _TOLERANCE).any() or index.max() >= reader.num_frames:
            raise ValueError(f"{path} has no frame at {seconds.max():.3f} s")
        frames = reader.frames(index)
        return np.ascontiguousarray(np.moveaxis(frames.numpy(), 1, -1))

    def _slice(self, episode: int) -> slice:
        start = int(self._starts[episode])
        return slice(start, start + int(self.lengths[episode]))

    def _video(self, episode: int) -> tuple[str, float]:
        """An episode's video file, and the second in it at which the episode starts."""
        number = int(self.numbers[episode])
        fields: dict[str, Any] = {"video_key": self.camera}
        offset = 0.0
        if self._places:
            fields["chunk_index"], fields["file_index"], offset = self._places[number]
        else:
            fields |= {"episode_index": number, "episode_chunk": number // self.info["chunks_size"]}
        return str(self.folder / self.info["video_path"].format(**fields)), offset

    def _video_places(self) -> dict[int, tuple[int, int, float]]:
        """Version 3 strings the videos of episodes together: episode -> chunk, file, second of its start."""
        prefix = f"videos/{self.camera}"
        names = ["episode_index", *(f"{prefix}/{name}" for name in ("chunk_index", "file_index", "from_timestamp"))]
        table = _read_rows(sorted((self.folder / "meta" / "episodes").rglob("*.parquet")), names)
        numbers, chunks, files, starts = (column.tolist() for column in _columns(table, *names))
        return dict(zip(numbers, zip(chunks, files, starts, strict=True), strict=True))


def _columns(table: Dataset, *names: str) -> list[np.ndarray]:
    """Columns as float64 or int64 arrays, `(rows, ...)`."""
    view = table.with_format("numpy")
    return [np.asarray(view[name][:]) for name in names]


def _read_rows(files: list[Path], columns: list[str]) -> Dataset:
    """These columns of parquet files, in the order of the files."""
    return Dataset.from_parquet([str(file) for file in files], columns=columns)
