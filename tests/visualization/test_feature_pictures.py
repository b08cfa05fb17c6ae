import numpy as np
import pytest
import torch
from PIL import Image

from hf_jepa.visualization import pca_colors, plot_feature_pca, plot_prediction_similarity

GREEN = (0, 200, 0)


def test_pca_colours_are_the_leading_components_over_the_batch():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 50, 3, generator=generator) * torch.tensor([8.0, 4.0, 2.0])
    scores[:, :, 0] += torch.tensor([-3.0, 3.0]).view(2, 1)  # images differ: the components must be shared
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:, :3]
    colors = pca_colors(scores @ basis.T + 5.0)
    assert colors.shape == (2, 50, 3)
    assert colors.min() == 0
    assert colors.max() == 1
    correlation = torch.corrcoef(torch.cat([colors.flatten(0, 1), scores.flatten(0, 1)], 1).T)[:3, 3:]
    assert (correlation.abs().diagonal() > 0.95).all()


def test_pca_colours_do_not_flip_between_runs():
    features = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pca_colors(features), pca_colors(features.flip(0)).flip(0))


def test_collapsed_features_are_grey():
    torch.testing.assert_close(pca_colors(torch.full((2, 9, 4), 3.0)), torch.full((2, 9, 3), 0.5))


@pytest.mark.parametrize("features", [torch.zeros(2, 9, 2), torch.zeros(9, 4), torch.full((1, 9, 4), torch.inf)])
def test_features_without_three_components_are_refused(features):
    with pytest.raises(ValueError, match="`features`"):
        pca_colors(features)


def test_feature_map_lies_beside_its_image(tmp_path):
    images = torch.zeros(1, 3, 16, 16)
    images[:, 1] = 200 / 255
    # Left half of the patches apart from the right half along one axis: two colours, split in the middle.
    features = torch.zeros(1, 16, 4)
    features[0, :, 0] = torch.tensor([0.0, 0, 1, 1]).repeat(4)
    path = plot_feature_pca(images, features, 4, tmp_path / "pca.png")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    middle = pixels[pixels.shape[0] // 2]
    width = len(middle)
    assert tuple(middle[width // 4]) == GREEN
    left, right = middle[int(0.63 * width)], middle[int(0.88 * width)]
    assert abs(int(left[0]) - int(right[0])) == 255


def test_similarity_peaks_in_the_outlined_block(tmp_path):
    images = torch.full((2, 1, 16, 16), 128, dtype=torch.uint8)
    target_features = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    block = torch.tensor([[0, 1, 4, 5], [10, 11, 14, 15]])
    content = torch.zeros(2, 1, 32)
    content[0, 0, 3] = content[1, 0, 7] = 20.0
    target_features.scatter_add_(1, block.unsqueeze(-1).expand(-1, -1, 32), content.expand(-1, 4, -1))
    predicted = target_features.gather(1, block.unsqueeze(-1).expand(-1, -1, 32))
    path = plot_prediction_similarity(images, predicted, target_features, block, 4, tmp_path / "similarity.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 90) & (pixels[..., 1] < 60) & (pixels[..., 2] < 80)
    rows, columns = np.nonzero(red[:, : int(0.85 * red.shape[1])])  # without the colour bar
    first, second = columns < 0.5 * red.shape[1], columns > 0.5 * red.shape[1]
    assert first.sum() > 500
    assert second.sum() > 500
    assert rows[first].mean() < 0.5 * red.shape[0] < rows[second].mean()


@pytest.mark.parametrize(
    ("predicted", "features", "mask"),
    [
        (torch.zeros(2, 3, 8), torch.zeros(2, 15, 8), torch.zeros(2, 3, dtype=torch.long)),
        (torch.zeros(2, 3, 7), torch.zeros(2, 16, 8), torch.zeros(2, 3, dtype=torch.long)),
        (torch.zeros(2, 4, 8), torch.zeros(2, 16, 8), torch.zeros(2, 3, dtype=torch.long)),
        (torch.zeros(2, 3, 8), torch.zeros(2, 16, 8), torch.full((2, 3), 16)),
        (torch.full((2, 3, 8), torch.nan), torch.zeros(2, 16, 8), torch.zeros(2, 3, dtype=torch.long)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(predicted, features, mask, tmp_path):
    with pytest.raises(ValueError, match="`(predicted|target_features|target_mask)`"):
        plot_prediction_similarity(torch.zeros(2, 1, 16, 16), predicted, features, mask, 4, tmp_path / "s.png")
    with pytest.raises(ValueError, match="`features`"):
        plot_feature_pca(torch.zeros(2, 1, 16, 16), torch.zeros(2, 15, 8), 4, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
