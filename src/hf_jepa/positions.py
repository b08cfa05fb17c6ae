"""Fixed position tables, for any grid."""

import torch


def sincos_1d(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """
    Sine-cosine code of scalar positions: `dim / 2` sines followed by `dim / 2` cosines at geometric frequencies.

    Args:
        positions (`torch.Tensor` of shape `(n,)`): positions in patches.
        dim (`int`): width of the code, even.

    Returns:
        `torch.Tensor` of shape `(n, dim)`, float64.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device=positions.device) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(grid_size: tuple[int, int], dim: int, device: torch.device | str | None = None) -> torch.Tensor:
    """
    The 2-D sine-cosine table of I-JEPA (arXiv 2301.08243, released code) for a grid of any shape.

    The first half of each row codes the *column*, the second half the *row* of the patch, as in the published
    checkpoints. Computed in float64 and rounded once.

    Args:
        grid_size (`tuple[int, int]`): rows and columns, in patches.
        dim (`int`): width of the table, a multiple of 4.

    Returns:
        `torch.Tensor` of shape `(rows * columns, dim)`, float32, in row-major token order.

    Raises:
        `ValueError`: if `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"A 2-D sine-cosine table needs a width divisible by 4, got {dim}; change the hidden size.")
    rows, columns = grid_size
    row_code = sincos_1d(torch.arange(rows, device=device), dim // 2)
    column_code = sincos_1d(torch.arange(columns, device=device), dim // 2)
    table = torch.cat([column_code.repeat(rows, 1), row_code.repeat_interleave(columns, dim=0)], dim=1)
    return table.to(torch.float32)
