from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class Trajectories(ABC):
    """
    Episodes of frames and actions: row `t` holds what was seen, and the action that was taken then.

    Attributes:
        lengths (`(episodes,)` int64): Rows of each episode.
        action_dim (`int`): Width of an action.
    """

    lengths: np.ndarray
    action_dim: int

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def actions(self, episode: int) -> np.ndarray:
        """`(rows, action_dim)` float32 of a whole episode; NaN where no action was taken, as in a last row."""

    @abstractmethod
    def frames(self, episode: int, rows: np.ndarray) -> np.ndarray:
        """`(rows, height, width, channels)` uint8 frames of these rows."""

    def states(self, episode: int) -> np.ndarray | None:
        """`(rows, state_dim)` float32 states of a whole episode, or `None` where there are none."""
        return None


class ArrayTrajectories(Trajectories):
    """
    Episodes in memory.

    Args:
        actions (sequence of `(rows or rows - 1, action_dim)` arrays): One per episode. One row fewer than frames means
            that nothing was done in the last row, which becomes NaN.
        frames (sequence of `(rows, height, width, channels)` uint8 arrays, *optional*): One per episode; or latents,
            `(rows, tokens, width)` floats.
        states (sequence of `(rows, state_dim)` arrays, *optional*): One per episode.
        render (`Callable`, *optional*): Draws frames of `(rows, state_dim)` states, in place of `frames`.

    Raises:
        ValueError: If there is no episode, or the parts of one do not fit together.
    """

    def __init__(
        self,
        actions: Sequence[np.ndarray],
        frames: Sequence[np.ndarray] | None = None,
        states: Sequence[np.ndarray] | None = None,
        render: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        if not len(actions):
            raise ValueError("There is no episode.")
        if (frames is None) == (render is None) or (render is not None and states is None):
            raise ValueError("Give `frames`, or `states` and how to `render` them.")
        if states is not None:
            states = [_checked("states", number, each, 2) for number, each in enumerate(states)]
        if frames is not None:
            frames = [_checked("frames", number, each, (4, 3)) for number, each in enumerate(frames)]
        actions = [_checked("actions", number, each, 2) for number, each in enumerate(actions)]
        rows = [len(each) for each in (states if frames is None else frames)]
        if len(rows) != len(actions) or (states is not None and [len(each) for each in states] != rows):
            raise ValueError("Frames, states and actions must be of the same episodes.")
        self.lengths = np.array(rows, dtype=np.int64)
        self.action_dim = actions[0].shape[1]
        self._frames, self._states, self._render = frames, states, render
        self._actions = []
        for number, (each, length) in enumerate(zip(actions, rows, strict=True)):
            padded = np.full((length, self.action_dim), np.nan, dtype=np.float32)
            if each.shape[1] != self.action_dim or len(each) not in (length - 1, length):
                raise ValueError(
                    f"Episode {number} has {length} frames and actions of shape {each.shape}; they must be "
                    f"({length - 1} or {length}, {self.action_dim})."
                )
            padded[: len(each)] = each
            self._actions.append(padded)

    def actions(self, episode: int) -> np.ndarray:
        return self._actions[episode]

    def frames(self, episode: int, rows: np.ndarray) -> np.ndarray:
        if self._render is not None:
            return self._render(self._states[episode][rows])
        return np.asarray(self._frames[episode][rows])

    def states(self, episode: int) -> np.ndarray | None:
        return None if self._states is None else np.asarray(self._states[episode], dtype=np.float32)


def _checked(name: str, number: int, values: Any, ndim: int | tuple[int, int]) -> np.ndarray:
    """`values` as an array of so many dimensions; of frames, of images and of latents."""
    values = np.asarray(values)
    if isinstance(ndim, tuple):
        wanted = "(rows, height, width, channels) uint8, or latents (rows, tokens, width) of floats"
        fits = values.ndim == ndim[0 if values.dtype == np.uint8 else 1]
    else:
        wanted, fits = f"(rows, {name[:-1]}_dim)", values.ndim == ndim
    if not fits:
        raise ValueError(
            f"Episode {number} has {name} of shape {values.shape} and {values.dtype}; they must be {wanted}."
        )
    return values


@dataclass(frozen=True)
class ActionStatistics:
    """
    What a checkpoint has to know about actions, in the environment's units, one number per dimension.

    Attributes:
        mean, std (list of `float`): Over all rows that have an action.
        low, high (list of `float`): The smallest and the largest one seen.
    """

    mean: list[float]
    std: list[float]
    low: list[float]
    high: list[float]


def action_statistics(trajectories: Trajectories, episodes: Sequence[int] | None = None) -> ActionStatistics:
    """
    Statistics of the actions in these episodes, by default in all; of the training episodes, if some are held out.

    Rows with NaN are left out. The standard deviation is the biased one.

    Raises:
        ValueError: If there is no action, or one dimension never changes, so that it cannot be divided by its spread.
    """
    chosen = range(len(trajectories)) if episodes is None else episodes
    rows = [trajectories.actions(episode).astype(np.float64) for episode in chosen]
    known = np.concatenate(rows)[np.isfinite(np.concatenate(rows)).all(axis=1)] if rows else np.zeros((0, 1))
    if not len(known):
        raise ValueError(
            "There is no row with an action to take statistics of: record episodes of two rows or more, with actions."
        )
    std = known.std(axis=0)
    if (std < 1e-8).any():
        still = np.flatnonzero(std < 1e-8).tolist()
        raise ValueError(f"Action dimensions {still} never change: leave them out, no model can learn what they do.")
    return ActionStatistics(*(each.tolist() for each in (known.mean(0), std, known.min(0), known.max(0))))
