"""What an LLM-JEPA run logs about its steps, gathered on the device and read only when something is logged."""

from typing import Any

import torch
from accelerate import Accelerator

from ...evaluation.pairs import pair_report
from ...objectives.distributed import batch_sizes
from ..base_metrics import RunningTerms, non_finite_entry


class PairMetrics(RunningTerms):
    """
    Sums of the loss terms and the most recent pairs' embeddings, as detached tensors on the device: no update waits
    for it.
    """

    def _reset(self) -> None:
        super()._reset()
        self._tokens: torch.Tensor | int = 0

    @torch.no_grad()
    def update(self, outputs: Any, document: torch.Tensor, step: int) -> None:
        """
        Adds one micro-batch.

        Args:
            outputs ([`~hf_jepa.models.llm_jepa.LLMJepaOutput`]): what the model returned.
            document (`torch.LongTensor` of shape `(rows, length)`): of the batch; negative where nothing stands.
            step (`int`): 0-based index of the optimizer update.
        """
        self.add(outputs.loss_components, outputs.loss, step)
        self._tokens = self._tokens + (document >= 0).sum()
        if outputs.text_embeddings is not None:
            triple = (outputs.text_embeddings, outputs.predicted_embeddings, outputs.code_embeddings)
            self._keep_recent(torch.stack([part.detach().float() for part in triple], dim=1))

    def drain(self, accelerator: Accelerator, terms_are_shares: bool) -> dict[str, float]:
        """
        What was gathered since the last call, and a fresh start.

        Args:
            accelerator (`Accelerator`): gathers across processes; every process has to call this.
            terms_are_shares (`bool`): the terms of micro-batches and processes add up to an update's (`clean`), or are
                means of their own (`official`).

        Returns:
            `dict[str, float]`: the terms of the loss, `tokens_per_second` over all processes, what
            [`~hf_jepa.evaluation.pair_report`] says of their recent pairs and, if there was one, `non_finite_step`.
        """
        if not self._micro_batches:
            return {}
        names = sorted(self._sums)
        row = torch.stack([*(self._sums[name] for name in names), self._tokens.float(), self._first_bad])[None]
        table = accelerator.gather(row).cpu()
        totals = table.sum(dim=0).tolist()
        parts = len(self._steps) if terms_are_shares else self._micro_batches * len(table)
        result = {name: total / parts for name, total in zip(names, totals, strict=False)}
        result["tokens_per_second"] = round(totals[-2] / self._seconds(), 1)
        result |= non_finite_entry(table[:, -1]) | self._report()
        self._reset()
        return result

    def _report(self) -> dict[str, float]:
        # A process whose examples carried no pairs does not know how wide one is.
        width = max(batch_sizes(self._recent[0][0].shape[-1] if self._recent else 0))
        if not width:
            return {}
        (triples,) = self._recent_rows((3, width))
        return pair_report(*triples.unbind(1)) if len(triples) > 1 and torch.isfinite(triples).all() else {}
