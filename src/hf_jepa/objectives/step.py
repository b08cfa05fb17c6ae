"""Modules whose random draws follow from a step that is saved with them."""

import torch
from torch import nn


class CounterBasedRandom(nn.Module):
    """
    Counts training steps in the persistent buffer `global_step` (int64, shape `()`), which seeds what the module
    draws: the same on all ranks without communication, and continued by a resumed run.
    """

    global_step: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("global_step", torch.zeros((), dtype=torch.int64))
        self._known_step: tuple[torch.Tensor | None, int, int] = (None, -1, 0)

    def _next_step(self) -> int | torch.Tensor:
        """
        The step to draw for; advances in training mode only. In a compiled or exported graph it is a tensor: the count
        is data there, and what is drawn for it is drawn by an operator, which reads it.
        """
        if torch.compiler.is_compiling():
            step = self.global_step.clone()
            if self.training:
                self.global_step.add_(1)
            return step
        buffer, version, step = self._known_step
        # Reading a buffer makes an accelerator wait: only when somebody else replaced or wrote it (a checkpoint).
        if buffer is not self.global_step or version != self.global_step._version:
            step = int(self.global_step)
        if self.training:
            self.global_step.add_(1)
        self._known_step = self.global_step, self.global_step._version, step + int(self.training)
        return step
