"""Hidden-part retrieval and its pixel baselines."""

import pytest
import torch
from transformers import IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.evaluation import hidden_part_retrieval, pixel_retrieval, rank_of_truth

CONTEXT, HIDDEN = torch.tensor([0, 1, 4, 5]), torch.tensor([10, 11])


@pytest.fixture
def model() -> IJepaForPreTraining:
    encoder = IJepaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_channels=1,
    )
    return IJepaForPreTraining(
        IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=16, predictor_num_hidden_layers=1)
    )


def test_order_and_rank(model):
    order = hidden_part_retrieval(model.train(), torch.randn(25, 1, 16, 16), CONTEXT, HIDDEN, num_candidates=10)
    assert order.shape == (20, 10)
    assert torch.equal(order[:10].sort(dim=1).values, torch.arange(10).expand(10, -1))
    assert torch.equal(order[10:].sort(dim=1).values, torch.arange(10, 20).expand(10, -1))
    assert model.training
    ranks = rank_of_truth(order)
    assert all(order[row, rank] == row for row, rank in enumerate(ranks.tolist()))


def test_a_perfect_predictor_is_always_first(model, monkeypatch):
    images = torch.randn(20, 1, 16, 16)
    monkeypatch.setattr(model, "predict", lambda *inputs: perfect(model, *inputs))
    order = hidden_part_retrieval(model, images, CONTEXT, HIDDEN, num_candidates=10)
    assert (rank_of_truth(order) == 0).all()


def perfect(model, pixel_values, context_mask, target_mask):
    context, _, targets = IJepaForPreTraining.predict(model, pixel_values, context_mask, target_mask)
    return context, targets, targets


def test_pixel_baselines_solve_what_pixels_tell(model):
    """Where the hidden block is a linear function of the visible one both baselines find it; in noise neither does."""
    bank, images = (torch.randn(n, 1, 16, 16) for n in (600, 100))
    noise = pixel_retrieval(bank, images, CONTEXT, HIDDEN, patch_size=4, num_candidates=50)
    for pixels in (bank, images):
        pixels[:, :, 8:12, 8:16] = -pixels[:, :, 0:4, 0:8]
    tied = pixel_retrieval(bank, images, CONTEXT, HIDDEN, patch_size=4, num_candidates=50, penalty=1e-4)
    for name in ("nearest_neighbour", "ridge"):
        assert (rank_of_truth(noise[name]) == 0).float().mean() < 0.1
    assert (rank_of_truth(tied["ridge"]) == 0).float().mean() > 0.95
    assert rank_of_truth(tied["nearest_neighbour"]).float().mean() < 20


def test_too_few_images(model):
    with pytest.raises(ValueError, match="got 5 images"):
        hidden_part_retrieval(model, torch.randn(5, 1, 16, 16), CONTEXT, HIDDEN)
