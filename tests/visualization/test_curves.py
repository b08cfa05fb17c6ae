import math

import pytest
from PIL import Image

import hf_jepa.visualization.curves as curves
from hf_jepa.visualization import plot_training_curves


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, caught on their way to the file."""
    drawn = []
    save = curves.save_figure
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    return drawn


def panels(figure):
    return {
        axis.get_title(loc="left"): {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
        for axis in figure.axes
        if axis.get_visible()
    }


def test_only_what_was_logged_is_drawn(figures, tmp_path):
    history = [
        {"step": 1, "epoch": 0.1, "loss": 0.4, "loss_prediction": 0.3, "learning_rate": 1e-3, "target_std": 0.5},
        {"step": 2, "epoch": 0.2, "loss": 0.3, "loss_prediction": 0.2, "learning_rate": 5e-4, "rankme": 12.0},
        {"step": 2, "epoch": 0.2, "eval_knn_accuracy": 0.6, "eval_ridge_accuracy": 0.7, "eval_runtime": 3.0},
        {"step": 2, "epoch": 0.2, "train_loss": 0.35, "train_runtime": 9.0},
    ]
    path = plot_training_curves(history, tmp_path / "new" / "curves.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
    assert panels(figures[0]) == {
        "Loss": {"loss": [[1, 0.4], [2, 0.3]], "loss prediction": [[1, 0.3], [2, 0.2]]},
        "Learning rate": {"learning rate": [[1, 1e-3], [2, 5e-4]]},
        "Feature std": {"target": [[1, 0.5]]},
        "Rank of the features": {"RankMe": [[2, 12.0]]},
        "Probe accuracy": {"k-NN": [[2, 0.6]], "ridge": [[2, 0.7]]},
    }


def test_values_that_are_not_finite_are_left_out(figures, tmp_path):
    plot_training_curves([{"step": 1, "loss": 0.4}, {"step": 2, "loss": math.nan}], tmp_path / "curves.png")
    assert panels(figures[0]) == {"Loss": {"loss": [[1, 0.4]]}}


@pytest.mark.parametrize("history", [[], [{"step": 1, "epoch": 1.0}], [{"step": 1, "loss": math.inf}]])
def test_nothing_to_plot_is_an_error(history, tmp_path):
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_training_curves(history, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
