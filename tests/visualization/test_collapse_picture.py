import math

import pytest
from matplotlib.collections import PathCollection
from PIL import Image

import hf_jepa.visualization.collapse as collapse
from hf_jepa.visualization import plot_collapse


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, caught on their way to the file."""
    drawn = []
    save = collapse.save_figure
    monkeypatch.setattr(collapse, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    return drawn


def run(arm, knn, stds, **more):
    return {"arm": arm, "group": "plain", "knn": knn, "projector_std": stds[-1], "curve": list(stds), **more}


def baseline(arm, knn, **more):
    return {"arm": arm, "group": "plain", "knn": knn, **more}


RUNS = [
    baseline("pixels", 0.4),
    baseline("untrained", 0.2, projector_std=0.4),
    run("nothing", 0.1, [0.4, 0.04, 0.001], points=[(0.001, 0.0), (-0.001, 0.0)]),
    run("SIGReg", 0.5, [0.4, 0.6, 0.9], points=[(2.0, 1.0), (-2.0, -1.0), (0.0, 0.0)]),
    run("SIGReg", 0.6, [0.3, 0.6, 0.8]),
]


def test_what_is_drawn_is_what_was_measured(figures, tmp_path):
    path = plot_collapse(RUNS, tmp_path / "new" / "collapse.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    clouds, (curves, ends) = figures[0].axes[:2], figures[0].axes[2:]

    names = [axis.get_legend().get_texts()[0].get_text() for axis in clouds]
    assert names == ["nothing", "SIGReg"]
    assert len({axis.get_xlim() for axis in clouds}) == 1
    points = [[c.get_offsets().tolist() for c in axis.collections if isinstance(c, PathCollection)] for axis in clouds]
    assert points == [[[[0.001, 0.0], [-0.001, 0.0]]], [[[2.0, 1.0], [-2.0, -1.0], [0.0, 0.0]]]]

    assert [list(map(float, line.get_ydata())) for line in curves.lines] == [run["curve"] for run in RUNS[2:]]
    colors = [line.get_color() for line in curves.lines]
    assert colors[1] == colors[2] != colors[0]

    marks = {tuple(map(float, line.get_xydata()[0])) for line in ends.lines if len(line.get_xydata()) == 1}
    assert marks == {(0.4, 20.0), (0.001, 10.0), (0.9, 50.0), (0.8, 60.0)}
    assert {text.get_text().strip() for text in ends.texts} == {"collapsed", "pixels", "untrained"}


def test_collapsed_is_relative_to_the_untrained_network(figures, tmp_path):
    for std in (0.4, 0.2):
        runs = [RUNS[0], baseline("untrained", 0.2, projector_std=std), *RUNS[2:]]
        plot_collapse(runs, tmp_path / "collapse.png", collapsed_below=0.1)
        (shade,) = figures[-1].axes[-1].patches
        assert shade.get_x() + shade.get_width() == pytest.approx(0.1 * std)
    # Without an untrained network the first steps stand in.
    plot_collapse(RUNS[2:], tmp_path / "collapse.png")
    (shade,) = figures[-1].axes[-1].patches
    assert shade.get_x() + shade.get_width() == pytest.approx(0.05 * (0.4 + 0.4 + 0.3) / 3)


def test_complete_collapse_can_be_drawn(tmp_path):
    runs = [run("nothing", 0.1, [0.4, 0.0], points=[(0.0, 0.0)] * 3)]
    assert plot_collapse(runs, tmp_path / "collapse.png").exists()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no trained run"),
        (RUNS[:2], "no trained run"),
        ([run("SIGReg", math.nan, [0.4])], "NaN"),
        ([run("SIGReg", 0.1, [0.4, math.inf])], "NaN or infinite"),
        ([run(str(i), 0.1, [0.4]) for i in range(9)], "at most 8"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(runs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_collapse(runs, tmp_path / "collapse.png")
    assert not (tmp_path / "collapse.png").exists()
