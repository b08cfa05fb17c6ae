"""
Two rooms and one door: a dot that walks, and a wall that it cannot cross. Numpy only; all episodes at once.

The unit square is split at x = 0.5 by a wall with one door, off the line of sight between the rooms, so that a
straight line towards a goal in the other room ends at the wall. Frames are 64 x 64 RGB, drawn with anti-aliasing. The
class follows gymnasium's vector API and works without gymnasium.
"""

from __future__ import annotations

from typing import Any

import numpy as np

IMAGE_SIZE = 64
WALL = 0.5
DOOR = (0.70, 0.90)
MAX_STEP = 0.07
# The dot's centre stays this far from walls.
MARGIN = 0.03
SUCCESS_DISTANCE = 1 / 16
DOT_RADIUS = 0.035
FLOOR, WALL_COLOR, DOT = (
    np.array(color, dtype=np.float32) for color in ((16, 20, 36), (120, 132, 160), (255, 170, 40))
)


def move(positions: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """
    Where dots end up: `(n, 2)` positions and `(n, 2)` steps to `(n, 2)` positions.

    Collisions are swept: what counts is where the path meets the wall, not where it would end, so that no step jumps
    through it. A dot that meets the wall slides along it.
    """
    target = np.clip(positions + np.clip(actions, -MAX_STEP, MAX_STEP), MARGIN, 1 - MARGIN)
    left = positions[:, 0] < WALL
    crossing = (target[:, 0] < WALL) != left
    length = np.where(crossing, target[:, 0] - positions[:, 0], 1.0)
    share = np.where(crossing, (WALL - positions[:, 0]) / length, 1.0)
    height = positions[:, 1] + share * (target[:, 1] - positions[:, 1])
    through = crossing & in_door(height)
    # What stands in the wall's margin must stand in the door.
    side = np.where(through, ~left, left)
    touching = ~in_door(target[:, 1]) | (crossing & ~through)
    nearest = np.where(side, np.minimum(target[:, 0], WALL - MARGIN), np.maximum(target[:, 0], WALL + MARGIN))
    return np.stack([np.where(touching, nearest, target[:, 0]), target[:, 1]], axis=1)


def in_door(heights: np.ndarray) -> np.ndarray:
    """Whether a dot at these y coordinates fits through the door."""
    return (heights > DOOR[0] + MARGIN / 2) & (heights < DOOR[1] - MARGIN / 2)


def in_different_rooms(positions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether the wall is between `(n, 2)` positions and `(n, 2)` others."""
    return (positions[:, 0] < WALL) != (others[:, 0] < WALL)


def walking_distance(positions: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Lengths `(n, m)` of the shortest ways from `(n, 2)` positions to `(m, 2)` goals, through the door if need be."""
    straight = np.linalg.norm(positions[:, None] - goals[None], axis=-1)
    heights = np.linspace(DOOR[0] + MARGIN / 2, DOOR[1] - MARGIN / 2, 33)
    gate = np.stack([np.full_like(heights, WALL), heights], axis=1)
    to_gate, from_gate = (np.linalg.norm(each[:, None] - gate, axis=-1) for each in (positions, goals))
    around = (to_gate[:, None] + from_gate[None]).min(axis=-1)
    apart = (positions[:, 0] < WALL)[:, None] != (goals[:, 0] < WALL)[None]
    return np.where(apart, around, straight)


def _background(size: int) -> np.ndarray:
    """The empty rooms, `(size, size, 3)` float32."""
    fine = 8 * size
    center = (np.arange(fine) + 0.5) / fine
    wall = (np.abs(center - WALL) < MARGIN / 2)[None, :] & ~((center > DOOR[0]) & (center < DOOR[1]))[:, None]
    cover = wall.reshape(size, 8, size, 8).mean(axis=(1, 3), dtype=np.float32)[..., None]
    return FLOOR + cover * (WALL_COLOR - FLOOR)


_BACKGROUNDS: dict[int, np.ndarray] = {}


def render(positions: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """Frames of dots at `(..., 2)` positions, x to the right and y downwards: `(..., size, size, 3)` uint8."""
    if size not in _BACKGROUNDS:
        _BACKGROUNDS[size] = np.rint(_background(size)).astype(np.uint8)
    center = np.asarray(positions, dtype=np.float32).reshape(-1, 2) * size
    frames = np.repeat(_BACKGROUNDS[size][None], len(center), axis=0)
    # Only the square around a dot is painted.
    span = min(int(2 * DOT_RADIUS * size) + 4, size)
    corner = np.clip(np.floor(center - span / 2 + 0.5), 0, size - span).astype(np.int64)
    columns, rows = (corner[:, axis, None] + np.arange(span) for axis in (0, 1))
    distance = np.hypot((columns + 0.5 - center[:, :1])[:, None, :], (rows + 0.5 - center[:, 1:])[:, :, None])
    cover = np.clip(DOT_RADIUS * size - distance + 0.5, 0, 1)[..., None]
    place = np.arange(len(center))[:, None, None], rows[:, :, None], columns[:, None, :]
    behind = frames[place].astype(np.float32)
    frames[place] = np.rint(behind + cover * (DOT - behind)).astype(np.uint8)
    return frames.reshape(*np.shape(positions)[:-1], size, size, 3)


def free_positions(generator: np.random.Generator, count: int) -> np.ndarray:
    """`(count, 2)` uniform positions in the rooms, outside the wall's margin."""
    positions = generator.uniform(MARGIN, 1 - MARGIN, (count, 2))
    inside = np.abs(positions[:, 0] - WALL) < MARGIN
    positions[inside, 0] += np.where(positions[inside, 0] < WALL, -MARGIN, MARGIN)
    return positions


def random_walks(seed: int, count: int, length: int = 16, near_door: float = 0.35) -> tuple[np.ndarray, np.ndarray]:
    """
    Walks that nobody aims: steps are mean-reverting noise.

    Args:
        seed (`int`): Walks of one seed are one and the same.
        count (`int`): Episodes.
        length (`int`): Actions per episode.
        near_door (`float`): Share of episodes that start near the door.

    Returns:
        `(count, length + 1, 2)` float32 positions and `(count, length, 2)` float32 actions.
    """
    generator = np.random.default_rng(seed)
    now = free_positions(generator, count)
    chosen = generator.random(count) < near_door
    near = np.stack([WALL + generator.uniform(-0.2, 0.2, count), generator.uniform(*DOOR, count)], axis=1)
    now[chosen] = near[chosen]
    action = generator.normal(0, 0.6 * MAX_STEP, (count, 2))
    positions, actions = [now], []
    for _ in range(length):
        action = 0.8 * action + generator.normal(0, 0.45 * MAX_STEP, (count, 2))
        taken = np.clip(action, -MAX_STEP, MAX_STEP)
        now = move(now, taken)
        positions.append(now)
        actions.append(taken)
    return np.stack(positions, 1).astype(np.float32), np.stack(actions, 1).astype(np.float32)


class TwoRooms:
    """
    Several dots in rooms of their own, by gymnasium's vector API; each walks to a goal of its own.

    Observations are `(num_envs, 64, 64, 3)` uint8 frames, actions `(num_envs, 2)` steps of at most 0.07 per axis.
    Infos hold `state` and `goal` `(num_envs, 2)`, `goal_frame` like an observation, and `distance` `(num_envs,)`,
    which below `success_distance` is success. Episodes do not end by themselves.
    """

    success_distance = SUCCESS_DISTANCE
    action_low, action_high = np.full(2, -MAX_STEP, np.float32), np.full(2, MAX_STEP, np.float32)

    def __init__(self, num_envs: int = 1, image_size: int = IMAGE_SIZE) -> None:
        self.num_envs, self.image_size = num_envs, image_size
        self.states = self.goals = np.zeros((num_envs, 2))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Places dots and goals where `options["states"]` and `options["goals"]` `(num_envs, 2)` say, or anywhere."""
        options = options or {}
        generator = np.random.default_rng(seed)
        state, goal = (
            np.array(options[name], dtype=np.float64) if name in options else free_positions(generator, self.num_envs)
            for name in ("states", "goals")
        )
        for name, value in (("states", state), ("goals", goal)):
            if value.shape != (self.num_envs, 2) or not np.isfinite(value).all():
                raise ValueError(f"`{name}` must be {(self.num_envs, 2)} finite positions, got shape {value.shape}.")
        self.states, self.goals = state, goal
        return render(self.states, self.image_size), self._infos()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step; the reward is minus the distance to the goal."""
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.num_envs, 2) or not np.isfinite(actions).all():
            raise ValueError(f"Actions must be {(self.num_envs, 2)} finite steps, got shape {actions.shape}.")
        self.states = move(self.states, actions)
        infos, never = self._infos(), np.zeros(self.num_envs, dtype=bool)
        return (
            render(self.states, self.image_size),
            -infos["distance"],
            infos["distance"] < SUCCESS_DISTANCE,
            never,
            infos,
        )

    def close(self) -> None:
        """Nothing to free."""

    def _infos(self) -> dict[str, np.ndarray]:
        distance = np.linalg.norm(self.states - self.goals, axis=1)
        frame = render(self.goals, self.image_size)
        return {"state": self.states.copy(), "goal": self.goals.copy(), "goal_frame": frame, "distance": distance}
