"""Pictures of streams and ranked texts: they are written, show what they should, and refuse what does not fit."""

import pytest
import torch

from hf_jepa.visualization import plot_ranked_texts, plot_stream

FRAMES = torch.randint(0, 255, (2, 3, 12, 20), dtype=torch.uint8)
SHIFT = torch.rand(9)


@pytest.fixture
def drawn(monkeypatch):
    """What the last figure says: texts, and the curve's values."""
    from hf_jepa.visualization import stream

    found = {}

    def keep(figure, path):
        axes = figure.axes
        found["labels"] = [axis.get_xlabel() for axis in axes]
        found["curve"] = axes[-1].lines[0].get_ydata() if axes[-1].lines else None
        found["dashes"] = [line.get_xdata()[0] for line in axes[-1].lines if line.get_linestyle() == "--"]
        return saved(figure, path)

    saved = stream.save_figure
    monkeypatch.setattr(stream, "save_figure", keep)
    return found


def test_a_stream_shows_its_curve_moments_and_texts(tmp_path, drawn):
    seconds = [0.5 * place for place in range(9)]
    path = plot_stream(FRAMES, seconds, SHIFT, [2, 6], [0, 5], ["a dog", "two cats"], tmp_path / "stream.png")
    assert path.stat().st_size > 5000
    assert drawn["labels"][:2] == ["a dog", "two cats"]
    assert drawn["curve"] == pytest.approx(SHIFT.tolist())
    assert drawn["dashes"] == [2.5]


def test_ranked_texts_name_the_right_one_only_where_it_is_missed(tmp_path, drawn):
    path = plot_ranked_texts(FRAMES, [["dog", "cat"], ["cat", "cow"]], ["dog", "cow"], tmp_path / "ranked.png")
    assert path.stat().st_size > 3000
    assert drawn["labels"] == ["dog\ncat", "cat\ncow\n(cow)"]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="got 9 for 3 windows"):
        plot_stream(FRAMES, [0, 1, 2], SHIFT, [2, 6], [0, 5], ["a", "b"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="2 windows, 2 frames and 1 texts"):
        plot_stream(FRAMES, range(9), SHIFT, [2, 6], [0, 5], ["a"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="2 images, 1 rankings"):
        plot_ranked_texts(FRAMES, [["a"]], ["a", "b"], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
