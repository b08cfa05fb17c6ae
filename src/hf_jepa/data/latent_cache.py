from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .trajectories import Trajectories


class CachedLatents(Trajectories):
    """
    Trajectories whose frames are latents of a frozen encoder, computed once and kept on disk.

    `frames` gives `(rows, tokens, width)` floats, which [`TrajectoryWindows`] hands on as `latents`. Built again with
    the same `key` it goes on where an earlier run stopped. Frames of an episode that could not be read are an error,
    which [`TrajectoryWindows`] counts.

    Args:
        trajectories ([`Trajectories`]): With images.
        encode (`Callable`): `(n, height, width, channels)` uint8 frames to `(n, tokens, width)`, in eval mode.
        folder (`str` or `Path`): Where `latents.npy` and `cache.json` are kept.
        key (`str`): What latents depend on besides the trajectories: the encoder's name, revision, frame size.
        batch_size (`int`): Frames at a time.
        dtype (`str`): `"float32"`, or `"float16"` at half the size.

    Raises:
        ValueError: If the folder holds latents of another key or other trajectories, or no episode can be read.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        encode: Callable[[np.ndarray], Tensor],
        folder: str | Path,
        key: str,
        batch_size: int = 64,
        dtype: str = "float32",
    ) -> None:
        self._source = trajectories
        self.lengths, self.action_dim = trajectories.lengths, trajectories.action_dim
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "latents.npy"
        note = folder / "cache.json"
        about = {"key": key, "dtype": dtype, "lengths": self.lengths.tolist()}
        state = json.loads(note.read_text()) if note.is_file() else {**about, "done": 0, "bad": {}}
        if {name: state[name] for name in about} != about:
            raise ValueError(
                f"{folder} holds latents of {state['key']!r}, {len(state['lengths'])} episodes, {state['dtype']}; "
                f"asked for are {key!r}, {len(self)} episodes, {dtype}. Choose another folder or delete it."
            )
        self._bad: dict[str, str] = state["bad"]
        left = range(state["done"], len(self))
        for episode in tqdm(left, desc="Encoding", unit="episode", disable=not left):
            self._fill(episode, encode, batch_size, dtype)
            # Written after the latents, and replaced whole: a stop in between repeats an episode.
            partial = note.with_suffix(".partial")
            partial.write_text(json.dumps({**about, "done": episode + 1, "bad": self._bad}))
            partial.replace(note)
        if len(self._bad) == len(self):
            raise ValueError(f"None of {len(self)} episodes can be read; the first: {self._bad['0']}")
        self._latents = np.load(self._path, mmap_mode="r")

    def _fill(self, episode: int, encode: Callable[[np.ndarray], Tensor], batch_size: int, dtype: str) -> None:
        rows = np.arange(self.lengths[episode])
        parts = []
        for part in np.array_split(rows, -(-len(rows) // batch_size)):
            try:
                frames = self._source.frames(episode, part)
            except (ImportError, MemoryError):
                raise
            except Exception as error:  # every decoder has errors of its own for damaged files
                self._bad[str(episode)] = f"{type(error).__name__}: {error}"
                return
            with torch.inference_mode():
                parts.append(encode(frames).float().cpu().numpy())
        latents = np.concatenate(parts).astype(dtype)
        if not np.isfinite(latents).all():
            raise ValueError(f"Latents of episode {episode} are not finite in {dtype}.")
        if len(self._bad) == episode:
            np.lib.format.open_memmap(self._path, "w+", dtype, (int(self._starts[-1]), *latents.shape[1:])).flush()
        stored = np.lib.format.open_memmap(self._path, "r+")
        stored[self._starts[episode] : self._starts[episode + 1]] = latents
        stored.flush()

    def actions(self, episode: int) -> np.ndarray:
        return self._source.actions(episode)

    def states(self, episode: int) -> np.ndarray | None:
        return self._source.states(episode)

    def frames(self, episode: int, rows: np.ndarray) -> np.ndarray:
        if str(episode) in self._bad:
            raise ValueError(f"it could not be read when it was encoded: {self._bad[str(episode)]}")
        return np.asarray(self._latents[int(self._starts[episode]) + np.asarray(rows)])
