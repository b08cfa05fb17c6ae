from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel

from ..data.recording import make_environment
from ..data.trajectories import Trajectories
from ..data.trajectory_lerobot import LeRobotTrajectories
from ..models.latent_world_model import ConvEncoderConfig, ConvEncoderModel
from ..parts import load_auto
from ..planning import MPCPolicy, Planner
from ..planning.policy import channels_first
from ..world_model import WorldModelMixin
from .latent_space import rank_correlation, state_probe
from .planning import PlanningTasks, clean_tasks, planning_report, run_episodes, usual_tasks
from .planning_baselines import (
    GoalConditionedPolicy,
    RandomPolicy,
    train_goal_conditioned_cloning,
    train_goal_head,
)

# Entries of a report: metric as it is recorded.
_METRICS = {
    "success_at_end": "goals reached at the end",
    "success_ever": "goals reached ever",
    "steps_to_success": "steps to the goal",
    "final_distance": "final distance",
}


class GymnasiumGoals:
    """
    Several gymnasium environments that know goals, as one [`GoalEnvironment`]: `reset` takes `options={"state",
    "goal"}`, infos hold `distance`, and `success_distance` is an attribute.

    Args:
        name (`str`): What [`~hf_jepa.data.make_environment`] takes.
        num_envs (`int`): Episodes.

    Raises:
        ValueError: If the environment knows no goals.
    """

    def __init__(self, name: str, num_envs: int) -> None:
        self.num_envs = num_envs
        self._environments = [make_environment(name) for _ in range(num_envs)]
        self.success_distance = getattr(self._environments[0].unwrapped, "success_distance", None)
        if self.success_distance is None:
            raise ValueError(
                f"{name} knows no goals: its class needs a `success_distance`, a `reset` that takes "
                'options={"state": ..., "goal": ...}, and infos with the "distance" to the goal.'
            )
        self.action_space = self._environments[0].action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts every episode where it should."""
        pairs = zip(self._environments, options["states"], options["goals"], strict=True)
        return self._seen([each.reset(options={"state": state, "goal": goal})[1] for each, state, goal in pairs])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step of every episode, ended or not."""
        shape = self.action_space.shape
        outcomes = [e.step(action.reshape(shape)) for e, action in zip(self._environments, actions, strict=True)]
        frames, infos = self._seen([outcome[4] for outcome in outcomes])
        rewards, ended, cut = (np.array([outcome[place] for outcome in outcomes]) for place in (1, 2, 3))
        return frames, rewards, ended, cut, infos

    def close(self) -> None:
        """Closes them all."""
        for environment in self._environments:
            environment.close()

    def _seen(self, infos: list[dict[str, Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if "distance" not in infos[0]:
            raise ValueError('The environment does not say how far the goal is: its infos need a "distance".')
        frames = np.stack([environment.render() for environment in self._environments])
        return frames, {"distance": np.array([info["distance"] for info in infos], dtype=np.float64)}


def load_world_model(repo_or_path: str | Path, revision: str | None = None) -> PreTrainedModel:
    """
    A world model from a repository or folder: of a release, the composite in `pretraining/`.

    Raises:
        ValueError: If there is no world model.
    """
    where: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        config = load_auto(AutoConfig, repo_or_path, subfolder="pretraining", **where)
        where["subfolder"] = "pretraining"
    except (OSError, ValueError):
        config = load_auto(AutoConfig, repo_or_path, **where)
    auto = AutoModelForPreTraining if type(config) in AutoModelForPreTraining._model_mapping else AutoModel
    model = load_auto(auto, repo_or_path, **where)
    if not isinstance(model, WorldModelMixin):
        raise ValueError(f"{repo_or_path} holds a {type(model).__name__}, which is no world model: it cannot plan.")
    return model.eval()


def evaluate_planning(
    repo_or_path: str | Path,
    dataset: str | Path,
    env: str,
    planner: Planner,
    execute: int = 1,
    protocol: Literal["clean", "usual"] = "clean",
    num_tasks: int = 100,
    num_seeds: int = 1,
    max_steps: int = 50,
    offset: int = 25,
    held_out: float = 0.1,
    baselines: bool = True,
    seed: int = 0,
    device: str | None = None,
    revision: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """
    Plans to images of goals in an environment, and has the baselines do the same.

    Args:
        repo_or_path (`str` or `Path`): The world model.
        dataset (`str` or `Path`): Trajectories of the environment in LeRobot's layout, with states that `env` can be
            reset to.
        env (`str`): See [`GymnasiumGoals`].
        planner ([`~hf_jepa.planning.Planner`]): What searches.
        execute (`int`): Steps of the model between plans.
        protocol (`str`): `"clean"`: starts and goals of different held-out episodes, unsolved at the start.
            `"usual"`: a goal `offset` rows later in the same episode, of all episodes, in twice as many steps.
        num_tasks, num_seeds (`int`): Goals per seed, and seeds; tasks and draws differ between them.
        max_steps (`int`): Of the environment, per episode of the clean protocol.
        offset (`int`): Of the usual protocol.
        held_out (`float`): Share of the episodes, the last ones, that neither model nor baselines were trained on.
        baselines (`bool`): Evaluate random actions, an untrained model, GC-IDM and GCBC too.
        seed (`int`): The first.
        device, revision, command (`str`, *optional*): As in [`evaluate_model`].

    Returns:
        `dict`: `model`, `data`, `evaluations` and `baselines` as in `results.json`.

    Raises:
        ValueError: If the parts do not fit together.
    """
    trajectories = LeRobotTrajectories(dataset)
    model = load_world_model(repo_or_path, revision).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.require_statistics()
    first_held_out = len(trajectories) - max(2, round(held_out * len(trajectories)))
    if first_held_out < 1:
        raise ValueError(f"{len(trajectories)} episodes are too few to hold some out.")
    train, test = range(first_held_out), range(first_held_out, len(trajectories))
    world = GymnasiumGoals(env, num_tasks)
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for number in range(seed, seed + num_seeds):
            tasks = (
                usual_tasks(trajectories, range(len(trajectories)), num_tasks, offset, number)
                if protocol == "usual"
                else clean_tasks(
                    trajectories, test, num_tasks, max_steps, _euclidean, 2 * world.success_distance, seed=number
                )
            )
            actors: dict[str, Any] = {"": MPCPolicy(model, planner, execute=execute, seed=number)}
            if baselines:
                actors |= _baselines(model, planner, execute, trajectories, train, world.action_space, number)
            for name, actor in actors.items():
                report = planning_report(run_episodes(actor, world, tasks), world.success_distance)
                found.setdefault(name, []).extend(_entries(report, tasks, dataset, number, command))
    finally:
        world.close()
    evaluations = found.pop("") + _latent_entries(model, trajectories, train, test, dataset, command)
    return {
        "model": {"name": str(repo_or_path)},
        "data": {"name": str(dataset), "num_examples": len(trajectories)},
        "evaluations": evaluations,
        "baselines": [{**entry, "name": name} for name, entries in found.items() for entry in entries],
    }


def _euclidean(starts: np.ndarray, goals: np.ndarray) -> np.ndarray:
    return np.linalg.norm(starts - goals, axis=1)


def _entries(
    report: dict[str, Any], tasks: PlanningTasks, dataset: str | Path, seed: int, command: str | None
) -> list[dict[str, Any]]:
    return [
        {
            "task": f"planning, {tasks.protocol} protocol",
            "dataset": str(dataset),
            "split": "held out" if tasks.protocol == "clean" else "all episodes",
            "num_examples": len(tasks),
            "metric": metric,
            "value": report[key],
            "interval": report.get(f"{key}_interval"),
            "initially_solved": report["initially_solved"],
            "features": None,
            "seed": seed,
            "command": command,
        }
        for key, metric in _METRICS.items()
    ]


@torch.no_grad()
def _features(model: PreTrainedModel, frames: np.ndarray) -> Tensor:
    parts = channels_first(frames).split(256)
    return torch.cat([model.encode(part[:, None].to(model.device)).flatten(1) for part in parts])


def _baselines(
    model: PreTrainedModel,
    planner: Planner,
    execute: int,
    trajectories: Trajectories,
    train: range,
    space: Any,
    seed: int,
) -> dict[str, Any]:
    config = model.config
    statistics = (config.action_mean, config.action_std)
    bounds = (space.low.reshape(-1), space.high.reshape(-1))
    torch.manual_seed(seed)
    untrained = type(model)(config).to(model.device).eval()
    features = [_features(model, trajectories.frames(e, np.arange(trajectories.lengths[e]))) for e in train]
    head = train_goal_head(features, trajectories, train, *statistics, seed=seed)
    height, width, channels = trajectories.frames(0, np.array([0])).shape[1:]
    encoder_config = ConvEncoderConfig(image_size=[height, width], num_channels=channels)
    encoder = nn.Sequential(ConvEncoderModel(encoder_config), _Pooled()).to(model.device)

    def pixels(frames: np.ndarray) -> Tensor:
        return channels_first(frames).to(model.device) / 127.5 - 1

    cloned = train_goal_conditioned_cloning(encoder, pixels, trajectories, train, *statistics, seed=seed)
    return {
        "random actions": RandomPolicy(*bounds, seed=seed),
        "untrained model": MPCPolicy(untrained, planner, execute=execute, seed=seed),
        "GC-IDM": GoalConditionedPolicy(lambda frames: _features(model, frames), head, *statistics, *bounds),
        "GCBC": GoalConditionedPolicy(lambda frames: encoder(pixels(frames)), cloned, *statistics, *bounds),
    }


class _Pooled(nn.Module):
    def forward(self, outputs: Any) -> Tensor:
        return outputs.pooler_output.flatten(1)


def _latent_entries(
    model: PreTrainedModel,
    trajectories: Trajectories,
    train: range,
    test: range,
    dataset: str | Path,
    command: str | None,
) -> list[dict[str, Any]]:
    def seen(episodes: range) -> tuple[Tensor, Tensor]:
        chosen = list(episodes)[:200]
        rows = [np.arange(0, trajectories.lengths[each], 4) for each in chosen]
        frames = [trajectories.frames(each, part) for each, part in zip(chosen, rows, strict=True)]
        states = [trajectories.states(each)[part] for each, part in zip(chosen, rows, strict=True)]
        return _features(model, np.concatenate(frames)).cpu(), torch.from_numpy(np.concatenate(states))

    features, states = seen(train)
    test_features, test_states = seen(test)
    goals = torch.arange(0, len(test_states), max(1, len(test_states) // 20))
    ranks = [
        rank_correlation(
            (test_features - test_features[goal]).square().sum(1), (test_states - test_states[goal]).norm(dim=1)
        )
        for goal in goals
    ]
    common = {"dataset": str(dataset), "split": "held out", "num_examples": len(test_states), "command": command}
    return [
        {
            "task": "latent space",
            "metric": "R2 of the state, linear probe",
            "value": state_probe(features, states, test_features, test_states).mean().item(),
            "features": "latents",
            **common,
        },
        {
            "task": "latent space",
            "metric": "rank correlation of cost and distance",
            "value": float(np.mean(ranks)),
            "features": "latents",
            **common,
        },
    ]
