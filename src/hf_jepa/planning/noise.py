from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def episode_generators(generator: Generators, batch_size: int, device: torch.device) -> list[torch.Generator]:
    """
    One generator per episode, so that what an episode draws does not depend on the episodes beside it.

    Args:
        generator (`torch.Generator`, a sequence of them, or `None`): A sequence is taken as it is, one per episode.
            One generator (torch's default one for `None`) seeds them: its first draws seed the first episodes, for
            every `batch_size`.
        batch_size (`int`): Episodes.
        device (`torch.device`): Where seeded generators live.

    Raises:
        ValueError: If a sequence has another length than `batch_size`.
    """
    if isinstance(generator, Sequence):
        if len(generator) != batch_size:
            raise ValueError(f"{batch_size} episodes need as many generators, got {len(generator)}.")
        return list(generator)
    source = generator.device if generator is not None else "cpu"
    # One at a time: a filled tensor's entries may depend on its length.
    seeds = [int(torch.randint(2**62, (), generator=generator, device=source)) for _ in range(batch_size)]
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def correlation_factor(horizon: int, correlation: float, device: torch.device) -> Tensor:
    """
    `(horizon, horizon)` lower triangle that turns white noise over time into a stationary first-order autoregression
    of unit variance: `e_t = correlation * e_(t-1) + sqrt(1 - correlation^2) * white_t`.
    """
    steps = torch.arange(horizon, device=device)
    powers = (correlation ** (steps[:, None] - steps[None, :]).clamp_min(0)).tril()
    scale = torch.full((horizon,), (1 - correlation**2) ** 0.5, device=device)
    scale[0] = 1.0
    return powers * scale


def draw_noise(
    generators: Sequence[torch.Generator],
    num_samples: int,
    horizon: int,
    action_dim: int,
    correlation: float,
    device: torch.device,
) -> Tensor:
    """
    Standard normal `(episodes, num_samples, horizon, action_dim)` float32, correlated over time; each episode's from
    its own generator and by operations of its own size.
    """
    shape = (num_samples, horizon, action_dim)
    white = [torch.randn(shape, generator=each, device=each.device).to(device) for each in generators]
    if correlation:
        factor = correlation_factor(horizon, correlation, device)
        white = [torch.matmul(factor, each) for each in white]
    return torch.stack(white)
