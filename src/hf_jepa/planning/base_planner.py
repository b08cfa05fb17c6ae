from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..objectives.inputs import check_tensor
from ..world_model import Goal, Norm, Over
from .actions import ActionSpace, PerDimension
from .noise import Generators, draw_noise, episode_generators

if TYPE_CHECKING:
    from ..world_model import WorldModelMixin


@dataclass
class PlanTrace:
    """
    What a search went through, one entry per iteration. Actions are in the model's units.

    Attributes:
        candidates (list of `(batch, samples, horizon, action_dim)` float32): What the model was asked about.
        costs (list of `(batch, samples)` float32): Their costs.
        elites (list of `(batch, elites)` int64): Indices of the cheapest, best first. Gradient descent has none.
        means (list of `(batch, horizon, action_dim)` float32): The proposals' mean after the iteration.
        stds (list of `(batch, horizon, action_dim)` float32): Their standard deviation after it.
        weights (list of `(batch, elites)` float32): What MPPI weighs the elites by.
        best (`(batch, kept, horizon, action_dim)` float32, *optional*): The cheapest plans, in the environment's
            units, that a planner with `keep_elites` wants to be given as `kept` next time.
    """

    candidates: list[Tensor] = field(default_factory=list)
    costs: list[Tensor] = field(default_factory=list)
    elites: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    stds: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    best: Tensor | None = None

    @classmethod
    def joined(cls, traces: Sequence[PlanTrace]) -> PlanTrace:
        """One trace of several batches of episodes."""
        steps = {
            name: [torch.cat(parts) for parts in zip(*(getattr(trace, name) for trace in traces), strict=True)]
            for name in ("candidates", "costs", "elites", "means", "stds", "weights")
        }
        kept = [trace.best for trace in traces if trace.best is not None]
        return cls(**steps, best=torch.cat(kept) if kept else None)


@dataclass
class Problem:
    """One search, in the model's units: where to start, what to draw, what candidates cost."""

    space: ActionSpace
    start: Tensor
    kept: Tensor | None
    evaluate: Callable[[Tensor], Tensor]
    draw: Callable[[int], Tensor]


@dataclass(kw_only=True)
class Planner(ABC):
    """
    Searches action sequences whose imagined latents come close to a goal, for a batch of episodes, on the device of
    the latents. The candidates of an episode are rolled out together.

    Args:
        horizon (`int`): Steps of the model ahead.
        num_samples (`int`): Candidates per episode and iteration.
        num_iterations (`int`): How often candidates are drawn, or gradient steps.
        norm (`str`): `"l1"` or `"l2"` distance, as in `model.cost`.
        over (`str`): The distance of the `"last"` imagined latent, or the mean over the `"path"`.
        limit (`float` or one per dimension, *optional*): Largest absolute value of an action, in the environment's
            units, besides the bounds in the checkpoint.
        max_norm (`float`, *optional*): Largest Euclidean norm of one action of the environment, in its units: longer
            ones are shortened in their direction (EB-JEPA's planners, arXiv:2602.03604).
        initial_std (`float` or one per dimension): Spread of the first proposals, in the model's units.
        correlation (`float`): Of the proposals' noise from one step to the next, in [0, 1). White noise (0) wanders
            about its start; long horizons need 0.9 or so to get anywhere (as the coloured noise of iCEM,
            arXiv:2008.06389, for which this is a first-order autoregression).
        max_rollouts (`int`, *optional*): Most candidates in one call of the model. By default an episode's plan is
            searched by itself, `num_samples` candidates a call, and is the same, bit for bit, in every batch. Fewer
            save memory; more let episodes share calls, which is faster where single ones leave a device idle, and
            plans then depend on the batch by rounding.
    """

    horizon: int
    num_samples: int
    num_iterations: int
    norm: Norm = "l2"
    over: Over = "last"
    limit: PerDimension | None = None
    max_norm: float | None = None
    initial_std: PerDimension = 1.0
    correlation: float = 0.0
    max_rollouts: int | None = None

    def __post_init__(self) -> None:
        for name in ("horizon", "num_samples", "num_iterations"):
            if not isinstance(getattr(self, name), Integral) or getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a whole number, at least 1, got {getattr(self, name)}.")
        if self.max_rollouts is not None and self.max_rollouts < 1:
            raise ValueError(f"`max_rollouts` must be at least 1, got {self.max_rollouts}.")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"`max_norm` must be positive, got {self.max_norm}.")
        if not all(0 <= value < float("inf") for value in torch.as_tensor(self.initial_std).flatten().tolist()):
            raise ValueError(f"`initial_std` must hold finite numbers, none below 0, got {self.initial_std}.")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"`correlation` must be in [0, 1), got {self.correlation}.")

    @property
    def num_draws(self) -> int:
        """Iterations that draw noise."""
        return self.num_iterations

    @abstractmethod
    def search(self, problem: Problem, trace: PlanTrace) -> Tensor:
        """The plan found, `(batch, horizon, action_dim)` in the model's units."""

    def plan(
        self,
        model: WorldModelMixin,
        latents: Tensor,
        goal: Goal,
        generator: Generators = None,
        noise: Tensor | None = None,
        return_trace: bool = False,
        *,
        start: Tensor | None = None,
        kept: Tensor | None = None,
        states: Tensor | None = None,
        extrinsics: Tensor | None = None,
        past_actions: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, PlanTrace]:
        """
        Plans from where each episode is to where it should be.

        Args:
            model ([`WorldModelMixin`]): In evaluation mode, its action statistics in its config.
            latents (`(batch, context, tokens, width)`): Of `model.encode`, the last one now.
            goal (`(batch, tokens, width)`, images `(batch, channels, height, width)`, clips `(batch, time, channels,
                height, width)` or a callable): Images and clips are encoded, clips by their last frame; a callable
                turns imagined latents `(rollouts, horizon, tokens, width)` into costs `(rollouts,)`.
            generator (`torch.Generator` or one per episode, *optional*): One per episode makes a plan independent of
                the batch it is computed in; a single one seeds one per episode.
            noise (`(num_draws, batch, num_samples, horizon, action_dim)`, *optional*): Every draw, made explicit;
                `correlation` is not applied to it.
            return_trace (`bool`): Return a [`PlanTrace`] too.
            start (`(batch, up to horizon, action_dim)`, *optional*): Actions in the environment's units that the
                proposals start from; what is missing is the mean action.
            kept (`(batch, kept, horizon, action_dim)`, *optional*): Candidates to be tried along, in the environment's
                units.
            states (`(batch, known, state_dim)`, *optional*): As `model.rollout` takes them.
            extrinsics (`(batch, known, extrinsics_dim)`, *optional*): Likewise.
            past_actions (`(batch, context - 1, action_dim)`, *optional*): Between the context frames, in the
                environment's units.

        Returns:
            `(batch, horizon, action_dim)` float32: actions in the environment's units, inside its bounds.

        Raises:
            ValueError: If the model lacks its statistics or is in training mode, or an argument does not fit.
            TypeError: For arrays and lists in place of tensors.
        """
        if model.training:
            raise ValueError("The model is in training mode, where dropout and batch norms change plans: `eval()` it.")
        check_tensor(latents, "latents")
        if latents.ndim != 4 or not latents.shape[0]:
            raise ValueError(f"`latents` must be (batch, context, tokens, width), got shape {tuple(latents.shape)}.")
        space = ActionSpace.of(model, self.limit, latents.device, self.max_norm)
        batch = latents.shape[0]
        if not callable(goal):
            check_tensor(goal, "goal")
            if goal.ndim in (4, 5):
                with torch.no_grad():
                    goal = torch.cat([model.encode_goal(each) for each in goal.split(1)])
            if goal.ndim != 3 or len(goal) != batch:
                raise ValueError(f"{batch} episodes need a goal each, got shape {tuple(goal.shape)}.")
            if not torch.isfinite(goal).all():
                raise ValueError("`goal` holds NaN or infinite values.")
        if past_actions is not None:
            past_actions = model.normalize_actions(past_actions)
        conditions = {"states": states, "extrinsics": extrinsics, "past_actions": past_actions}
        conditions = {name: value for name, value in conditions.items() if value is not None}

        start = self._start(start, space, latents)
        if kept is not None:
            kept = model.normalize_actions(self._checked("kept", kept, batch, space))
        draws = self._draws(generator, noise, batch, space)
        # A callable looks at all paths at once.
        together = batch if callable(goal) else max(1, (self.max_rollouts or 0) // self.num_samples)
        found, traces = [], []
        for rows in torch.arange(batch, device=latents.device).split(together):
            given = {name: value[rows] for name, value in conditions.items()}
            aim = goal if callable(goal) else goal[rows]
            problem = Problem(
                space=space,
                start=start[rows],
                kept=None if kept is None else kept[rows],
                evaluate=partial(self._evaluate, model, latents[rows], aim, given),
                draw=partial(draws, rows.tolist()),
            )
            trace = PlanTrace()
            with torch.no_grad():
                found.append(space.to_environment(self.search(problem, trace)))
            traces.append(trace)
        actions = torch.cat(found)
        return (actions, PlanTrace.joined(traces)) if return_trace else actions

    def _evaluate(
        self, model: WorldModelMixin, latents: Tensor, goal: Goal, conditions: dict[str, Tensor], candidates: Tensor
    ) -> Tensor:
        """What candidates `(episodes, samples, horizon, action_dim)` cost: `(episodes, samples)`."""
        episodes, samples = candidates.shape[:2]
        most = self.max_rollouts or samples
        whole = callable(goal) and self.max_rollouts is None
        parts = []
        for rows in torch.arange(episodes, device=latents.device).split(max(1, most // samples)):
            given = {name: value[rows] for name, value in conditions.items()}
            aim = goal if callable(goal) else goal[rows]
            for part in candidates[rows].split(most, dim=1):
                path = model.rollout(latents[rows], part.flatten(0, 1), **given)
                parts.append(path if whole else model.cost(path, aim, norm=self.norm, over=self.over))
        costs = model.cost(torch.cat(parts), goal) if whole else torch.cat(parts)
        # A rollout that overflows is a bad plan, not a reason to return NaN.
        return costs.view(episodes, samples).nan_to_num(nan=float("inf"))

    def _start(self, start: Tensor | None, space: ActionSpace, latents: Tensor) -> Tensor:
        full = latents.new_zeros(latents.shape[0], self.horizon, space.width, dtype=torch.float32)
        if start is not None:
            start = space.model.normalize_actions(self._checked("start", start, latents.shape[0], space))
            full[:, : start.shape[1]] = start
        return space.clip(full)

    def _checked(self, name: str, actions: Tensor, batch: int, space: ActionSpace) -> Tensor:
        check_tensor(actions, name)
        if actions.shape[0] != batch or not 0 < actions.shape[-2] <= self.horizon or actions.shape[-1] != space.width:
            raise ValueError(
                f"`{name}` must hold plans of {batch} episodes, at most {self.horizon} steps of width {space.width}, "
                f"got shape {tuple(actions.shape)}."
            )
        if not torch.isfinite(actions).all():
            raise ValueError(f"`{name}` holds NaN or infinite values.")
        return actions

    def _draws(
        self, generator: Generators, noise: Tensor | None, batch: int, space: ActionSpace
    ) -> Callable[[list[int], int], Tensor]:
        """Noise of an iteration, for the episodes that are asked for."""
        shape = (self.num_samples, self.horizon, space.width)
        if noise is not None:
            if noise.shape != (self.num_draws, batch, *shape):
                raise ValueError(f"`noise` must be {(self.num_draws, batch, *shape)}, got {tuple(noise.shape)}.")
            return lambda rows, iteration: noise[iteration, rows].to(space.low)
        generators = episode_generators(generator, batch, space.low.device)
        device = space.low.device
        return lambda rows, iteration: draw_noise([generators[row] for row in rows], *shape, self.correlation, device)
