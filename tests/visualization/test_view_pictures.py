import pytest
import torch
from PIL import Image

import hf_jepa.visualization.views as pictures
from hf_jepa.visualization import plot_neighbours, plot_views


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, caught on their way to the file."""
    drawn = []
    save = pictures.save_figure
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    return drawn


def shown(figure):
    """Titles of the first row, and the red channel of every image by row."""
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    images = [float(axis.images[0].get_array()[..., 0].mean()) for axis in figure.axes]
    rows = [images[start : start + len(titles)] for start in range(0, len(images), len(titles))]
    return titles, rows


def test_views_are_drawn_by_image(figures, tmp_path):
    # Image i's global views are i/10 and i/10 + 0.05 bright, its local view is white.
    level = torch.arange(4).view(4, 1, 1, 1, 1) / 10
    views = torch.cat([level, level + 0.05], dim=1).expand(-1, -1, 1, 8, 8)
    path = plot_views([views, torch.ones(4, 1, 1, 4, 4)], tmp_path / "views.png", max_images=3)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    titles, rows = shown(figures[0])
    assert titles == ["global 1", "global 2", "local 1"]
    expected = [[index / 10, index / 10 + 0.05, 1.0] for index in range(3)]
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(expected))


def test_neighbours_are_the_nearest_by_cosine_without_the_query(figures, tmp_path):
    images = (torch.arange(4).view(4, 1, 1, 1) / 10).expand(4, 1, 8, 8)
    # 0 and 2 point one way (lengths differ), 1 and 3 another.
    features = torch.tensor([[1.0, 0.1], [0.0, 1.0], [9.0, 1.0], [0.3, 2.0]])
    plot_neighbours(images, features, tmp_path / "neighbours.png", num_queries=2, num_neighbours=2)
    titles, rows = shown(figures[0])
    assert titles == ["image", "nearest 1", "nearest 2"]
    torch.testing.assert_close(torch.tensor(rows), torch.tensor([[0.0, 0.2, 0.3], [0.1, 0.3, 0.2]]))


def test_faults(tmp_path):
    with pytest.raises(ValueError, match="views"):
        plot_views([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="one batch"):
        plot_views([torch.zeros(2, 2, 3, 8, 8), torch.zeros(3, 1, 3, 4, 4)], tmp_path / "a.png")
    images = torch.zeros(3, 1, 8, 8)
    with pytest.raises(ValueError, match="at least two images"):
        plot_neighbours(images, torch.zeros(2, 4), tmp_path / "a.png")
    with pytest.raises(ValueError, match="NaN"):
        plot_neighbours(images, torch.full((3, 4), torch.nan), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
