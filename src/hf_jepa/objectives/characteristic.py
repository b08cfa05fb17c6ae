"""
Empirical characteristic functions on equispaced knots. cos(t_k u) and sin(t_k u) follow from one rotation per knot:
two transcendental functions per sample instead of two per sample and knot, and memory of the samples' size.
"""

from collections.abc import Iterator

import torch

# Elements of a block of rows: a core's cache holds its buffers; accelerators want few launches instead.
_CPU_BLOCK_ELEMENTS = 1 << 16
_ACCELERATOR_BLOCK_ELEMENTS = 1 << 24


def characteristic_sums(projections: torch.Tensor, first: float, step: float, count: int) -> torch.Tensor:
    """
    Sums of cos(t_k u) and sin(t_k u) over the samples u, at the knots t_k = first + k * step, k = 0 .. count - 1.

    Args:
        projections (`torch.Tensor` of shape `(V, N, S)`, float32 or float64): u; summed over N.
        first (`float`), step (`float`), count (`int`): the knots.

    Returns:
        `torch.Tensor` of shape `(V, 2, count, S)`: cosines, then sines. Differentiable any number of times; from the
        second on (and on Metal, which lacks the complex kernels) by the plain formula, in `count` times the memory.
    """
    if projections.device.type == "mps":
        return _plain_sums(projections, first, step, count)
    return _CharacteristicSums.apply(projections, first, step, count)


def _plain_sums(projections: torch.Tensor, first: float, step: float, count: int) -> torch.Tensor:
    angles = projections.unsqueeze(-2) * _knots(projections, first, step, count)
    return torch.stack([angles.cos().sum(1), angles.sin().sum(1)], dim=1)


def _knots(like: torch.Tensor, first: float, step: float, count: int) -> torch.Tensor:
    return first + step * torch.arange(count, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _phasor(angles: torch.Tensor) -> torch.Tensor:
    return torch.complex(angles.cos(), angles.sin())


def _blocks(projections: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of a (V, N, S) tensor, in blocks that suit the device."""
    views, length, slices = projections.shape
    elements = _CPU_BLOCK_ELEMENTS if projections.device.type == "cpu" else _ACCELERATOR_BLOCK_ELEMENTS
    rows = max(1, elements // (views * slices))
    return (slice(start, start + rows) for start in range(0, length, rows))


class _CharacteristicSums(torch.autograd.Function):
    """
    Saves the projections alone. The backward pass is a Horner scheme in exp(i step u); where a graph of the gradient
    is wanted, the plain formula, which autograd differentiates further.
    """

    @staticmethod
    def forward(projections: torch.Tensor, first: float, step: float, count: int) -> torch.Tensor:
        views, _, slices = projections.shape
        # Blocks are summed in float64: it costs nothing here, and float32 would show in the gradient.
        sums = projections.new_zeros(views, count, slices, dtype=torch.complex128)
        for rows in _blocks(projections):
            block = projections[:, rows]
            phasor = _phasor(block * first)
            # exp(i step u) - 1 without cancellation: no rounding of the turn itself, which all knots would repeat.
            turn = torch.complex((block * (step / 2)).sin_().square_().mul_(-2), (block * step).sin_())
            for k in range(count):
                if k:
                    phasor.addcmul_(phasor, turn)
                sums[:, k] += phasor.sum(1)
        return torch.stack([sums.real, sums.imag], dim=1).to(projections.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        projections, *ctx.grid = inputs
        ctx.save_for_backward(projections)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (projections,) = ctx.saved_tensors
        first, step, count = ctx.grid
        # d/du = Re sum_k (a_k + i b_k) exp(i t_k u) = sum_k a_k cos(t_k u) - b_k sin(t_k u)
        knots = _knots(projections, first, step, count)
        a, b = gradient[:, 1] * knots, gradient[:, 0] * knots
        if torch.is_grad_enabled():
            angles = projections.unsqueeze(-2) * knots
            return (a.unsqueeze(1) * angles.cos() - b.unsqueeze(1) * angles.sin()).sum(-2), None, None, None
        coefficients, result = torch.complex(a, b), torch.empty_like(projections)
        for rows in _blocks(projections):
            block = projections[:, rows]
            turn = _phasor(block * step)
            total = coefficients[:, -1:].expand_as(turn).clone()
            for k in range(count - 2, -1, -1):
                total.mul_(turn).add_(coefficients[:, k : k + 1])
            result[:, rows] = total.mul_(turn if first == step else _phasor(block * first)).real
        return result, None, None, None
