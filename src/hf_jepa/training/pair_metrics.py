"""What an LLM-JEPA run logs about its steps, gathered on the device and read only when something is logged."""

import time
from typing import Any

import torch
from accelerate import Accelerator

from ..evaluation.pairs import pair_report


class PairMetrics:
    """
    Sums of the loss terms and the most recent pairs' embeddings, as detached tensors on the device: no update waits
    for it.

    Args:
        max_rows (`int`): pairs kept for cosines and ranks.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._first_bad: torch.Tensor | None = None
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: torch.Tensor | int = 0
        self._micro_batches = 0
        self._recent: list[tuple[torch.Tensor, ...]] = []
        self._since = time.perf_counter()

    @torch.no_grad()
    def update(self, outputs: Any, document: torch.Tensor, step: int) -> None:
        """
        Adds one micro-batch.

        Args:
            outputs ([`~hf_jepa.models.llm_jepa.LLMJepaOutput`]): what the model returned.
            document (`torch.LongTensor` of shape `(rows, length)`): of the batch; negative where nothing stands.
            step (`int`): 0-based index of the optimizer update.
        """
        for name, value in outputs.loss_components.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._tokens = self._tokens + (document >= 0).sum()
        self._micro_batches += 1
        if self._first_bad is None:
            self._first_bad = torch.full((), torch.inf, device=outputs.loss.device)
        here = torch.full_like(self._first_bad, float(step))
        bad = torch.minimum(self._first_bad, here)
        self._first_bad = torch.where(torch.isfinite(outputs.loss.detach()), self._first_bad, bad)
        if outputs.text_embeddings is not None and self.max_rows:
            triple = (outputs.text_embeddings, outputs.predicted_embeddings, outputs.code_embeddings)
            self._recent.append(tuple(part.detach().float() for part in triple))
            # The oldest micro-batch goes once the others suffice.
            while sum(len(part[0]) for part in self._recent[1:]) >= self.max_rows:
                self._recent.pop(0)

    def first_non_finite_step(self, accelerator: Accelerator) -> int | None:
        """0-based index of the first update whose loss was NaN or infinite in any process, or None. Synchronises."""
        if self._first_bad is None:
            return None
        first = accelerator.gather(self._first_bad[None]).min().item()
        return None if first == float("inf") else int(first)

    def drain(self, accelerator: Accelerator, num_steps: int, terms_are_shares: bool) -> dict[str, float]:
        """
        What was gathered since the last call, and a fresh start.

        Args:
            accelerator (`Accelerator`): gathers across processes; every process has to call this.
            num_steps (`int`): optimizer updates since the last call.
            terms_are_shares (`bool`): the terms of micro-batches and processes add up to an update's (`clean`), or are
                means of their own (`official`).

        Returns:
            `dict[str, float]`: the terms of the loss, `tokens_per_second` over all processes, what
            [`~hf_jepa.evaluation.pair_report`] says of this process's recent pairs and, if there was one,
            `non_finite_step`.
        """
        if not self._micro_batches or num_steps < 1:
            return {}
        seconds = max(time.perf_counter() - self._since, 1e-9)
        names = sorted(self._sums)
        row = torch.stack([*(self._sums[name] for name in names), self._tokens.float(), self._first_bad])[None]
        table = accelerator.gather(row).cpu()
        totals = table.sum(dim=0).tolist()
        parts = num_steps if terms_are_shares else self._micro_batches * len(table)
        result = {name: total / parts for name, total in zip(names, totals, strict=False)}
        result["tokens_per_second"] = round(totals[-2] / seconds, 1)
        first_bad = table[:, -1].min().item()
        if first_bad != float("inf"):
            result["non_finite_step"] = int(first_bad)
        result |= self._report()
        self._reset()
        return result

    def _report(self) -> dict[str, float]:
        if not self._recent:
            return {}
        parts = [torch.cat(part)[-self.max_rows :] for part in zip(*self._recent, strict=True)]
        if len(parts[0]) < 2 or not all(torch.isfinite(part).all() for part in parts):
            return {}
        return pair_report(*parts)
