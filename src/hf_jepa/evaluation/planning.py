from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..data.trajectories import Trajectories

PROTOCOLS = ("clean", "usual")


class GoalEnvironment(Protocol):
    """
    A vector environment by gymnasium's API in which each episode has a goal. `reset` takes `options={"states",
    "goals"}`, `(num_envs, state_dim)` each; observations are `(num_envs, height, width, channels)` uint8 frames; infos
    hold `distance` `(num_envs,)` to the goals. Nothing restarts by itself.
    """

    num_envs: int
    success_distance: float

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]: ...

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]: ...


class Policy(Protocol):
    """What acts: told the goals' frames once, then asked at every step. [`~hf_jepa.planning.MPCPolicy`] is one."""

    def reset(self, goals: np.ndarray, numbers: Sequence[int] | None = None) -> None: ...

    def __call__(self, frames: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class PlanningTasks:
    """
    Where episodes start and where they should end.

    Attributes:
        starts, goals (`(tasks, state_dim)` float32): States.
        goal_frames (`(tasks, height, width, channels)` uint8): What the policy is told of the goal.
        protocol (`str`): How they were chosen: `"clean"` or `"usual"`.
        max_steps (`int`): Steps an episode has.
    """

    starts: np.ndarray
    goals: np.ndarray
    goal_frames: np.ndarray
    protocol: str
    max_steps: int

    def __len__(self) -> int:
        return len(self.starts)


def clean_tasks(
    trajectories: Trajectories,
    held_out: Sequence[int],
    num_tasks: int,
    max_steps: int,
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
    least: float,
    accept: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
) -> PlanningTasks:
    """
    The clean protocol: starts and goals are states of two different held-out episodes, so that nothing says that a few
    recorded actions connect them; none is solved at the start.

    Args:
        trajectories ([`Trajectories`]): With states.
        held_out (sequence of `int`): Episodes that no model has seen.
        num_tasks (`int`): Tasks.
        max_steps (`int`): Steps an episode gets.
        distance (`Callable`): Of two `(n, state_dim)` arrays, `(n,)`.
        least (`float`): Distance between start and goal; above the success distance.
        accept (`Callable`, *optional*): Further conditions on starts and goals, `(n,)` bool.
        seed (`int`): Of the choice.

    Raises:
        ValueError: If too few pairs of states are far enough from each other.
    """
    generator = np.random.default_rng(seed)
    starts, goals, frames = [], [], []
    for _ in range(1000 * num_tasks):
        first, second = generator.choice(held_out, 2, replace=False)
        start = _states(trajectories, first)[generator.integers(trajectories.lengths[first])]
        row = int(generator.integers(trajectories.lengths[second]))
        goal = _states(trajectories, second)[row]
        if distance(start[None], goal[None])[0] < least:
            continue
        if accept is not None and not accept(start[None], goal[None])[0]:
            continue
        starts.append(start)
        goals.append(goal)
        frames.append(trajectories.frames(int(second), np.array([row]))[0])
        if len(starts) == num_tasks:
            return PlanningTasks(np.stack(starts), np.stack(goals), np.stack(frames), "clean", max_steps)
    raise ValueError(
        f"Only {len(starts)} of {num_tasks} tasks were found: few states of held-out episodes are {least} apart."
    )


def usual_tasks(
    trajectories: Trajectories, episodes: Sequence[int], num_tasks: int, offset: int = 25, seed: int = 0
) -> PlanningTasks:
    """
    The usual protocol of the literature (DINO-WM, stable-worldmodel): a random row of an episode is the start, the
    frame `offset` rows later the goal, twice as many steps are allowed. Many such tasks are solved at the start.

    Raises:
        ValueError: If no episode is long enough.
    """
    generator = np.random.default_rng(seed)
    long_enough = [each for each in episodes if trajectories.lengths[each] > offset]
    if not long_enough:
        raise ValueError(f"No episode has more than {offset} rows: choose a smaller offset.")
    chosen = generator.choice(long_enough, num_tasks)
    rows = np.array([generator.integers(trajectories.lengths[each] - offset) for each in chosen])
    states = [_states(trajectories, each) for each in chosen]
    return PlanningTasks(
        np.stack([each[row] for each, row in zip(states, rows, strict=True)]),
        np.stack([each[row + offset] for each, row in zip(states, rows, strict=True)]),
        np.stack([trajectories.frames(int(e), np.array([r + offset]))[0] for e, r in zip(chosen, rows, strict=True)]),
        "usual",
        2 * offset,
    )


def _states(trajectories: Trajectories, episode: int) -> np.ndarray:
    states = trajectories.states(int(episode))
    if states is None:
        raise ValueError("These trajectories have no states, which tasks are made of.")
    return states


@dataclass(frozen=True)
class Episodes:
    """
    What happened.

    Attributes:
        distances (`(tasks, steps + 1)` float64): To the goal, before the first step and after each.
        states (`(tasks, steps + 1, state_dim)` or `None`): Where it went, if the environment says so in its infos.
        frames (`(recorded, steps + 1, height, width, channels)` uint8): Of the first tasks.
    """

    distances: np.ndarray
    states: np.ndarray | None
    frames: np.ndarray


def run_episodes(policy: Policy, environment: GoalEnvironment, tasks: PlanningTasks, record: int = 0) -> Episodes:
    """
    Runs one episode per task, all at once. Episodes go on after success, so that it shows whether it stays.

    Args:
        policy ([`Policy`]): Who acts.
        environment ([`GoalEnvironment`]): With as many episodes as there are tasks.
        tasks ([`PlanningTasks`]): From where to where.
        record (`int`): Keep the frames of so many tasks.

    Raises:
        ValueError: If the environment has another number of episodes or refuses the states, or a task is solved at the
            start although the protocol is clean.
    """
    if environment.num_envs != len(tasks):
        raise ValueError(f"{len(tasks)} tasks need as many environments, got {environment.num_envs}.")
    frames, infos = environment.reset(options={"states": tasks.starts, "goals": tasks.goals})
    solved = int((infos["distance"] < environment.success_distance).sum())
    if solved and tasks.protocol == "clean":
        raise ValueError(f"{solved} of {len(tasks)} tasks are solved at the start: ask for goals further away.")
    policy.reset(tasks.goal_frames, range(len(tasks)))
    distances, states, seen = [infos["distance"]], [infos.get("state")], [frames[:record]]
    for _ in range(tasks.max_steps):
        frames, _, _, _, infos = environment.step(policy(frames))
        distances.append(infos["distance"])
        states.append(infos.get("state"))
        seen.append(frames[:record])
    path = None if states[0] is None else np.stack(states, axis=1)
    return Episodes(np.stack(distances, axis=1), path, np.stack(seen, axis=1))


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), which stays inside [0, 1] and has a width at 0 and 1."""
    if trials < 1:
        raise ValueError("An interval needs at least one trial.")
    share, spread = successes / trials, z**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / trials + spread / (4 * trials)) ** 0.5 / (1 + spread)
    return middle - half, middle + half


def planning_report(episodes: Episodes, success_distance: float) -> dict[str, Any]:
    """
    Success at the end and at any time with 95 % intervals, steps to the first success, and final distances.

    Returns:
        `dict`: `num_episodes`; `success_at_end`, `success_ever`, shares, each with `..._interval`; `steps_to_success`,
        the mean over episodes that succeeded, `None` without any; `final_distance`, the mean; `initially_solved`.
    """
    near = episodes.distances < success_distance
    ever = near[:, 1:].any(axis=1)
    count = len(near)
    report: dict[str, Any] = {"num_episodes": count}
    for name, successes in (("success_at_end", int(near[:, -1].sum())), ("success_ever", int(ever.sum()))):
        report |= {name: successes / count, f"{name}_interval": list(wilson_interval(successes, count))}
    steps = near[:, 1:].argmax(axis=1)[ever] + 1
    return report | {
        "steps_to_success": float(steps.mean()) if len(steps) else None,
        "final_distance": float(episodes.distances[:, -1].mean()),
        "initially_solved": int(near[:, 0].sum()),
    }
