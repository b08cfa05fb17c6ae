from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..file_errors import naming
from ..poses import pose_differences
from .trajectories import Trajectories
from .video_decoding import open_video, probe_video

_STATE = ("observation/robot_state/cartesian_position", "observation/robot_state/gripper_position")


class DroidTrajectories(Trajectories):
    """
    Raw DROID episodes: folders with `trajectory.h5`, `recordings/MP4/*.mp4` and a `metadata_*.json`, listed one a line
    in a text or csv file. States are the end effector's position (m), Euler angles (rad) and gripper (0 open to 1
    closed) in the robot's base frame; actions are the differences between the states that are kept, in the same units,
    so that an action of a row leads to the next one (V-JEPA 2-AC, arXiv:2506.09985, and the released code). Needs the
    extras `planning` and `video`.

    Args:
        listing (`str` or `Path`): File with one episode's folder per line; relative ones are relative to it.
        fps (`int`): Rows per second that are kept; V-JEPA 2-AC is trained on 4.
        camera (`str`): Prefix of the camera in the metadata: `"left"` (exterior), `"right"` or `"wrist"`.

    Raises:
        ValueError: If the file lists nothing, or an episode lacks its parts.
        ImportError: If h5py is missing.
    """

    action_dim = 7

    def __init__(self, listing: str | Path, fps: int = 4, camera: str = "left") -> None:
        if fps < 1:
            raise ValueError(f"fps must be at least 1, got {fps}.")
        listing = Path(listing)
        lines = [line.split(",")[0].strip() for line in listing.read_text(encoding="utf-8").splitlines()]
        self.folders = [listing.parent / line for line in lines if line]
        if not self.folders:
            raise ValueError(f"{listing} lists no episode.")
        self.fps, self.camera = fps, camera
        parts = []
        for folder in self.folders:
            with naming(folder):
                parts.append(self._read(folder))
        self._videos, self._rows, self._states = (list(column) for column in zip(*parts, strict=True))
        self.lengths = np.array([len(rows) for rows in self._rows], dtype=np.int64)
        self._open = lru_cache(maxsize=8)(open_video)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = lru_cache(maxsize=8)(open_video)

    def actions(self, episode: int) -> np.ndarray:
        # In float64: differences of positions are small beside them.
        moves = pose_differences(torch.from_numpy(self._states[episode])).numpy()
        return np.concatenate([moves, np.full((1, 7), np.nan)]).astype(np.float32)

    def states(self, episode: int) -> np.ndarray:
        return self._states[episode].astype(np.float32)

    def frames(self, episode: int, rows: np.ndarray) -> np.ndarray:
        frames = self._open(str(self._videos[episode])).frames(self._rows[episode][rows])
        return np.ascontiguousarray(np.moveaxis(frames.numpy(), 1, -1))

    def _read(self, folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
        """The video of an episode, the frames kept of it, and the states at them."""
        try:
            import h5py
        except ImportError as error:
            raise ImportError(
                "DROID's trajectory.h5 needs h5py, which is not installed: `pip install 'hf-jepa[planning]'`."
            ) from error
        notes = sorted(folder.glob("metadata_*.json"))
        if not notes or not (folder / "trajectory.h5").is_file():
            raise ValueError(f"{folder} is no DROID episode: it lacks trajectory.h5 or metadata_*.json.")
        name = json.loads(notes[0].read_text(encoding="utf-8")).get(f"{self.camera}_mp4_path")
        if name is None:
            raise ValueError(f"{notes[0]} names no {self.camera}_mp4_path.")
        video = folder / "recordings" / "MP4" / Path(name).name
        if not video.is_file():
            raise ValueError(f"{folder} lacks the video {video.name}.")
        with h5py.File(folder / "trajectory.h5", "r") as file:
            position, gripper = (np.asarray(file[key], dtype=np.float64) for key in _STATE)
        states = np.concatenate([position, gripper.reshape(len(position), 1)], axis=1)
        if not np.isfinite(states).all():
            raise ValueError(f"{folder}: its states hold NaN or infinite values.")
        about = probe_video(str(video))
        step = max(1, -(-int(np.ceil(about.fps)) // self.fps))
        rows = np.arange(0, min(about.num_frames, len(states)), step)
        return video, rows, states[rows]
