"""Sums of loss terms, gathered on the device, that the metrics of all trainers are made of."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from ..objectives.distributed import batch_sizes, gather_batch, world_size

# The most recent pairs of all processes, on which cosines, retrieval and ranks are computed.
RECENT_ROWS = 256


class RunningTerms:
    """
    Sums of the loss terms of micro-batches and the first update whose loss was not finite, as detached tensors on the
    device: no update waits for it. The base of the trainers' metrics.
    """

    def __init__(self) -> None:
        self._first_bad: torch.Tensor | None = None
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._micro_batches = 0
        self._steps: set[int] = set()
        self._recent: list[tuple[torch.Tensor, ...]] = []
        self._since, self._paused = time.perf_counter(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the block (evaluation, saving) out of the throughput."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def _seconds(self) -> float:
        """Seconds of training since the last reset."""
        return max(time.perf_counter() - self._since - self._paused, 1e-9)

    def add(self, terms: dict[str, torch.Tensor], loss: torch.Tensor, step: int) -> None:
        """
        Adds the loss of a micro-batch.

        Args:
            terms (`dict[str, torch.Tensor]`): what it is made of, scalars by name.
            loss (`torch.FloatTensor` of shape `()`).
            step (`int`): 0-based index of the optimizer update.
        """
        for name, value in terms.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        loss = loss.detach()
        if self._first_bad is None:
            self._first_bad = torch.full((), torch.inf, device=loss.device)
        bad = torch.minimum(self._first_bad, torch.full_like(self._first_bad, float(step)))
        self._first_bad = torch.where(torch.isfinite(loss), self._first_bad, bad)
        self._micro_batches += 1
        self._steps.add(step)

    def _keep_recent(self, *parts: torch.Tensor) -> None:
        """Keeps rows, letting the oldest micro-batch go once the others suffice."""
        self._recent.append(parts)
        while sum(len(part[0]) for part in self._recent[1:]) >= RECENT_ROWS:
            self._recent.pop(0)

    def _recent_rows(self, *empty: tuple[int, ...]) -> list[torch.Tensor]:
        """
        The recent rows of all processes, so that each of them finds the same, and as many as one process would look
        at. Every process has to call this; `empty` are the shapes of a row of each part for one that may have none.
        """
        share = max(RECENT_ROWS // world_size(), 1)
        rows = [torch.cat(part)[-share:] for part in zip(*self._recent, strict=True)]
        rows = rows or [self._first_bad.new_zeros(0, *shape) for shape in empty]
        sizes = batch_sizes(len(rows[0]))
        return [gather_batch(part, sizes=sizes) for part in rows]

    def first_non_finite_step(self, accelerator: Accelerator) -> int | None:
        """0-based index of the first update whose loss was NaN or infinite in any process, or None. Synchronises."""
        if self._first_bad is None:
            return None
        return _as_step(accelerator.gather(self._first_bad[None]).min().item())


@torch.no_grad()
def has_finite_weights(model: torch.nn.Module) -> bool:
    """Whether all trained weights are finite: a last update may spoil them after a loss that was. Synchronises."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return all(torch.stack([torch.isfinite(parameter).all() for parameter in trained]).tolist()) if trained else True


def non_finite_entry(first_bad: torch.Tensor) -> dict[str, int]:
    """`non_finite_step` as a log has it: of a column over processes, and only if there was one."""
    step = _as_step(first_bad.min().item())
    return {} if step is None else {"non_finite_step": step}


def _as_step(first_bad: float) -> int | None:
    return None if first_bad == float("inf") else int(first_bad)
