from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .base_planner import Planner

if TYPE_CHECKING:
    from ..world_model import WorldModelMixin


def channels_first(frames: np.ndarray) -> Tensor:
    """`(n, height, width, channels)` frames, as gymnasium renders them, as a `(n, channels, height, width)` tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 1)))


@dataclass
class _Episode:
    """What one episode has seen, done and still has to do."""

    goal: Tensor | None
    generator: torch.Generator
    latents: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    blocks: list[Tensor] = field(default_factory=list)
    queue: list[np.ndarray] = field(default_factory=list)
    rest: Tensor | None = None
    kept: Tensor | None = None
    steps: int = 0

    @property
    def age(self) -> tuple[int, bool]:
        return len(self.latents), self.steps > 0


class MPCPolicy:
    """
    Model predictive control over a vector environment: look, plan, execute the plan's first steps, plan again.

    Every episode has its own generator and its own clock, so that its actions do not depend on the episodes beside it.

    Args:
        model ([`WorldModelMixin`]): In evaluation mode.
        planner ([`Planner`]): What searches.
        preprocess (`Callable`, *optional*): From the environment's frames of `n` episodes, as they come, to `(n,
            channels, height, width)` as the model takes them. By default frames have their channels last, and models
            take uint8.
        execute (`int`): Steps of the model that are executed before the next plan.
        context (`int`): Most frames that plans look back on; the model must have been trained with so many.
        warm_start (`bool`): Start a search from what the last plan left to do, instead of from the mean action.
        seed (`int`): Seed of an episode's draws, beside the episode's own number.

    Raises:
        ValueError: If `execute` is longer than the planner's horizon.
    """

    def __init__(
        self,
        model: WorldModelMixin,
        planner: Planner,
        preprocess: Callable[[np.ndarray], Tensor] = channels_first,
        execute: int = 1,
        context: int = 1,
        warm_start: bool = True,
        seed: int = 0,
    ) -> None:
        if not 1 <= execute <= planner.horizon:
            raise ValueError(f"`execute` must be between 1 and the horizon ({planner.horizon}), got {execute}.")
        if context < 1:
            raise ValueError(f"`context` must be at least 1, got {context}.")
        model.require_statistics()
        self.model, self.planner, self.preprocess = model, planner, preprocess
        self.execute, self.context, self.warm_start, self.seed = execute, context, warm_start, seed
        self._shared_goal: Callable[[Tensor], Tensor] | None = None
        self._episodes: list[_Episode] = []

    @torch.no_grad()
    def reset(
        self,
        goals: np.ndarray | Tensor | Callable[[Tensor], Tensor],
        numbers: Sequence[int] | None = None,
        where: Sequence[int] | None = None,
    ) -> None:
        """
        Starts new episodes.

        Args:
            goals: Per episode a frame, as `preprocess` takes it, a clip of frames `(time, ...)`, whose last one
                counts, or a latent `(tokens, width)`; or one callable for all, see [`~Planner.plan`], with `numbers`.
            numbers (sequence of `int`, *optional*): The episodes' own numbers, which seed their draws; 0, 1, ... if
                omitted.
            where (sequence of `int`, *optional*): The environments that these episodes run in, while the others go on
                with theirs; all of them if omitted.

        Raises:
            ValueError: If there are not as many goals as numbers or environments.
        """
        if callable(goals):
            if numbers is None:
                raise ValueError("A callable goal does not say how many episodes there are: give their `numbers`.")
            self._shared_goal, goals = goals, [None] * len(numbers)
        else:
            self._shared_goal = None
            if isinstance(goals, Sequence) and all(isinstance(goal, np.ndarray) for goal in goals):
                goals = np.stack(goals)
            if isinstance(goals, np.ndarray):
                goals = self._latents(goals[:, -1] if goals.ndim == 5 else goals)
        numbers = range(len(goals)) if numbers is None else numbers
        if len(numbers) != len(goals):
            raise ValueError(f"{len(goals)} goals need as many episode numbers, got {len(numbers)}.")
        episodes = [
            _Episode(goal, torch.Generator(self.model.device).manual_seed(_seed(self.seed, number)))
            for goal, number in zip(goals, numbers, strict=True)
        ]
        if where is None:
            self._episodes = episodes
            return
        if len(where) != len(episodes):
            raise ValueError(f"{len(episodes)} goals for {len(where)} environments.")
        for index, episode in zip(where, episodes, strict=True):
            self._episodes[index] = episode

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        """
        The next action of every episode.

        Args:
            frames: What the environment shows, as `preprocess` takes it, one per episode.
            states (`(episodes, state_dim)`, *optional*): Robot states, for models that take them.

        Returns:
            `(episodes, raw_action_dim)` float32, in the environment's units.

        Raises:
            ValueError: If there are not as many frames as goals, or states are not finite.
        """
        if len(frames) != len(self._episodes):
            raise ValueError(f"{len(frames)} frames for {len(self._episodes)} goals: `reset` with a goal for each.")
        frames = np.asarray(frames)
        looking = [index for index, episode in enumerate(self._episodes) if self._looks(episode)]
        if looking:
            for latent, index in zip(self._latents(frames[looking]), looking, strict=True):
                episode = self._episodes[index]
                episode.latents = [*episode.latents, latent][-self.context :]
                if states is not None:
                    state = torch.as_tensor(states[index], dtype=torch.float32, device=latent.device)
                    episode.states = [*episode.states, state][-self.context :]
        waiting = [episode for episode in self._episodes if not episode.queue]
        # Young episodes have seen fewer frames, and have no earlier plan to start from.
        for age in sorted({episode.age for episode in waiting}):
            self._plan([episode for episode in waiting if episode.age == age])
        for episode in self._episodes:
            episode.steps += 1
        return np.stack([episode.queue.pop(0) for episode in self._episodes])

    def _looks(self, episode: _Episode) -> bool:
        if self.context == 1:
            return not episode.queue
        return episode.steps % self.model.config.frameskip == 0

    def _latents(self, frames: np.ndarray) -> list[Tensor]:
        """One episode at a time: in a batch, an encoder's rounding depends on how many they are."""
        pixels = self.preprocess(frames).to(self.model.device)
        return [self.model.encode(frame[:, None])[0, 0] for frame in pixels.split(1)]

    def _plan(self, episodes: list[_Episode]) -> None:
        context = len(episodes[0].latents)
        options = {}
        if context > 1:
            options["past_actions"] = torch.stack([torch.stack(each.blocks[1 - context :]) for each in episodes])
        if episodes[0].states:
            options["states"] = torch.stack([torch.stack(each.states) for each in episodes])
        if self.warm_start and episodes[0].rest is not None:
            options["start"] = torch.stack([each.rest for each in episodes])
        if episodes[0].kept is not None:
            options["kept"] = torch.stack([each.kept for each in episodes])
        plans, trace = self.planner.plan(
            self.model,
            torch.stack([torch.stack(each.latents) for each in episodes]),
            self._shared_goal or torch.stack([each.goal for each in episodes]),
            [each.generator for each in episodes],
            return_trace=True,
            **options,
        )
        todo = plans[:, : self.execute]
        actions = todo.reshape(len(episodes), -1, self.model.config.raw_action_dim).cpu().numpy()
        for row, episode in enumerate(episodes):
            episode.queue = list(actions[row])
            episode.blocks = [*episode.blocks, *todo[row]][-self.context :]
            if self.execute < self.planner.horizon:
                episode.rest = plans[row, self.execute :]
            if trace.best is not None:
                best = trace.best[row]
                # Beyond the old horizon a plan goes on with its last action.
                episode.kept = torch.cat([best[:, self.execute :], best[:, -1:].expand(-1, self.execute, -1)], dim=1)


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
