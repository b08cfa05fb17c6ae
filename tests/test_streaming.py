"""Selective decoding: scikit-learn's boundaries, a trigger that decodes each shift once, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_jepa.streaming import (
    ShiftTrigger,
    decode_offline,
    decode_online,
    decode_segments,
    decode_uniformly,
    embedding_shift,
    segment_middles,
    ward_segments,
)


def scenes(lengths: list[int], width: int = 12, noise: float = 0.05, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for length in lengths:
        centre = F.normalize(torch.randn(width, generator=generator), dim=0)
        parts.append(centre + noise * torch.randn(length, width, generator=generator))
    return torch.cat(parts)


def sklearn_starts(embeds: torch.Tensor, **options) -> list[int]:
    from scipy.sparse import diags_array
    from sklearn.cluster import AgglomerativeClustering

    n = len(embeds)
    chain = diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[-1, 1]).tocsr()
    labels = AgglomerativeClustering(linkage="ward", connectivity=chain, **options).fit(embeds.numpy()).labels_
    return [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist()]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["noise", "walk", "scenes"])
def test_boundaries_are_those_of_scikit_learn(kind, seed):
    embeds = scenes([40, 7, 90, 25, 3, 60], seed=seed, noise=0.3)
    if kind != "scenes":
        embeds = torch.randn(300, 8, generator=torch.Generator().manual_seed(seed))
        embeds = embeds.cumsum(dim=0) if kind == "walk" else embeds
    for num_segments in (1, 2, 6, 30, len(embeds)):
        found = ward_segments(embeds, num_segments).tolist()
        assert found == sklearn_starts(embeds.double(), n_clusters=num_segments)
    # scikit-learn's distance is sqrt(2 * cost).
    for cost in (0.5, 4.0):
        found = ward_segments(embeds, threshold=cost).tolist()
        assert found == sklearn_starts(embeds.double(), n_clusters=None, distance_threshold=(2 * cost) ** 0.5)


def test_scenes_are_found_and_decoded_at_their_middles():
    embeds = scenes([10, 5, 20])
    found = decode_offline(embeds, num_segments=3)
    assert found.starts.tolist() == [0, 10, 15]
    assert found.positions.tolist() == [4, 12, 24]
    assert found.num_saved == 32
    torch.testing.assert_close(found.embeds[1], embeds[10:15].mean(dim=0))
    exact = decode_offline(embeds, num_segments=3, decode="exact")
    assert torch.equal(exact.embeds, embeds[[4, 12, 24]])
    # The mean lies nearer to what the scene is.
    centres = torch.stack([scenes([10, 5, 20], noise=0.0)[place] for place in (0, 10, 15)])
    assert ((found.embeds - centres).norm(dim=1) < (exact.embeds - centres).norm(dim=1)).all()


def test_uniform_decoding_cuts_equal_parts():
    found = decode_uniformly(torch.arange(12.0)[:, None], 3)
    assert found.starts.tolist() == [0, 4, 8]
    assert found.positions.tolist() == [1, 5, 9]
    assert segment_middles(torch.tensor([0]), 1).tolist() == [0]


def test_shift_is_one_minus_cosine_with_the_mean_of_those_before():
    embeds = torch.randn(9, 5)
    shift = embedding_shift(embeds, window=3)
    assert shift[0] == 0
    for place in range(1, 9):
        mean = embeds[max(0, place - 3) : place].mean(dim=0)
        torch.testing.assert_close(shift[place], 1 - torch.cosine_similarity(embeds[place], mean, dim=0))


@pytest.mark.parametrize("signal", ["cosine", "variance"])
def test_a_trigger_decodes_each_scene_once_and_sees_no_future(signal):
    embeds = scenes([12, 9, 15, 8], width=48, noise=0.02)
    found = decode_online(embeds, ShiftTrigger(signal, high=0.12, window=4))
    # As soon as the signal can tell.
    late = found.positions - torch.tensor([0, 12, 21, 36])
    assert (late >= 0).all()
    assert (late <= 1).all()
    changed = embeds.clone()
    changed[30:] = torch.randn(14, 48)
    again = decode_online(changed, ShiftTrigger(signal, high=0.12, window=4))
    assert torch.equal(again.shift[:30], found.shift[:30])
    assert again.positions[:3].tolist() == found.positions[:3].tolist()


def test_hysteresis_and_gap():
    # One long shift that stays above `high`, then calm, then another.
    angle = torch.tensor([0.0] * 4 + [1.0, 2.0, 3.0, 4.0, 5.0] + [5.0] * 6 + [6.5] * 3)
    embeds = torch.stack([angle.cos(), angle.sin()], dim=1)
    once = decode_online(embeds, ShiftTrigger(high=0.3, window=2, min_gap=1))
    assert once.positions.tolist() == [0, 4, 15]
    shaken = embeds[[0, 0, 0, 5, 0, 0, 0, 5, 0, 0]]
    assert len(decode_online(shaken, ShiftTrigger(high=0.3, window=1, low=0.3, min_gap=1)).positions) > 2
    assert decode_online(shaken, ShiftTrigger(high=0.3, window=1, min_gap=6)).positions.tolist() == [0, 7]


def test_bad_input():
    embeds = torch.randn(5, 3)
    with pytest.raises(ValueError, match="5 windows make 1 to 5 segments, not 6"):
        ward_segments(embeds, 6)
    with pytest.raises(ValueError, match="either `num_segments` or `threshold`"):
        ward_segments(embeds)
    with pytest.raises(ValueError, match=r"at least one window, got \(0, 3\)"):
        decode_online(embeds[:0])
    with pytest.raises(ValueError, match="not finite"):
        ward_segments(embeds / 0, 2)
    with pytest.raises(ValueError, match="low=0.5 and high=0.1"):
        ShiftTrigger(high=0.1, low=0.5)
    with pytest.raises(ValueError, match="too small"):
        ShiftTrigger("variance", window=1)
    with pytest.raises(ValueError, match="'median'"):
        decode_segments(embeds, torch.tensor([0]), "median")
    with pytest.raises(ValueError, match="5 windows take 1 to 5 decodes"):
        decode_uniformly(embeds, 0)
