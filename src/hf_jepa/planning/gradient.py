from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base_planner import Planner, PlanTrace, Problem


@dataclass(kw_only=True)
class GradientPlanner(Planner):
    """
    Descends the cost through the rollout from several starts with Adam, inside the bounds, and returns the cheapest
    plan seen.

    Args:
        num_samples (`int`): Starts: the given plan itself, and others around it.
        num_iterations (`int`): Gradient steps.
        learning_rate (`float`): Adam's, in the model's action units.
    """

    num_samples: int = 8
    num_iterations: int = 50
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}.")

    @property
    def num_draws(self) -> int:
        return 1

    def search(self, problem: Problem, trace: PlanTrace) -> Tensor:
        space, start = problem.space, problem.start
        std = space.spread(self.initial_std, "initial_std")
        actions = start[:, None] + std * problem.draw(0)
        actions[:, 0] = start
        actions = space.clip(actions).requires_grad_()
        optimizer = torch.optim.Adam([actions], lr=self.learning_rate)
        best, lowest = start, start.new_full((len(start),), float("inf"))
        for iteration in range(self.num_iterations + 1):
            with torch.enable_grad():
                costs = problem.evaluate(actions)
                total = costs.sum()
            tried = actions.detach().clone()
            cheapest, index = costs.detach().min(dim=1)
            plan = tried[torch.arange(len(tried), device=tried.device), index]
            better = cheapest < lowest
            best = torch.where(better[:, None, None], plan, best)
            lowest = torch.where(better, cheapest, lowest)
            trace.candidates.append(tried)
            trace.costs.append(costs.detach())
            trace.means.append(best)
            if iteration == self.num_iterations:
                break
            (gradient,) = torch.autograd.grad(total, actions)
            # A start whose rollout overflows must not stop the others.
            actions.grad = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            optimizer.step()
            actions.copy_(space.clip(actions))
        return best
