"""The picture of the map from Text to Code: what is drawn for which model, and what is refused."""

import pytest
import torch
from PIL import Image

from hf_jepa.visualization import pairs as module
from hf_jepa.visualization import plot_displacement_spectra

SPECTRA = {
    "plain": [torch.tensor([8.0, 4.0, 2.0]), torch.tensor([2.0, 1.0, 0.5])],
    "jepa": [torch.tensor([4.0, 0.4, 0.04]), torch.tensor([4.0, 0.4, 0.04])],
}


@pytest.fixture
def drawn(monkeypatch):
    """Figures that `save_figure` was given."""
    figures = []
    save = module.save_figure
    monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    return figures


def test_curves_are_the_seeds_geometric_mean(drawn, tmp_path):
    path = plot_displacement_spectra(SPECTRA, tmp_path / "new" / "map.png")
    (figure,) = drawn
    absolute, relative = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in absolute.get_lines()}
    assert lines["plain"] == pytest.approx([4.0, 2.0, 1.0])
    assert lines["jepa"] == pytest.approx([4.0, 0.4, 0.04])
    lines = {line.get_label(): line.get_ydata() for line in relative.get_lines()}
    assert lines["plain"] == pytest.approx([1.0, 0.5, 0.25])
    assert absolute.get_yscale() == relative.get_yscale() == "log"
    with Image.open(path) as picture:
        assert picture.width > 1000


def test_scores_and_cosines_stand_below(drawn, tmp_path):
    scores, cosines = {"plain": [0.4, 0.6], "jepa": [0.9, 0.9]}, {"plain": [(0.3, 0.2)] * 2, "jepa": [(0.9, -0.4)] * 2}
    plot_displacement_spectra(SPECTRA, tmp_path / "map.png", scores, cosines)
    (figure,) = drawn
    below, bars = figure.axes[2:]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([50.0, 90.0])
    assert [text.get_text() for text in bars.texts] == ["50.0", "90.0"]
    assert [label.get_text() for label in below.get_yticklabels()] == ["plain", "jepa"]
    assert [list(line.get_xdata()) for line in below.get_lines()] == [[0.2, 0.3], [-0.4, 0.9]]
    assert below.get_xlim()[0] < -0.4
    # The first model is on top.
    assert below.get_ylim()[0] > below.get_ylim()[1]


@pytest.mark.parametrize("absent", ["scores", "cosines"])
def test_either_may_be_left_out(drawn, tmp_path, absent):
    given = {"scores": {"plain": [0.4], "jepa": [0.9]}, "cosines": {"plain": [(0.3, 0.2)], "jepa": [(0.9, 0.1)]}}
    del given[absent]
    plot_displacement_spectra(SPECTRA, tmp_path / "map.png", **given)
    assert len(drawn[0].axes) == 3


@pytest.mark.parametrize(
    ("spectra", "options", "message"),
    [
        ({}, {}, "at least one model"),
        ({"plain": []}, {}, "one spectrum per seed"),
        ({"plain": [torch.tensor([1.0, float("nan")])]}, {}, "finite values"),
        ({str(number): [torch.ones(2)] for number in range(9)}, {}, "9 models; at most 8"),
        (SPECTRA, {"scores": {"plain": [0.5]}}, "`scores` names plain; it must name plain, jepa"),
        (SPECTRA, {"cosines": {"jepa": [(1, 0)], "plain": [(1, 0)]}}, "in this order"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, spectra, options, message):
    with pytest.raises(ValueError, match=message):
        plot_displacement_spectra(spectra, tmp_path / "map.png", **options)
    assert not (tmp_path / "map.png").exists()
