"""Collectives with gradient: DDP's averaging then gives the gradient of one process on the joint batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Number of processes; 1 without a process group. Asked at call time: groups are often made after the modules."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _AllReduceSum.apply(gradient)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """
    Sum over ranks, on every rank, with gradient. The backward pass sums the ranks' gradients; where all ranks compute
    the same loss from the sum, DDP's division by the world size then makes every parameter's gradient that of one
    process on the joint batch. Without a process group, the input itself.

    Args:
        tensor (`torch.Tensor` of any shape, the same on all ranks).

    Returns:
        `torch.Tensor` of the same shape and dtype.
    """
    return tensor if world_size() == 1 else _AllReduceSum.apply(tensor)


def batch_sizes(size: int) -> list[int]:
    """
    Every rank's `size`, by rank. The numbers travel between the hosts, over gloo, so that no accelerator waits; the
    first call under another backend makes a process group for it, hence all ranks must call.
    """
    if world_size() == 1:
        return [size]
    sizes = torch.zeros(world_size(), dtype=torch.int64)
    sizes[dist.get_rank()] = size
    dist.all_reduce(sizes, group=_host_group())
    return sizes.tolist()


_host_groups: tuple[Any, Any] = (None, None)


def _host_group() -> Any:
    global _host_groups
    if dist.get_backend() == "gloo":
        return None
    if _host_groups[0] is not dist.group.WORLD:
        _host_groups = dist.group.WORLD, dist.new_group(backend="gloo")
    return _host_groups[1]


def gather_batch(embeddings: torch.Tensor, dim: int = 0, sizes: list[int] | None = None) -> torch.Tensor:
    """
    Joins the ranks' batches, of any sizes, along `dim` in the order of ranks, with gradient: under DDP's gradient
    averaging a loss of the result has exactly the gradient of one process on the joint batch. Without a process group,
    the input itself.

    Args:
        embeddings (`torch.Tensor`): alike on all ranks but for the size of `dim`.
        dim (`int`): the batch.
        sizes (`list[int]`, *optional*): [`batch_sizes`] of that dimension, where already known.

    Returns:
        `torch.Tensor`.
    """
    if world_size() == 1:
        return embeddings
    sizes = batch_sizes(embeddings.shape[dim]) if sizes is None else sizes
    largest, own = max(sizes), embeddings.shape[dim]
    if own < largest:
        # Collectives want one shape; the padding is cut off again, and with it its gradient.
        shape = list(embeddings.shape)
        shape[dim] = largest - own
        embeddings = torch.cat([embeddings, embeddings.new_zeros(shape)], dim=dim)
    batches = all_gather(embeddings.contiguous())
    return torch.cat([batch.narrow(dim, 0, size) for batch, size in zip(batches, sizes, strict=True)], dim=dim)
