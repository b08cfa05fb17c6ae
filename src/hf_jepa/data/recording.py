from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from tqdm.auto import tqdm

Policy = Callable[[np.ndarray], np.ndarray]


def make_environment(name: str) -> Any:
    """
    `gymnasium.make` with frames as images: `"CartPole-v1"`, or `"module:Name-v0"`, which imports the module first.

    Raises:
        ImportError: If gymnasium is not installed.
        ValueError: If there is no such environment, or its actions are not continuous and bounded.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            "Environments need gymnasium, which is not installed: `pip install 'hf-jepa[planning]'`."
        ) from error
    try:
        environment = gymnasium.make(name, render_mode="rgb_array")
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"gymnasium cannot make {name!r}: {error}") from error
    try:
        check_action_space(environment.action_space, name)
    except ValueError:
        environment.close()
        raise
    return environment


def check_action_space(space: Any, name: str = "The environment") -> None:
    """
    Raises:
        ValueError: If actions are not vectors between finite bounds: [`Discrete`], [`Dict`], unbounded ones.
    """
    bounds = [getattr(space, side, None) for side in ("low", "high")]
    if (
        any(bound is None for bound in bounds)
        or not space.shape
        or not np.isfinite(bounds).all()
        or not np.issubdtype(getattr(space, "dtype", np.float32), np.floating)
    ):
        raise ValueError(
            f"{name} has the action space {space}; world models take bounded, continuous actions. A wrapper can make "
            "others so: gymnasium.wrappers.RescaleAction, or gymnasium.ActionWrapper with a Box of its own."
        )


def record_episodes(
    environment: Any,
    folder: str | Path,
    num_episodes: int,
    max_steps: int = 100,
    policy: Policy | None = None,
    seed: int = 0,
    fps: int = 10,
    state_key: str | None = None,
) -> Path:
    """
    Records episodes of a gymnasium environment in LeRobot's layout (version 2.1, frames as PNG images in the rows),
    for [`LeRobotTrajectories`]. The last row of an episode, after which nothing was done, has NaN for its action.

    Args:
        environment (`gymnasium.Env`): Made with `render_mode="rgb_array"`.
        folder (`str` or `Path`): Where to write; must not exist, or be empty.
        num_episodes (`int`): Episodes.
        max_steps (`int`): Most steps in one.
        policy (`Callable`, *optional*): From an observation to an action; actions are drawn uniformly by default.
        seed (`int`): Episode `i` is reset with `seed + i`.
        fps (`int`): Frames per second to be noted.
        state_key (`str`, *optional*): Entry of the environment's infos, or of an observation that is a `dict`, to
            record as the state, instead of the observation itself, which has to be a vector.

    Returns:
        `Path`: `folder`.

    Raises:
        ValueError: If the folder is not empty, nothing is to be recorded, the environment renders no RGB
            image, its actions are not bounded vectors or its states not finite ones.
    """
    folder = Path(folder)
    if num_episodes < 1 or max_steps < 1:
        raise ValueError(f"num_episodes and max_steps must be at least 1, got {num_episodes} and {max_steps}.")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose a new folder to record into.")
    space = environment.action_space
    check_action_space(space)
    space.seed(seed)
    width = int(np.prod(space.shape))
    rows = 0
    lengths, shape, state_width = [], None, 0
    for number in tqdm(range(num_episodes), desc="Recording", unit="episode"):
        frames, actions, states = _one_episode(environment, policy, seed + number, max_steps, state_key)
        length, shape, state_width = len(frames), frames[0].shape, len(states[0])
        features = {
            "observation.image": Image(),
            "observation.state": List(Value("float32"), length=state_width),
            "action": List(Value("float32"), length=width),
            "timestamp": Value("float32"),
            **{name: Value("int64") for name in ("frame_index", "episode_index", "index", "task_index")},
        }
        values = {
            "observation.image": [_png(frame) for frame in frames],
            "observation.state": states,
            "action": [*actions, np.full(width, np.nan)],
            "timestamp": np.arange(length) / fps,
            "frame_index": np.arange(length),
            "episode_index": [number] * length,
            "index": np.arange(rows, rows + length),
            "task_index": [0] * length,
        }
        path = folder / f"data/chunk-{number // 1000:03d}/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(values, Features(features)).to_parquet(path)
        rows += length
        lengths.append(length)
    _write_meta(folder, lengths, shape, width, state_width, fps, space)
    return folder


def _one_episode(
    environment: Any, policy: Policy | None, seed: int, max_steps: int, state_key: str | None
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    observation, info = environment.reset(seed=seed)
    frames, states, actions = [], [], []
    for step in range(max_steps + 1):
        frame = environment.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            about = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(
                f"The environment renders {about}, not a uint8 image (height, width, 3): make it with "
                'render_mode="rgb_array", or wrap its `render`.'
            )
        frames.append(frame)
        states.append(_state(observation, info, state_key))
        if step == max_steps:
            break
        action = environment.action_space.sample() if policy is None else np.asarray(policy(observation))
        observation, _, terminated, truncated, info = environment.step(action)
        actions.append(np.asarray(action, dtype=np.float32).reshape(-1))
        if terminated or truncated:
            frames.append(environment.render())
            states.append(_state(observation, info, state_key))
            break
    return frames, actions, states


def _state(observation: Any, info: dict[str, Any], key: str | None) -> np.ndarray:
    named = {**(observation if isinstance(observation, dict) else {}), **info}
    if key is not None and key not in named:
        raise ValueError(f"There is no {key!r} to record as the state, but {', '.join(named) or 'nothing'}.")
    if key is None and isinstance(observation, dict):
        raise ValueError(f"The observation is a dict: name one of {', '.join(named)} as the state_key.")
    state = np.asarray(named[key] if key else observation, dtype=np.float32)
    if state.ndim != 1 or not len(state) or not np.isfinite(state).all():
        raise ValueError(f"A state must be a vector of finite numbers, got shape {state.shape}: name a state_key.")
    return state


def _png(frame: np.ndarray) -> Any:
    from PIL import Image as PillowImage

    return PillowImage.fromarray(frame)


def _write_meta(
    folder: Path, lengths: list[int], shape: tuple[int, ...], width: int, state_width: int, fps: int, space: Any
) -> None:
    names = {"action": width, "observation.state": state_width}
    single = {"dtype": "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": "v2.1",
        "robot_type": None,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "action_bounds": {name: np.ravel(getattr(space, name)).tolist() for name in ("low", "high")},
        "features": {
            "observation.image": {"dtype": "image", "shape": list(shape), "names": ["height", "width", "channels"]},
            **{name: {"dtype": "float32", "shape": [size], "names": None} for name, size in names.items()},
            "timestamp": {**single, "dtype": "float32"},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), single),
        },
    }
    meta = folder / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    (meta / "info.json").write_text(json.dumps(info, indent=2))
    lines = [{"episode_index": number, "tasks": [""], "length": length} for number, length in enumerate(lengths)]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": ""}) + "\n")
