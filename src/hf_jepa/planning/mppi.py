from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .base_planner import Planner, PlanTrace, Problem


@dataclass(kw_only=True)
class MPPIPlanner(Planner):
    """
    Model predictive path integral control (arXiv:1707.02342): proposals move to the average of the cheapest plans,
    each weighted by `exp(-cost / temperature)`.

    Args:
        num_elites (`int`): The cheapest, over which weights are spread.
        temperature (`float`): In units of the cost: below the differences between elites the best one decides, far
            above them all count alike.
        std_floor (`float`): Least standard deviation of the proposals, in the model's units.
        result (`str`): The proposals' final weighted `"mean"`, or the `"best"` plan that was tried.
    """

    num_samples: int = 200
    num_iterations: int = 20
    num_elites: int = 20
    temperature: float = 0.5
    std_floor: float = 0.0
    result: Literal["mean", "best"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_elites <= self.num_samples:
            raise ValueError(
                f"`num_elites` must be between 1 and num_samples ({self.num_samples}), got {self.num_elites}."
            )
        if not self.temperature > 0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")
        if self.result not in ("mean", "best"):
            raise ValueError(f'`result` is "mean" or "best", got {self.result!r}.')

    def search(self, problem: Problem, trace: PlanTrace) -> Tensor:
        space, mean = problem.space, problem.start
        std = space.spread(self.initial_std, "initial_std").expand_as(mean)
        best, lowest = mean, mean.new_full((len(mean),), float("inf"))
        for iteration in range(self.num_iterations):
            candidates = space.clip(mean[:, None] + std[:, None] * problem.draw(iteration))
            costs = problem.evaluate(candidates)
            elite_costs, indices = costs.topk(self.num_elites, largest=False)
            elites = candidates.gather(1, indices[:, :, None, None].expand(-1, -1, *candidates.shape[2:]))
            # Plans without a finite cost weigh nothing, and all alike where none has one.
            excess = (elite_costs - elite_costs[:, :1]).nan_to_num(nan=0.0)
            weights = torch.softmax(-excess / self.temperature, dim=1)
            share = weights[:, :, None, None]
            mean = (share * elites).sum(dim=1)
            variance = (share * (elites - mean[:, None]).square()).sum(dim=1)
            std = variance.sqrt().clamp_min(self.std_floor)
            better = elite_costs[:, 0] < lowest
            best = torch.where(better[:, None, None], elites[:, 0], best)
            lowest = torch.where(better, elite_costs[:, 0], lowest)
            trace.candidates.append(candidates)
            trace.costs.append(costs)
            trace.elites.append(indices)
            trace.means.append(mean)
            trace.stds.append(std)
            trace.weights.append(weights)
        return best if self.result == "best" else mean
