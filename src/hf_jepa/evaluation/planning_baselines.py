"""What a planner has to beat: chance, imitation of the same data, an inverse model on the planner's own latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.trajectories import Trajectories

Encode = Callable[[np.ndarray], Tensor]


class RandomPolicy:
    """Uniform actions between `low` and `high`, `(action_dim,)` each; an episode's own number seeds its draws."""

    def __init__(self, low: Sequence[float], high: Sequence[float], seed: int = 0) -> None:
        self.low, self.high, self.seed = np.asarray(low, np.float32), np.asarray(high, np.float32), seed

    def reset(self, goals: np.ndarray, numbers: Sequence[int] | None = None) -> None:
        numbers = range(len(goals)) if numbers is None else numbers
        self._draws = [np.random.default_rng((self.seed, number)) for number in numbers]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([draws.uniform(self.low, self.high) for draws in self._draws]).astype(np.float32)


class GoalConditionedPolicy:
    """
    Does at once what a network says leads from one frame to another.

    Args:
        encode (`Callable`): From `(n, height, width, channels)` frames to `(n, width)` features.
        head (`nn.Module`): From two features side by side to a normalised action.
        mean, std, low, high (sequence of `float`): Of actions, in the environment's units.
    """

    def __init__(
        self,
        encode: Encode,
        head: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
    ) -> None:
        self.encode, self.head = encode, head
        self.mean, self.std, self.low, self.high = (np.asarray(each, np.float32) for each in (mean, std, low, high))

    @torch.no_grad()
    def reset(self, goals: np.ndarray, numbers: Sequence[int] | None = None) -> None:
        self._goals = self.encode(goals)

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        action = self.head(torch.cat([self.encode(frames), self._goals], dim=1)).cpu().numpy()
        return np.clip(action * self.std + self.mean, self.low, self.high)


def goal_head(width: int, action_dim: int, hidden_size: int = 512) -> nn.Sequential:
    """A network from the features of two frames to an action: three linear layers with GELU."""
    return nn.Sequential(
        nn.Linear(2 * width, hidden_size),
        nn.GELU(),
        nn.Linear(hidden_size, hidden_size),
        nn.GELU(),
        nn.Linear(hidden_size, action_dim),
    )


def train_goal_head(
    features: Sequence[Tensor],
    trajectories: Trajectories,
    episodes: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    num_steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> nn.Sequential:
    """
    GC-IDM (arXiv:2605.08732): learns the action from the frozen latents of a frame and of a later one of its episode,
    any number of steps later, with mean squared error. Imitation in the planner's own latent space.

    Args:
        features (sequence of `(rows, width)` tensors): Of each of `episodes`, as the frozen encoder gives them.
        trajectories ([`Trajectories`]): Whose actions are learned.
        episodes (sequence of `int`): Training episodes.
        mean, std (sequence of `float`): Of actions.
        num_steps, batch_size (`int`), learning_rate (`float`): AdamW with cosine decay.
        seed (`int`): Of weights and draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = goal_head(features[0].shape[-1], len(mean)).to(features[0].device)
    sampler = _HindsightSampler(trajectories, episodes, mean, std, seed)
    stacked, starts = torch.cat(list(features)), np.concatenate([[0], np.cumsum([len(each) for each in features])])

    def loss(batch: _Pairs) -> Tensor:
        now, later = stacked[starts[batch.episode] + batch.now], stacked[starts[batch.episode] + batch.later]
        return F.mse_loss(head(torch.cat([now, later], dim=1)), batch.actions.to(stacked.device))

    _fit(head, loss, sampler, num_steps, batch_size, learning_rate)
    return head


def train_goal_conditioned_cloning(
    encoder: nn.Module,
    to_pixels: Callable[[np.ndarray], Tensor],
    trajectories: Trajectories,
    episodes: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    num_steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> nn.Sequential:
    """
    Goal-conditioned behaviour cloning from pixels, with goals in hindsight: any later frame of the same episode.

    Args:
        encoder (`nn.Module`): Trained along, from `(n, channels, height, width)` to `(n, width)`.
        to_pixels (`Callable`): From `(n, height, width, channels)` uint8 frames to the encoder's input.
        trajectories, episodes, mean, std, num_steps, batch_size, learning_rate, seed: As in [`train_goal_head`].

    Returns:
        `nn.Sequential`: The head; `encoder` is trained in place.
    """
    with torch.no_grad():
        width = encoder(to_pixels(trajectories.frames(int(episodes[0]), np.array([0])))).shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = goal_head(width, len(mean))
    sampler = _HindsightSampler(trajectories, episodes, mean, std, seed)

    def loss(batch: _Pairs) -> Tensor:
        rows = np.stack([batch.now, batch.later], axis=1)
        frames = [trajectories.frames(int(episodes[e]), pair) for e, pair in zip(batch.episode, rows, strict=True)]
        features = encoder(to_pixels(np.concatenate(frames)))
        return F.mse_loss(head(features.view(len(rows), -1)), batch.actions.to(features.device))

    _fit(nn.ModuleList([encoder, head]), loss, sampler, num_steps, batch_size, learning_rate)
    return head


class _Pairs:
    """A batch of frames `now` and `later` in the `episode`-th training episode, and the action taken now."""

    def __init__(self, episode: np.ndarray, now: np.ndarray, later: np.ndarray, actions: Tensor) -> None:
        self.episode, self.now, self.later, self.actions = episode, now, later, actions


class _HindsightSampler:
    def __init__(
        self,
        trajectories: Trajectories,
        episodes: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
    ) -> None:
        self.generator = np.random.default_rng(seed)
        parts = [trajectories.actions(int(episode)) for episode in episodes]
        self.actions = ((np.concatenate(parts) - np.asarray(mean)) / np.asarray(std)).astype(np.float32)
        self.owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.row = np.concatenate([np.arange(len(part)) for part in parts])
        self.left = np.concatenate([len(part) - 1 - np.arange(len(part)) for part in parts])
        # An action has a goal if a frame follows it.
        self.usable = np.flatnonzero(np.isfinite(self.actions).all(axis=1) & (self.left > 0))
        if not len(self.usable):
            raise ValueError("No action is followed by a frame: there is nothing to imitate.")

    def draw(self, batch_size: int) -> _Pairs:
        chosen = self.generator.choice(self.usable, batch_size)
        now = self.row[chosen]
        later = now + self.generator.integers(1, self.left[chosen] + 1)
        return _Pairs(self.owner[chosen], now, later, torch.from_numpy(self.actions[chosen]))


def _fit(
    module: nn.Module,
    loss: Callable[[_Pairs], Tensor],
    sampler: _HindsightSampler,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(sampler.draw(batch_size)).backward()
        optimizer.step()
        schedule.step()
    module.eval()
