from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..world_model import WorldModelMixin

PerDimension = float | Sequence[float]


@dataclass(frozen=True)
class ActionSpace:
    """
    A model's actions: searched in its own units, given and taken in the environment's.

    Attributes:
        model ([`WorldModelMixin`]): Whose statistics these are.
        raw_low, raw_high (`(action_dim,)` float32): The checkpoint's bounds in the environment's units, infinite where
            it has none.
        low, high (`(action_dim,)` float32): Bounds of the search, in the model's units.
        max_norm (`float`, *optional*): Longest action of the environment, in its units.
    """

    model: WorldModelMixin
    raw_low: Tensor
    raw_high: Tensor
    low: Tensor
    high: Tensor
    max_norm: float | None = None

    @classmethod
    def of(
        cls, model: WorldModelMixin, limit: PerDimension | None, device: torch.device, max_norm: float | None = None
    ) -> ActionSpace:
        """
        The bounds in the checkpoint, narrowed by `limit`: the largest absolute value of each of the environment's
        actions, in its units, and by `max_norm`, the largest Euclidean norm of one of them.

        Raises:
            ValueError: If the checkpoint has no statistics.
        """
        model.require_statistics()
        config = model.config
        high = torch.full((config.raw_action_dim,), float("inf"), device=device)
        low = -high
        if config.action_low is not None:
            low, high = high.new_tensor(config.action_low), high.new_tensor(config.action_high)
        raw_low, raw_high = low.repeat(config.frameskip), high.repeat(config.frameskip)
        if limit is not None:
            most = torch.as_tensor(limit, dtype=high.dtype, device=device)
            if most.shape not in ((), high.shape) or (most < 0).any():
                raise ValueError(f"`limit` must be one number or {len(high)}, none below 0, got {limit}.")
            low, high = torch.maximum(low, -most), torch.minimum(high, most)
        low, high = model.normalize_actions(low), model.normalize_actions(high)
        return cls(model, raw_low, raw_high, low.repeat(config.frameskip), high.repeat(config.frameskip), max_norm)

    @property
    def width(self) -> int:
        """`action_dim` of the model: one block of `frameskip` actions."""
        return self.model.config.action_dim

    def spread(self, value: PerDimension, name: str) -> Tensor:
        """`value`, one number or one per action of the environment, for each entry of a block."""
        tensor = torch.as_tensor(value, dtype=self.low.dtype, device=self.low.device)
        raw = self.model.config.raw_action_dim
        if tensor.shape not in ((), (raw,)):
            raise ValueError(f"`{name}` must be one number or {raw}, got {value}.")
        return tensor.expand(raw).repeat(self.model.config.frameskip)

    def clip(self, actions: Tensor) -> Tensor:
        """
        Actions in the model's units, inside the bounds. Actions beyond `max_norm` become shorter in their direction
        first, so that bounds about zero cannot lengthen them again.
        """
        if self.max_norm is not None:
            raw = self.model.denormalize_actions(actions).unflatten(-1, (-1, self.model.config.raw_action_dim))
            norm = torch.linalg.vector_norm(raw, dim=-1, keepdim=True)
            shorter = self.model.normalize_actions((raw * (self.max_norm / norm)).flatten(-2))
            actions = torch.where((norm > self.max_norm).expand_as(raw).flatten(-2), shorter, actions)
        return torch.minimum(torch.maximum(actions, self.low), self.high)

    def to_environment(self, actions: Tensor) -> Tensor:
        """Actions in the environment's units, inside the bounds to the last bit."""
        return torch.minimum(torch.maximum(self.model.denormalize_actions(actions), self.raw_low), self.raw_high)
