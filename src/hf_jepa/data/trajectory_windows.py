from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.utils import logging

from .collators import tensors_of
from .trajectories import Trajectories

logger = logging.get_logger(__name__)


class TooManyBadEpisodesError(RuntimeError):
    """More episodes cannot be read than `max_bad_fraction` allows."""


class TrajectoryWindows(Dataset):
    """
    Windows of consecutive steps, none of which crosses an episode's end. Every row that a window can start from is one
    sample, so that a drawn index is an unbiased start.

    A step is `frameskip` rows: its frame is that of the first, its action block all their actions side by side. A
    window of `num_steps` steps needs `num_steps * frameskip` rows, because the last block belongs to it too.

    Args:
        trajectories ([`Trajectories`]): Where rows come from.
        num_steps (`int`): Steps per window.
        frameskip (`int`): Rows per step.
        mean, std (sequence of `float`): Of the environment's actions, as in [`action_statistics`].
        episodes (sequence of `int`, *optional*): Use only these.
        states (`bool`): Give the states of the steps' first rows too.
        max_bad_fraction (`float`): More than this share of episodes that cannot be read ends the run.

    Raises:
        ValueError: If no episode is long enough.
        TooManyBadEpisodesError: If too many episodes cannot be read.

    Samples are `dict`s: `pixel_values` `(num_steps, channels, height, width)` uint8, or, of [`CachedLatents`],
    `latents` `(num_steps, tokens, width)` float32; `actions` `(num_steps, frameskip * action_dim)` float32, in units
    of `std` about `mean`, 0 where none was taken; `action_mask` `(num_steps,)` bool, False for blocks with a missing
    action; with `states`, `states` `(num_steps, state_dim)` float32.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        num_steps: int,
        frameskip: int = 1,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        episodes: Sequence[int] | None = None,
        states: bool = False,
        max_bad_fraction: float = 0.05,
    ) -> None:
        if num_steps < 1 or frameskip < 1:
            raise ValueError(f"num_steps and frameskip must be at least 1, got {num_steps} and {frameskip}.")
        if len(mean) != trajectories.action_dim or len(std) != trajectories.action_dim or min(std) <= 0:
            raise ValueError(f"mean and std need {trajectories.action_dim} numbers each, every std above 0.")
        if states and len(trajectories) and trajectories.states(0) is None:
            raise ValueError(
                "These trajectories have no states, which this model reads: name their column (`state_column`), or "
                "train a model that needs none (`latent_world_model`)."
            )
        self.trajectories, self.num_steps, self.frameskip = trajectories, num_steps, frameskip
        self.mean, self.std = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
        self.with_states, self.max_bad_fraction = states, max_bad_fraction
        self.episodes = np.arange(len(trajectories)) if episodes is None else np.asarray(episodes, dtype=np.int64)
        starts = np.maximum(trajectories.lengths[self.episodes] - num_steps * frameskip + 1, 0)
        self.num_short = int((starts == 0).sum())
        self._ends = np.cumsum(starts)
        if not len(self):
            longest = trajectories.lengths[self.episodes].max(initial=0)
            raise ValueError(
                f"A window of {num_steps} steps of {frameskip} rows needs {num_steps * frameskip} rows, the longest "
                f"of {len(self.episodes)} episodes has {longest}."
            )
        if self.num_short:
            logger.warning(f"{self.num_short} of {len(self.episodes)} episodes are shorter than a window: left out.")
        # In shared memory: workers see each other's finds.
        self._is_bad = torch.zeros(len(trajectories), dtype=torch.bool).share_memory_()

    @property
    def num_bad(self) -> int:
        """`int`: Episodes that could not be read so far, over all workers of this process."""
        return int(self._is_bad.sum())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, index: int) -> tuple[int, int]:
        """The episode and the row in it that window `index` starts from."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} windows, not one with index {index}.")
        index %= len(self)
        place = int(np.searchsorted(self._ends, index, side="right"))
        return int(self.episodes[place]), index - int(self._ends[place - 1] if place else 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        while True:
            episode, start = self.locate(index)
            try:
                return self._window(episode, start)
            except (ImportError, MemoryError):
                raise
            except Exception as error:  # every decoder has errors of its own for damaged files
                if not self._is_bad[episode]:
                    self._is_bad[episode] = True
                    logger.warning(f"Episode {episode} cannot be read: {error}. The next one takes its place.")
                if self.num_bad > self.max_bad_fraction * len(self.episodes):
                    raise TooManyBadEpisodesError(
                        f"{self.num_bad} of {len(self.episodes)} episodes cannot be read, more than max_bad_fraction="
                        f"{self.max_bad_fraction:g} allows; the last was {episode}: {error}."
                    ) from error
                # A damaged file fails for all its windows.
                index = int(self._ends[np.flatnonzero(self.episodes == episode)[0]]) % len(self)

    def _window(self, episode: int, start: int) -> dict[str, Any]:
        rows = start + np.arange(self.num_steps * self.frameskip)
        steps = rows[:: self.frameskip]
        frames = self.trajectories.frames(episode, steps)
        actions = (self.trajectories.actions(episode)[rows] - self.mean) / self.std
        blocks = torch.from_numpy(actions.reshape(self.num_steps, -1).astype(np.float32))
        known = blocks.isfinite().all(dim=1)
        is_image = frames.dtype == np.uint8
        sample = {
            "pixel_values" if is_image else "latents": torch.from_numpy(
                np.ascontiguousarray(np.moveaxis(frames, -1, 1)) if is_image else frames.astype(np.float32)
            ),
            "actions": blocks.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0),
            "action_mask": known,
        }
        if self.with_states:
            states = self.trajectories.states(episode)
            sample["states"] = torch.from_numpy(np.asarray(states[steps], dtype=np.float32))
            if not sample["states"].isfinite().all():
                raise ValueError("its states hold NaN or infinite values")
        return sample


def collate_windows(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stacks what windows hold, the data collator of world models; what a trainer adds to a sample is left out."""
    names = ("pixel_values", "latents", "actions", "action_mask", "states")
    batch = {}
    for name in (name for name in names if name in samples[0]):
        tensors = tensors_of(samples, name)
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        if len(shapes) > 1:
            raise ValueError(
                f"`{name}` of one batch has the shapes {' and '.join(map(str, shapes))}: give all episodes one size."
            )
        batch[name] = torch.stack(tensors)
    return batch
