"""What a VL-JEPA run logs about its steps, gathered on the device and read only when something is logged."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ...evaluation.diagnostics import rankme
from ...evaluation.embedding_retrieval import retrieval_ranks
from ...models.vl_jepa import VLJepaOutput
from ..base_metrics import RunningTerms, non_finite_entry


class RetrievalMetrics(RunningTerms):
    """
    Sums of the loss terms and counts, and the most recent pairs' embeddings, as detached tensors on the device: no
    update waits for it.
    """

    def _reset(self) -> None:
        super()._reset()
        self._pairs = 0

    @torch.no_grad()
    def update(self, outputs: VLJepaOutput, step: int) -> None:
        """
        Adds one micro-batch.

        Args:
            outputs ([`~hf_jepa.models.vl_jepa.VLJepaOutput`]): what the model returned.
            step (`int`): 0-based index of the optimizer update.
        """
        values = {**outputs.loss_components, **outputs.counts}
        if outputs.logit_scale is not None:
            values["temperature"] = outputs.logit_scale.reciprocal()
        self.add(values, outputs.loss, step)
        self._pairs += len(outputs.pred_embeds)
        embeds = (outputs.pred_embeds.detach().float(), outputs.target_embeds.detach().float())
        self._keep_recent(*embeds, *([] if outputs.target_hash is None else [outputs.target_hash]))

    def drain(self, accelerator: Accelerator) -> dict[str, float]:
        """
        Means since the last call over micro-batches and processes, and a fresh start.

        Args:
            accelerator (`Accelerator`): gathers across processes; every process has to call this.

        Returns:
            `dict[str, float]`: the terms of the loss, `duplicates`, `effective_negatives`, `temperature`,
            `pairs_per_second` over all processes, what [`embedding_report`] says of their recent pairs and, if there
            was one, `non_finite_step`.
        """
        if not self._micro_batches:
            return {}
        names = sorted(self._sums)
        row = torch.stack([*(self._sums[name] / self._micro_batches for name in names), self._first_bad])[None]
        table = accelerator.gather(row).cpu()
        result = dict(zip(names, table[:, :-1].mean(dim=0).tolist(), strict=True))
        result |= non_finite_entry(table[:, -1])
        result["pairs_per_second"] = round(self._pairs * accelerator.num_processes / self._seconds(), 2)
        result |= embedding_report(*self._recent_rows())
        self._reset()
        return result


def embedding_report(
    predicted: torch.Tensor, target: torch.Tensor, hashes: torch.Tensor | None = None
) -> dict[str, float]:
    """
    Retrieval among pairs, and the spread of their embeddings.

    Args:
        predicted (`torch.FloatTensor` of shape `(n, width)`), target (the same): pairs by row.
        hashes (`torch.LongTensor` of shape `(n,)`, *optional*): pairs of one number have one target.

    Returns:
        `dict[str, float]`: `retrieval_at_1` and `reverse_retrieval_at_1` (shares in [0, 1]); `pred_std` and
        `target_std` (standard deviation over pairs of L2-normalised embeddings, times the square root of the width: 1
        if isotropic, 0 if collapsed); `pred_rankme` and `target_rankme`. Nothing for fewer than two pairs or values
        that are not finite.
    """
    if len(predicted) < 2 or not (torch.isfinite(predicted).all() and torch.isfinite(target).all()):
        return {}
    predicted, target = F.normalize(predicted, dim=1), F.normalize(target, dim=1)
    report = {
        "retrieval_at_1": (retrieval_ranks(predicted, target, hashes) == 0).float().mean().item(),
        "reverse_retrieval_at_1": (retrieval_ranks(target, predicted, hashes) == 0).float().mean().item(),
    }
    for name, embeds in (("pred", predicted), ("target", target)):
        report[f"{name}_std"] = (embeds.std(dim=0, correction=0).mean() * embeds.shape[1] ** 0.5).item()
        report[f"{name}_rankme"] = rankme(embeds)
    return report
