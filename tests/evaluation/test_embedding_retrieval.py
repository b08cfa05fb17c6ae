"""Retrieval between embeddings, by hand."""

import pytest
import torch

from hf_jepa.evaluation import embedding_retrieval, retrieval_ranks, retrieval_report


def unit(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_ranks_by_hand():
    target = unit(0, 40, 90)
    assert retrieval_ranks(unit(10, 85, 70), target).tolist() == [0, 1, 0]
    # Scale does not matter.
    assert retrieval_ranks(7 * unit(10, 85, 70), target / 3).tolist() == [0, 1, 0]
    report = retrieval_report(unit(10, 85, 70), target, ks=(1, 2))
    assert report["retrieval_at_1"] == pytest.approx(2 / 3)
    assert report["retrieval_at_2"] == 1
    assert report["retrieval_median_rank"] == 1
    # Of the targets, 0 finds 10, 40 has 70 and 10 nearer than 85, 90 has 85 nearer than 70.
    assert report["reverse_retrieval_at_1"] == pytest.approx(1 / 3)
    assert report["reverse_retrieval_median_rank"] == 2


def test_copies_of_a_target_are_right():
    target, groups = unit(0, 0, 90), torch.tensor([5, 5, 6])
    assert retrieval_ranks(unit(3, 3, 80), target).tolist() == [1, 1, 0]
    assert retrieval_ranks(unit(3, 3, 80), target, groups).tolist() == [0, 0, 0]
    assert retrieval_ranks(unit(80, 3, 80), target, groups).tolist() == [1, 0, 0]


def test_collapsed_embeddings_find_nothing():
    same = torch.ones(6, 4)
    assert retrieval_ranks(same, same).tolist() == [5] * 6
    assert retrieval_report(same, same)["retrieval_at_1"] == 0


def test_chunks_change_nothing(monkeypatch):
    predicted, target = torch.randn(2, 40, 6)
    groups = torch.randint(0, 30, (40,))
    whole = retrieval_ranks(predicted, target, groups)
    monkeypatch.setattr(embedding_retrieval, "_CHUNK_ELEMENTS", 100)
    assert torch.equal(retrieval_ranks(predicted, target, groups), whole)


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((1, 4), (1, 4)), ((3,), (3,))])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="two \\(n >= 2, width\\) matrices"):
        retrieval_ranks(*(torch.ones(shape) for shape in shapes))
