import pytest
import torch

from hf_jepa.evaluation import class_mean_recall


def test_class_mean_recall_equals_its_definition():
    scores, labels = torch.randn(200, 12), torch.randint(0, 9, (200,))  # classes 9 to 11 never occur
    recalls = []
    for label in labels.unique().tolist():
        rows = [row for row in range(200) if labels[row] == label]
        found = [sorted(range(12), key=lambda c, r=row: -float(scores[r, c]))[:5].count(label) for row in rows]
        recalls.append(sum(found) / len(rows))
    assert class_mean_recall(scores, labels) == pytest.approx(sum(recalls) / len(recalls))
    assert class_mean_recall(scores, labels, k=12) == 1


def test_rare_classes_count_as_much_as_frequent_ones():
    scores = torch.zeros(10, 3)
    scores[:, 0] = 1
    labels = torch.tensor([0] * 9 + [1])
    assert class_mean_recall(scores, labels, k=1) == 0.5


def test_bad_input_is_named():
    scores, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="labels"):
        class_mean_recall(scores, labels[:3])
    with pytest.raises(ValueError, match=r"integers in 0\.\.2"):
        class_mean_recall(scores, labels + 1)
    with pytest.raises(ValueError, match="NaN"):
        class_mean_recall(scores * torch.nan, labels)
    with pytest.raises(ValueError, match="k must be between 1 and the 3 classes, got 5"):
        class_mean_recall(scores, labels)
