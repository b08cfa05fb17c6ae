"""What the probes of a run are fitted and scored on, and with how many neighbours."""

from collections.abc import Callable

import pytest
from datasets import Dataset

from hf_jepa import JepaTrainer
from hf_jepa.data import SeededImageDataset, eval_transform


def labelled(pictures: Dataset, labels: list[int]) -> SeededImageDataset:
    rows = pictures.remove_columns("label").add_column("label", labels)
    return SeededImageDataset(rows, eval_transform(48), label_column="label")


def test_probes_are_scored_on_the_evaluation_set(make_trainer: Callable[..., JepaTrainer], pictures: Dataset) -> None:
    # Dark is 0 and bright is 1 in what they are fitted on, the other way round in what they are scored on.
    given = {
        "probe_train_dataset": labelled(pictures, [index % 2 for index in range(24)]),
        "eval_dataset": labelled(pictures, [1 - index % 2 for index in range(24)]),
    }
    metrics = make_trainer(trainer=given, probe_num_neighbors=3).evaluate()
    assert metrics["eval_knn_accuracy"] == 0.0
    assert metrics["eval_ridge_accuracy"] == 0.0


@pytest.mark.parametrize(("neighbors", "expected"), [(1, 1.0), (24, 23 / 24)])
def test_as_many_neighbours_vote_as_are_asked(
    make_trainer: Callable[..., JepaTrainer], pictures: Dataset, neighbors: int, expected: float
) -> None:
    # One picture of a class of its own: it is its own nearest neighbour, and outvoted by all.
    alone = labelled(pictures, [int(index == 5) for index in range(24)])
    given = {"probe_train_dataset": alone, "eval_dataset": alone}
    metrics = make_trainer(trainer=given, probe_num_neighbors=neighbors).evaluate()
    assert metrics["eval_knn_accuracy"] == pytest.approx(expected)
