"""The one product of all rows with all columns that contrastive objectives need, in chunks and across processes."""

import torch
import torch.distributed as dist

from .distributed import world_size
from .inputs import refuse_second_derivative

# Elements of the logits that exist at one time, so that memory is linear in the joint batch.
_CHUNK_ELEMENTS = 1 << 21


class _ChunkedCrossEntropy(torch.autograd.Function):
    """See [`chunked_cross_entropy`]. Saves inputs and two numbers per row and column; backward repeats the logits."""

    @staticmethod
    def forward(ctx, rows, columns, scale, positives, row_ids, column_ids, by_column):
        positive = (rows * columns[positives]).sum(dim=1) * scale
        of_rows, of_columns, column_positive = torch.empty_like(positive), None, None
        if by_column:
            of_columns = rows.new_full((len(columns),), float("-inf"))
            column_positive = rows.new_zeros(len(columns)).index_copy_(0, positives, positive)
            if world_size() > 1:
                dist.all_reduce(column_positive)
        for part, logits in _chunks(rows, columns, scale, positives, positive, row_ids, column_ids):
            of_rows[part] = (logits - positive[part, None]).logsumexp(dim=1)
            if by_column:
                of_columns = torch.logaddexp(of_columns, logits.sub_(column_positive).logsumexp(dim=0))
        if by_column and world_size() > 1:
            every = [torch.empty_like(of_columns) for _ in range(world_size())]
            dist.all_gather(every, of_columns)
            of_columns = torch.stack(every).logsumexp(dim=0)
        ctx.save_for_backward(
            rows, columns, scale, positives, positive, row_ids, column_ids, of_rows, of_columns, column_positive
        )
        return of_rows, positive, of_columns

    @staticmethod
    def backward(ctx, row_gradient, positive_gradient, column_gradient):
        refuse_second_derivative("A contrastive objective")
        rows, columns, scale, positives, positive, *ids, of_rows, of_columns, column_positive = ctx.saved_tensors
        at_positive = positive_gradient - row_gradient
        row_shift = (positive + of_rows)[:, None]
        if of_columns is not None:
            if world_size() > 1:
                # A column's sum is over all ranks' rows: each rank's rows get every rank's gradient by it.
                column_gradient = column_gradient.contiguous()
                dist.all_reduce(column_gradient)
            column_shift = column_positive + of_columns
            at_positive = at_positive - column_gradient[positives]
        needs_rows, needs_columns, needs_scale = ctx.needs_input_grad[:3]
        for_rows = torch.empty_like(rows)
        for_columns = torch.zeros_like(columns) if needs_columns else None
        for part, logits in _chunks(rows, columns, scale, positives, positive, *ids):
            gradient = (logits - row_shift[part]).exp_().mul_(row_gradient[part, None])
            if of_columns is not None:
                gradient.addcmul_(logits.sub_(column_shift).exp_(), column_gradient)
            gradient.scatter_add_(1, positives[part, None], at_positive[part, None])
            for_rows[part] = gradient @ columns
            if for_columns is not None:
                for_columns.addmm_(gradient.T, rows[part])
        return (
            for_rows * scale if needs_rows else None,
            for_columns * scale if needs_columns else None,
            (for_rows * rows).sum() if needs_scale else None,
            *[None] * 4,
        )


def _chunks(rows, columns, scale, positives, positive, row_ids, column_ids):
    """Slices of the rows with their logits: `positive` at the positives, minus infinity where ids exclude a pair."""
    size = max(1, _CHUNK_ELEMENTS // len(columns))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        logits = (rows[part] * scale) @ columns.T
        if row_ids is not None:
            logits.masked_fill_(row_ids[part, None] == column_ids, float("-inf"))
        # The value whose difference with itself must be 0 exactly, however the product was rounded.
        logits.scatter_(1, positives[part, None], positive[part, None])
        yield part, logits


def chunked_cross_entropy(
    rows: torch.Tensor,
    columns: torch.Tensor,
    scale: torch.Tensor,
    positives: torch.Tensor,
    ids: tuple[torch.Tensor, torch.Tensor] | None = None,
    by_column: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Cross-entropy of `logits = scale * rows @ columns.T` by row and by column, without ever holding all logits.

    Args:
        rows (`torch.Tensor` of shape `(N_local, D)`): of this rank.
        columns (`torch.Tensor` of shape `(N, D)`): of all ranks, gathered with gradient.
        scale (`torch.Tensor` of shape `()`).
        positives (`torch.LongTensor` of shape `(N_local,)`): the column each row belongs to. With `by_column`, the
            ranks' positives together name each column once.
        ids (pair of `torch.LongTensor` of shapes `(N_local,)` and `(N,)`, *optional*): rows and columns of one id are
            no negatives of each other: all such pairs but the positive ones are left out.
        by_column (`bool`): also over the rows of all ranks.

    Returns:
        By row `(N_local,)`; the positives' logits `(N_local,)`; by column `(N,)`, the same on all ranks, or `None`.
        A loss that each rank makes of its own rows and columns, put through [`all_reduce_sum`], is exact under DDP.
    """
    row_ids, column_ids = ids if ids is not None else (None, None)
    with torch.autocast(rows.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(rows, columns, scale, positives, row_ids, column_ids, by_column)
