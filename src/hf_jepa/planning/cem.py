from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .actions import PerDimension
from .base_planner import Planner, PlanTrace, Problem


@dataclass(kw_only=True)
class CEMPlanner(Planner):
    """
    Cross-entropy method: draw plans, keep the cheapest, draw again around them.

    [`~CEMPlanner.vjepa2_ac`] and [`~CEMPlanner.lewm`] are the two published planners. `correlation`, `keep_elites` and
    `result="best"` together are iCEM (arXiv:2008.06389).

    Args:
        num_elites (`int`): The cheapest, which the next proposals are fitted to.
        mean_momentum, std_momentum (`float` or one per dimension): Share of the old mean and standard deviation that
            stays.
        std_floor (`float`): Least standard deviation of the proposals, in the model's units.
        try_mean (`bool`): The first candidate is the proposals' mean itself.
        keep_elites (`int`): So many of the cheapest plans are tried again in the next iteration and, through
            [`MPCPolicy`], shifted, in the next search.
        result (`str`): The proposals' final `"mean"`, or the `"best"` plan that was tried.
        dead_zone (`float` or one per dimension): Actions below this are returned as zero, both in the model's units
            (V-JEPA 2-AC's gripper).
        close_gripper (`int`, *optional*): From this step of the plan on, the last dimension of every candidate is 1.
    """

    num_samples: int = 300
    num_iterations: int = 30
    num_elites: int = 30
    mean_momentum: PerDimension = 0.0
    std_momentum: PerDimension = 0.0
    std_floor: float = 0.0
    try_mean: bool = False
    keep_elites: int = 0
    result: Literal["mean", "best"] = "mean"
    dead_zone: PerDimension = 0.0
    close_gripper: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_elites <= self.num_samples:
            raise ValueError(
                f"`num_elites` must be between 1 and num_samples ({self.num_samples}), got {self.num_elites}."
            )
        if not 0 <= self.keep_elites <= min(self.num_elites, self.num_samples - self.try_mean):
            raise ValueError(f"`keep_elites` must be between 0 and num_elites, got {self.keep_elites}.")
        if self.result not in ("mean", "best"):
            raise ValueError(f'`result` is "mean" or "best", got {self.result!r}.')

    @classmethod
    def vjepa2_ac(cls, **changes: Any) -> CEMPlanner:
        """
        V-JEPA 2-AC's planner for a 7-d end effector (arXiv:2506.09985, section 3.2, and the released code): positions
        within 7.5 cm, rotations fixed, the gripper within 0.75 and returned as 0 below 0.25; `num_samples`,
        `num_iterations` and `horizon` as deployed.
        """
        most = 0.075
        settings: dict[str, Any] = {
            "horizon": 1,
            "num_samples": 800,
            "num_iterations": 10,
            "num_elites": 10,
            "norm": "l1",
            "limit": (most,) * 3 + (0.0,) * 3 + (0.75,),
            "initial_std": (most,) * 3 + (0.0,) * 3 + (1.0,),
            "mean_momentum": 0.15,
            "std_momentum": 0.15,
            "dead_zone": (0.0,) * 6 + (0.25,),
        }
        return cls(**{**settings, **changes})

    @classmethod
    def lewm(cls, **changes: Any) -> CEMPlanner:
        """LeWorldModel's planner (arXiv:2603.19312 and the released code): 300 plans, 30 times, 5 blocks ahead."""
        return cls(**{"horizon": 5, "try_mean": True, **changes})

    def search(self, problem: Problem, trace: PlanTrace) -> Tensor:
        space, mean = problem.space, problem.start
        std = space.spread(self.initial_std, "initial_std").expand_as(mean)
        stay_mean = space.spread(self.mean_momentum, "mean_momentum")
        stay_std = space.spread(self.std_momentum, "std_momentum")
        kept, best, lowest = problem.kept, mean, mean.new_full((len(mean),), float("inf"))
        for iteration in range(self.num_iterations):
            candidates = mean[:, None] + std[:, None] * problem.draw(iteration)
            if self.try_mean:
                candidates[:, 0] = mean
            if kept is not None:
                candidates[:, -kept.shape[1] :] = kept
            candidates = space.clip(candidates)
            if self.close_gripper is not None:
                candidates[:, :, self.close_gripper :, -1] = 1.0
            costs = problem.evaluate(candidates)
            elite_costs, indices = costs.topk(self.num_elites, largest=False)
            elites = candidates.gather(1, indices[:, :, None, None].expand(-1, -1, *candidates.shape[2:]))
            # The unbiased deviation of a single elite would be NaN.
            spread = elites.std(dim=1) if self.num_elites > 1 else torch.zeros_like(mean)
            mean = elites.mean(dim=1) * (1 - stay_mean) + mean * stay_mean
            std = (spread * (1 - stay_std) + std * stay_std).clamp_min(self.std_floor)
            better = elite_costs[:, 0] < lowest
            best = torch.where(better[:, None, None], elites[:, 0], best)
            lowest = torch.where(better, elite_costs[:, 0], lowest)
            kept = elites[:, : self.keep_elites] if self.keep_elites else None
            trace.candidates.append(candidates)
            trace.costs.append(costs)
            trace.elites.append(indices)
            trace.means.append(mean)
            trace.stds.append(std)
        if kept is not None:
            trace.best = space.to_environment(kept)
        actions = best if self.result == "best" else mean
        return torch.where(actions.abs() < space.spread(self.dead_zone, "dead_zone"), 0.0, actions)
