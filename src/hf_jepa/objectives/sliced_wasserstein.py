"""Squared 2-Wasserstein distance along directions, with a gradient that needs no memory for all of them."""

import torch

from .distributed import all_reduce_sum, world_size
from .inputs import refuse_second_derivative

# Elements of a chunk of projections: on a CPU its sort buffers stay in cache, an accelerator wants few launches.
_CHUNK_ELEMENTS = {"cpu": 1 << 18}
_ACCELERATOR_CHUNK_ELEMENTS = 1 << 24


class _SlicedWasserstein(torch.autograd.Function):
    """
    (N, D), (N, D) and (S, D) -> (): mean over N of the squared differences of the sorted projections, summed over S.
    Targets of shape (N,) are ascending, and the same along all directions. The gradient by the embeddings is made in
    the forward pass, chunk by chunk, so that nothing of size S N outlives its chunk.
    """

    @staticmethod
    def forward(ctx, embeddings: torch.Tensor, targets: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        n = embeddings.shape[0]
        elements = _CHUNK_ELEMENTS.get(embeddings.device.type, _ACCELERATOR_CHUNK_ELEMENTS)
        gradient = torch.zeros_like(embeddings) if ctx.needs_input_grad[0] else None
        total = embeddings.new_zeros(())
        for chunk in directions.split(max(1, elements // n)):
            # (chunk, N): sorting along the contiguous axis is what makes this fast.
            values, order = (chunk @ embeddings.T).sort(dim=1)
            wanted = targets if targets.ndim == 1 else (chunk @ targets.T).sort(dim=1).values
            difference = values.sub_(wanted)
            total += difference.square().sum()
            if gradient is not None:
                gradient.addmm_(torch.empty_like(difference).scatter_(1, order, difference).T, chunk)
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(2 / n))
        return total / n

    @staticmethod
    def backward(ctx, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        refuse_second_derivative("The sliced Wasserstein distance")
        return ctx.saved_tensors[0] * upstream, None, None


def sliced_wasserstein(embeddings: torch.Tensor, targets: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """
    Mean over views, directions and embeddings of the squared differences of sorted projections. Each rank sorts its
    share of the directions; the value is the same on all.

    Args:
        embeddings (`torch.Tensor` of shape `(V, N, D)`): of the joint batch.
        targets (`torch.Tensor` of shape `(V, N, D)`, or `(V, N)`: ascending values for every direction).
        directions (`torch.Tensor` of shape `(S, D)` or `(V, S, D)`): unit rows.

    Returns:
        `torch.Tensor` of shape `()`, with a first derivative by the embeddings.
    """
    views, num_directions = len(embeddings), directions.shape[-2]
    share = slice(torch.distributed.get_rank(), None, world_size()) if world_size() > 1 else slice(None)
    directions = directions[..., share, :].expand(views, -1, -1)
    with torch.autocast(embeddings.device.type, enabled=False):
        total = sum(_SlicedWasserstein.apply(*view) for view in zip(embeddings, targets, directions, strict=True))
    return all_reduce_sum(total) / (views * num_directions)
