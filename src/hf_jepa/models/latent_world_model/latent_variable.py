"""
What the action does not decide: a latent variable beside it, told from a transition, and limited so that it cannot
carry the next frame (A Path Towards Autonomous Machine Intelligence, section 4.4; the survey's section 1.6.1).
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ...objectives.distributed import all_reduce_sum, gather_batch, world_size
from ...objectives.step import CounterBasedRandom
from ...objectives.vicreg import variance_covariance
from .configuration_latent_world_model import LatentWorldModelConfig
from .objective_latent_world_model import InverseModel

_USAGE_DECAY = 0.99
# A code that wins less than this share of what it would get if all were alike is dead.
_DEAD_SHARE = 0.1
_RESEED_SCALE = 0.1


class LatentCodes(CounterBasedRandom):
    """
    A discrete latent variable: one of K learned codes, the one with the least prediction error (a true minimum, by
    hard EM). Against a code that wins everything: a soft assignment whose temperature falls to zero, a penalty on
    unequal use, and codes that never win moved beside the one that wins most.

    Args:
        num_codes (`int`), size (`int`): K and the width of a code.
        annealing_steps (`int`): training steps until the assignment is hard.
    """

    def __init__(self, num_codes: int, size: int, annealing_steps: int):
        super().__init__()
        self.annealing_steps = annealing_steps
        self.codes = nn.Parameter(torch.randn(num_codes, size))
        self.register_buffer("usage", torch.full((num_codes,), 1 / num_codes))

    @torch.no_grad()
    def start_step(self) -> int:
        """The step to assign codes for; in training, dead codes are moved before anything reads them."""
        step = self._next_step()
        if not self.training:
            return step
        count = len(self.codes)
        dead = self.usage < _DEAD_SHARE / count
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(self.codes.shape, generator=generator).to(self.codes) * _RESEED_SCALE
        moved = self.codes[self.usage.argmax()] + noise
        self.codes.copy_(torch.where(dead[:, None], moved, self.codes))
        self.usage.copy_(torch.where(dead, 1 / count, self.usage))
        return step

    def assign(self, errors: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            errors (`torch.Tensor` of shape `(codes, ...)`): what every code's prediction costs.
            step (`int`): of [`start_step`].

        Returns:
            The weight of every code, of the same shape, without gradient, and the penalty on unequal use, the
            Kullback-Leibler divergence of the batch's mean assignment from the uniform one, a scalar.
        """
        count = len(errors)
        # Temperatures are in units of the mean error, which falls during training.
        mean = all_reduce_sum(errors.detach().mean()) / world_size()
        scaled = -errors / mean.clamp(min=torch.finfo(errors.dtype).tiny)
        usage = scaled.softmax(dim=0).flatten(1).mean(dim=1)
        usage = all_reduce_sum(usage) / world_size()
        balance = math.log(count) + (usage * usage.clamp(min=1e-12).log()).sum()
        hard = F.one_hot(errors.detach().argmin(dim=0), count).movedim(-1, 0).to(errors.dtype)
        if self.training:
            wins = all_reduce_sum(hard.flatten(1).mean(dim=1)) / world_size()
            self.usage.lerp_(wins.to(self.usage.dtype), 1 - _USAGE_DECAY)
        temperature = 1 - step / self.annealing_steps if step < self.annealing_steps else 0.0
        weights = (scaled.detach() / temperature).softmax(dim=0) if temperature else hard
        return weights, balance


class InferredVariable(CounterBasedRandom):
    """
    A continuous latent variable, told from a transition by an inverse model (Garrido et al., arXiv 2601.05230).

    `sparse`: penalised by its mean absolute value and kept from shrinking by VICReg's variance and covariance terms
    and its squared mean. `noisy`: a Gaussian around the inverse model's answer, penalised by the Kullback-Leibler
    divergence from the standard normal; its draws are seeded by the training step.

    The inverse model reads latents without gradient: the need of the variable must not shape what it is told from.
    """

    def __init__(self, width: int, hidden_size: int, size: int, noisy: bool):
        super().__init__()
        self.noisy = noisy
        self.inverse = InverseModel(width, hidden_size, 2 * size if noisy else size)

    def infer(self, latents: torch.Tensor, next_latents: torch.Tensor) -> torch.Tensor:
        """The most likely variable, `(batch, time, size)`, of transitions between `(batch, time, tokens, width)`."""
        answer = self.inverse(latents.detach(), next_latents.detach())
        return answer.chunk(2, dim=-1)[0] if self.noisy else answer

    def limit(self, z: torch.Tensor) -> torch.Tensor:
        """What the variable `(..., size)` itself is penalised by, of shape `(...)`."""
        return (0.5 * z.square() if self.noisy else z.abs()).mean(dim=-1)

    def draw(self, latents: torch.Tensor, next_latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The variable to train with, and its penalty, a scalar."""
        answer = self.inverse(latents.detach(), next_latents.detach()).float()
        if not self.noisy:
            joint = gather_batch(answer.flatten(0, 1))
            std, cov = (term[0] for term in variance_covariance(joint[None]))
            return answer, self.limit(answer).mean() + std + cov + joint.mean(dim=0).square().mean()
        mean, log_variance = answer.chunk(2, dim=-1)
        step = self._next_step()
        penalty = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        if not self.training:
            return mean, penalty
        generator, rank = torch.Generator().manual_seed(step), dist.get_rank() if world_size() > 1 else 0
        # Every rank draws for all, and takes its rows: as many processes as one likes see the same noise.
        noise = torch.randn(world_size(), *mean.shape, generator=generator)[rank].to(mean, non_blocking=True)
        return mean + noise * (0.5 * log_variance).exp(), penalty


def build_latent_variable(config: LatentWorldModelConfig, width: int) -> LatentCodes | InferredVariable | None:
    """The module of a config, for latents of this width."""
    if config.latent_variable == "none":
        return None
    if config.latent_variable == "discrete":
        return LatentCodes(config.num_codes, config.latent_variable_size, config.code_annealing_steps)
    size, noisy = config.latent_variable_size, config.latent_variable == "noisy"
    return InferredVariable(width, config.inverse_hidden_size, size, noisy)
