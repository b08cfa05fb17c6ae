import pytest
import torch
import torch.nn.functional as F

from hf_jepa.objectives import distance, normalize_targets


@pytest.mark.parametrize(
    ("loss_type", "values"), [("smooth_l1", [0.125, 1.5]), ("l2", [0.25, 4.0]), ("l1", [0.5, 2.0])]
)
def test_distances_by_hand(loss_type, values):
    result = distance(torch.tensor([0.5, -2.0]), torch.zeros(2), loss_type)
    assert result.tolist() == values


def test_half_precision_is_raised():
    assert distance(torch.ones(2, dtype=torch.bfloat16), torch.zeros(2)).dtype == torch.float32


def test_targets_are_normalised_over_features():
    features = torch.randn(2, 3, 8) * 5 + 2
    torch.testing.assert_close(normalize_targets(features), F.layer_norm(features, (8,), eps=1e-5))
    assert normalize_targets(features.to(torch.bfloat16)).dtype == torch.float32


def test_faults():
    with pytest.raises(ValueError, match="differ in shape"):
        distance(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="'huber'"):
        distance(torch.zeros(2), torch.zeros(2), "huber")
