"""Fixed position tables, for any grid."""

import math
from typing import Literal

import torch
import torch.nn.functional as F


def pair(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """`(height, width)` of a size given as one number or two; of three, those of an image in a clip."""
    return (value, value) if isinstance(value, int) else tuple(value)[-2:]


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


def sincos_3d(
    grid_size: tuple[int, int, int],
    dim: int,
    uniform_power: bool = True,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """
    The 3-D sine-cosine table of V-JEPA (arXiv 2404.08471, released code). Computed in float64 and rounded once.

    Args:
        grid_size (`tuple[int, int, int]`): time slots, rows and columns.
        dim (`int`): width of the table, even.
        uniform_power (`bool`): `True`, as in all releases: every axis gets `2 ceil(dim / 6)` channels, in the order
            time, row, column, and the last is cut to fit. `False`: time gets half of the channels, rows and columns a
            quarter each (`dim` a multiple of 8).

    Returns:
        `torch.Tensor` of shape `(slots * rows * columns, dim)`, float32, in (time, row, column) token order.

    Raises:
        `ValueError`: if the axes cannot share `dim`.
    """
    share = 1 if uniform_power else 4
    if dim % (2 * share):
        raise ValueError(f"A 3-D sine-cosine table needs a width divisible by {2 * share}, got {dim}.")
    widths = (2 * math.ceil(dim / 6),) * 3 if uniform_power else (dim // 2, dim // 4, dim // 4)
    codes = [sincos_1d(torch.arange(n, device=device), width) for n, width in zip(grid_size, widths, strict=True)]
    slots, rows, columns = grid_size
    table = torch.cat(
        [
            codes[0][:, None, None].expand(-1, rows, columns, -1),
            codes[1][None, :, None].expand(slots, -1, columns, -1),
            codes[2][None, None].expand(slots, rows, -1, -1),
        ],
        dim=-1,
    )
    return table[..., :dim].flatten(0, 2).to(torch.float32)


def resize_table(table: torch.Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> torch.Tensor:
    """
    A position table for another grid, as V-JEPA's released encoder resizes its own: trilinear, for a table of one time
    slot bicubic, corners not aligned.

    Args:
        table (`torch.Tensor` of shape `(1, slots * rows * columns, dim)`).
        old, new (`tuple[int, int, int]`): its grid, and the one wanted: time slots, rows, columns.

    Returns:
        `torch.Tensor` of shape `(1, tokens of new, dim)`.
    """
    if old == new:
        return table
    channels = table.transpose(1, 2).unflatten(2, old)
    if old[0] == new[0] == 1:
        resized = F.interpolate(channels[:, :, 0], size=new[1:], mode="bicubic", align_corners=False)
    else:
        resized = F.interpolate(channels, size=new, mode="trilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def rotary_3d(
    token_ids: torch.Tensor,
    grid_size: tuple[int, int],
    head_dim: int,
    layout: Literal["tiled", "interleaved"],
    dtype: torch.dtype,
    stretch_to: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rotary tables of V-JEPA 2 and 2.1 (arXiv 2506.09985, 2603.14482, released code). With `u` a query or key and
    `swapped(u)` its neighbouring channels exchanged (1, 0, 3, 2, ...), the positioned one is
    `u * cos + swapped(u) * sin`: the signs are in the table.

    Time, row and column turn `2 floor(floor(head_dim / 3) / 2)` channels each, in that order; the rest stay.
    Frequencies are `10000^(-j / half)`, `half` being half an axis's channels. `"interleaved"` gives channel `c` of an
    axis the frequency `c // 2`: a rotation of channel pairs. `"tiled"` gives it `c mod half`, so that the two channels
    of a pair turn at different rates: not a rotation, but what V-JEPA 2's weights have learned.

    Every step is taken in `dtype`, as in the released code, and under autocast as autocast takes it there. Positions
    are integers in the tiled layout and float32 in the interleaved one (or with `stretch_to`), whose angles are
    therefore at least float32.

    Args:
        token_ids (`torch.Tensor` of shape `(batch, tokens)`): int64 indices in (time, row, column) order. Time has no
            end: indices beyond the clip are later slots.
        grid_size (`tuple[int, int]`): rows and columns.
        head_dim (`int`): channels of a head.
        layout (`str`): `"tiled"` (V-JEPA 2) or `"interleaved"` (V-JEPA 2.1).
        dtype (`torch.dtype`): of the queries and keys, or float32 for exact angles.
        stretch_to (`int`, *optional*): rows and columns of the grid whose range of positions is used (V-JEPA 2.1's
            interpolation).

    Returns:
        `cos` and `sin`, of shape `(batch, 1, tokens, head_dim)`.

    Raises:
        `ValueError`: for an unknown layout.
    """
    if layout not in ("tiled", "interleaved"):
        raise ValueError(f'`layout` must be "tiled" or "interleaved", got {layout!r}.')
    rows, columns = grid_size
    slots, ys, xs = token_ids // (rows * columns), token_ids // columns % rows, token_ids % columns
    if layout == "interleaved" or stretch_to is not None:
        slots, ys, xs = slots.float(), ys.float(), xs.float()
    if stretch_to is not None:
        ys, xs = (axis * ((stretch_to - 1) / max(size - 1, 1)) for axis, size in ((ys, rows), (xs, columns)))

    half = head_dim // 3 // 2
    exponents = torch.arange(half, dtype=dtype, device=token_ids.device) / half
    angles = torch.stack([slots, ys, xs], dim=-1).unsqueeze(-1) * (1.0 / 10000**exponents)
    cos, sin = angles.cos(), angles.sin()
    if layout == "tiled":
        cos, sin = (torch.cat([table, table], dim=-1) for table in (cos, sin))
    else:
        cos, sin = (table.repeat_interleave(2, dim=-1) for table in (cos, sin))
    sign = torch.ones(2 * half, dtype=sin.dtype, device=sin.device)
    sign[::2] = -1
    rest = head_dim - 6 * half
    cos = F.pad(cos.flatten(-2), (0, rest), value=1.0)
    sin = F.pad((sin * sign).flatten(-2), (0, rest))
    return cos.unsqueeze(1), sin.unsqueeze(1)
