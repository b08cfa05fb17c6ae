"""The matmul rate to measure a training step against: the step's own matrix products, timed as plain torch calls.

A product of (batch x) M x K with K x N costs 2 M K N floating-point operations. Counted is what one I-JEPA step must
compute, no more: linear layers and attention, forward and backward, the target encoder forward only, the patch
embedding of the context encoder for kept patches only, the predictor's last block for masked tokens only (the others
are keys and values there). Normalisation, softmax, GELU and the optimizer count nothing:
their time is what keeps a step below the matmul rate.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepSizes:
    """What fixes the products of a step; by default ViT-S/16 at 224 px with the original's usual mask sizes."""

    batch_size: int = 16
    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 384
    num_layers: int = 12
    num_heads: int = 6
    predictor_hidden_size: int = 384
    predictor_num_layers: int = 6
    num_context: int = 50
    num_target: int = 35
    num_target_masks: int = 4

    @property
    def grid_size(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2


# (batch or 0 for a plain 2-D product, M, K, N) -> how often
Products = Counter[tuple[int, int, int, int]]


def _linear(products: Products, rows: int, inputs: int, outputs: int, times: int, backward: bool, input_grad=True):
    products[0, rows, inputs, outputs] += times
    if backward:
        products[0, outputs, rows, inputs] += times
        if input_grad:
            products[0, rows, outputs, inputs] += times


def _blocks(
    products: Products,
    num_sequences: int,
    length: int,
    width: int,
    heads: int,
    depth: int,
    backward: bool,
    num_read: int | None = None,
) -> None:
    """`depth` transformer blocks of which `num_read` tokens per sequence are read (all by default)."""
    read = num_read or length
    rows, read_rows = num_sequences * length, num_sequences * read
    _linear(products, rows, width, width, 2 * depth, backward)  # keys, values
    _linear(products, read_rows, width, width, 2 * depth, backward)  # queries, output
    _linear(products, read_rows, width, 4 * width, depth, backward)
    _linear(products, read_rows, 4 * width, width, depth, backward)
    head_dim, batch = width // heads, num_sequences * heads
    products[batch, read, head_dim, length] += depth * (2 if backward else 1)  # Q K^T; dP
    products[batch, read, length, head_dim] += depth * (2 if backward else 1)  # P V; dQ
    if backward:
        products[batch, length, read, head_dim] += 2 * depth  # dV, dK


def step_products(sizes: StepSizes) -> Products:
    """Every matrix product of one training step."""
    s, products = sizes, Counter()
    pixels = 3 * s.patch_size**2
    _linear(products, s.batch_size * s.num_patches, pixels, s.hidden_size, 1, backward=False)
    _blocks(products, s.batch_size, s.num_patches, s.hidden_size, s.num_heads, s.num_layers, backward=False)
    context_rows = s.batch_size * s.num_context
    _linear(products, context_rows, pixels, s.hidden_size, 1, backward=True, input_grad=False)
    _blocks(products, s.batch_size, s.num_context, s.hidden_size, s.num_heads, s.num_layers, backward=True)
    sequences = s.batch_size * s.num_target_masks
    length, width = s.num_context + s.num_target, s.predictor_hidden_size
    _linear(products, context_rows, s.hidden_size, width, 1, backward=True)
    _blocks(products, sequences, length, width, s.num_heads, s.predictor_num_layers - 1, backward=True)
    _blocks(products, sequences, length, width, s.num_heads, 1, backward=True, num_read=s.num_target)
    _linear(products, sequences * s.num_target, width, s.hidden_size, 1, backward=True)
    return products


def flops(products: Products) -> int:
    return sum(2 * max(batch, 1) * m * k * n * times for (batch, m, k, n), times in products.items())


class GemmSuite:
    """The distinct products of a step, ready to be timed: `seconds()` is the time all of them take together."""

    def __init__(self, products: Products, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.calls = []
        for (batch, m, k, n), times in products.items():
            lead = (batch,) if batch else ()
            a, b = torch.randn(*lead, m, k).to(dtype), torch.randn(*lead, k, n).to(dtype)
            self.calls.append((torch.bmm if batch else torch.mm, a, b, torch.empty(*lead, m, n, dtype=dtype), times))

    def seconds(self) -> float:
        total = 0.0
        for function, a, b, out, times in self.calls:
            repeats = max(1, times // 6)
            start = self.clock()
            for _ in range(repeats):
                function(a, b, out=out)
            total += (self.clock() - start) / repeats * times
        return total
