"""Rotary and 3-D sine-cosine positions against closed forms."""

import math

import pytest
import torch

from hf_jepa.models.vjepa.layers_vjepa import rotate
from hf_jepa.positions import resize_table, rotary_3d, sincos_3d

IDS = torch.tensor([[0, 3, 17, 41, 40, 8], [5, 59, 58, 2, 30, 31]])
ROWS, COLUMNS = 3, 5


def rotary(layout: str, head_dim: int = 24, dtype: torch.dtype = torch.float32, ids: torch.Tensor = IDS, **kwargs):
    return rotary_3d(ids, (ROWS, COLUMNS), head_dim, layout, dtype, **kwargs)


def by_hand(vector: list[float], token: int, layout: str, stretch_to: int | None = None) -> list[float]:
    """One head of one token, one channel at a time."""
    half = len(vector) // 3 // 2
    y, x = float(token // COLUMNS % ROWS), float(token % COLUMNS)
    if stretch_to:
        y, x = y * (stretch_to - 1) / (ROWS - 1), x * (stretch_to - 1) / (COLUMNS - 1)
    result = list(vector)
    for axis, position in enumerate((token // (ROWS * COLUMNS), y, x)):
        for channel in range(2 * half):
            frequency = channel // 2 if layout == "interleaved" else channel % half
            angle = position * 10000 ** (-frequency / half)
            here = 2 * half * axis + channel
            partner = -vector[here + 1] if channel % 2 == 0 else vector[here - 1]
            result[here] = vector[here] * math.cos(angle) + partner * math.sin(angle)
    return result


@pytest.mark.parametrize("layout", ["tiled", "interleaved"])
@pytest.mark.parametrize("head_dim", [24, 32, 64, 80])
@pytest.mark.parametrize("stretch_to", [None, 16])
def test_rotary_positions_are_the_closed_form(layout, head_dim, stretch_to):
    vectors = torch.randn(2, 3, 6, head_dim)
    ours = rotate(vectors, *rotary(layout, head_dim, stretch_to=stretch_to))
    for clip in range(2):
        for token in range(6):
            for head in range(3):
                expected = by_hand(vectors[clip, head, token].tolist(), int(IDS[clip, token]), layout, stretch_to)
                torch.testing.assert_close(
                    ours[clip, head, token], torch.tensor(expected), rtol=0, atol=5e-6, msg=f"{clip} {token} {head}"
                )


def test_the_interleaved_layout_is_a_rotation():
    vectors = torch.randn(2, 3, 6, 24)
    turned = rotate(vectors, *rotary("interleaved"))
    torch.testing.assert_close(turned.norm(dim=-1), vectors.norm(dim=-1))
    # The tiled layout is none; weights of V-JEPA 2 have been trained with it.
    ratio = rotate(vectors, *rotary("tiled")).norm(dim=-1) / vectors.norm(dim=-1)
    assert ratio.min() < 0.97 < 1.03 < ratio.max()


@pytest.mark.parametrize(("layout", "is_relative"), [("interleaved", True), ("tiled", False)])
def test_products_depend_on_offsets_alone_in_a_rotation(layout, is_relative):
    query, key = torch.randn(2, 1, 1, 1, 24).expand(2, 1, 1, 2, 24)
    # Token pairs (0, 18) and (16, 34): both one slot and three columns apart.
    first, second = (rotary(layout, ids=torch.tensor([ids])) for ids in ([0, 16], [18, 34]))
    products = (rotate(query, *first) * rotate(key, *second)).sum(dim=-1).flatten()
    assert torch.isclose(products[0], products[1], atol=1e-5).item() is is_relative


def test_reference_angles_are_those_of_the_low_precision_code():
    ids = torch.arange(32).unsqueeze(0) * ROWS * COLUMNS
    cos, sin = rotary("tiled", 64, torch.bfloat16, ids)
    assert cos.dtype == sin.dtype == torch.bfloat16
    exponents = (torch.arange(10) / 10).to(torch.bfloat16)
    frequencies = (1.0 / (10000.0 ** exponents.float()).to(torch.bfloat16).float()).to(torch.bfloat16)
    angles = (torch.arange(32)[:, None] * frequencies.float()).to(torch.bfloat16)
    torch.testing.assert_close(cos[0, 0, :, :10], angles.float().cos().to(torch.bfloat16))
    # Far more than rounding the exact cosines would cost.
    exact = rotary("tiled", 64, ids=ids)[0]
    assert 0.02 < (cos.float() - exact).abs().max() < 0.1
    assert (exact.to(torch.bfloat16).float() - exact).abs().max() < 0.002
    # Positions of V-JEPA 2.1 are float32, and so are its angles.
    assert rotary("interleaved", 64, torch.bfloat16, ids)[0].dtype == torch.float32


def test_time_has_no_end():
    beyond = rotary("tiled", ids=torch.tensor([[1000 * ROWS * COLUMNS + 7]]))
    assert torch.equal(beyond[0][0, 0, 0, :4], torch.cos(1000 * 10000 ** (-torch.arange(4) / 4)))
    with pytest.raises(ValueError, match="layout"):
        rotary("spiral")


@pytest.mark.parametrize(("dim", "widths"), [(1024, (342, 342, 340)), (1280, (428, 428, 424)), (384, (128,) * 3)])
def test_axes_of_the_sincos_table(dim, widths):
    table = sincos_3d((3, 4, 5), dim).view(3, 4, 5, dim)
    time, row, column = table.split(widths, dim=-1)
    assert torch.equal(time, time[:, :1, :1].expand_as(time))
    assert torch.equal(row, row[:1, :, :1].expand_as(row))
    assert torch.equal(column, column[:1, :1].expand_as(column))
    # A sine half and a cosine half, the slowest frequency last.
    half = math.ceil(dim / 6)
    for position in range(3):
        angle = position * 10000 ** (-(half - 1) / half)
        assert float(time[position, 0, 0, half - 1]) == pytest.approx(math.sin(angle), abs=1e-7)
        assert float(time[position, 0, 0, 2 * half - 1]) == pytest.approx(math.cos(angle), abs=1e-7)


def test_uneven_shares_of_the_sincos_table():
    table = sincos_3d((3, 4, 5), 16, uniform_power=False).view(3, 4, 5, 16)
    assert float(table[2, 1, 3, 0]) == pytest.approx(math.sin(2))
    assert float(table[2, 1, 3, 8]) == pytest.approx(math.sin(1))
    assert float(table[2, 1, 3, 12]) == pytest.approx(math.sin(3))
    for dim, uniform in ((17, True), (12, False)):
        with pytest.raises(ValueError, match="divisible"):
            sincos_3d((1, 2, 2), dim, uniform)


def test_resized_tables_keep_their_corners_and_means():
    table = sincos_3d((2, 4, 4), 24).unsqueeze(0)
    assert resize_table(table, (2, 4, 4), (2, 4, 4)) is table
    # Doubling without aligned corners repeats the outermost entries.
    larger = resize_table(table, (2, 4, 4), (4, 8, 8)).view(4, 8, 8, 24)
    assert torch.equal(larger[0, 0, 0], table[0, 0])
    torch.testing.assert_close(larger[-1, -1, -1], table[0, -1])
    torch.testing.assert_close(larger.mean(dim=(0, 1, 2)), table[0].mean(dim=0))
