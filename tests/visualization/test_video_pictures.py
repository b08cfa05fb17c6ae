import numpy as np
import pytest
import torch
from PIL import Image

import hf_jepa.visualization.video as video
from hf_jepa.visualization import plot_surprise, plot_video_pca


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, caught on their way to the file."""
    drawn = []
    save = video.save_figure
    monkeypatch.setattr(video, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    return drawn


def pictures(figure) -> list[np.ndarray]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def test_strips_show_the_last_frame_of_each_slot_over_its_features(figures, tmp_path):
    frames = torch.arange(8) / 8
    videos = frames.view(1, 8, 1, 1, 1).expand(2, -1, 3, 4, 4)
    features = torch.randn(2, 4 * 4, 6, generator=torch.Generator().manual_seed(0))
    path = plot_video_pca(videos, features, (4, 2, 2), tmp_path / "pca.png", max_videos=1, max_slots=3)
    assert Image.open(path).format == "PNG"
    shown = pictures(figures[0])
    assert len(shown) == 6
    # Slots 0, 2 and 3 of 4: first and last are always drawn.
    assert [float(picture[0, 0, 0]) for picture in shown[:3]] == pytest.approx([1 / 8, 5 / 8, 7 / 8])
    colors = video.pca_colors(features).view(2, 4, 2, 2, 3)
    for picture, slot in zip(shown[3:], (0, 2, 3), strict=True):
        np.testing.assert_allclose(picture[::2, ::2], colors[0, slot].numpy())


def test_one_basis_for_all_times_keeps_a_things_colour(figures, tmp_path):
    # A thing with features of its own moves one column per slot.
    features = torch.zeros(1, 3, 1, 3, 5)
    for slot in range(3):
        features[0, slot, 0, slot] = torch.tensor([9.0, 1, 0, 0, 0])
    features += 0.01 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    plot_video_pca(torch.zeros(1, 3, 1, 6, 6), features.flatten(1, 3), (3, 1, 3), tmp_path / "p.png")
    maps = pictures(figures[0])[3:]
    colours = [maps[slot][0, 2 * slot, 0] for slot in range(3)]
    others = [maps[slot][0, 2 * ((slot + 1) % 3), 0] for slot in range(3)]
    assert max(colours) - min(colours) < 0.1
    assert min(colours) - max(others) > 0.8 or min(others) - max(colours) > 0.8


def test_normalised_clips_are_stretched_as_a_whole(figures, tmp_path):
    videos = torch.tensor([-2.0, 0.0, 2.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 4, 4)
    features = torch.randn(1, 3, 4)
    plot_video_pca(videos, features, (3, 1, 1), tmp_path / "p.png")
    assert [float(picture[0, 0, 0]) for picture in pictures(figures[0])[:3]] == [0, 0.5, 1]


def test_curves_and_the_violation_are_drawn_where_they_are(figures, tmp_path):
    videos = torch.zeros(2, 8, 1, 4, 6)
    videos[1, 5] = 1.0
    energy = torch.tensor([[torch.nan, 0.2, 0.2, 0.3], [torch.nan, 0.2, 0.9, 0.4]])
    path = plot_surprise(videos, energy, tmp_path / "s.png", ["possible", "impossible"], violation=2)
    assert Image.open(path).format == "PNG"
    (figure,) = figures
    curve = figure.axes[0]
    assert [text.get_text() for text in curve.get_legend().get_texts()] == ["possible", "impossible", "violation"]
    for line, values in zip(curve.lines, energy, strict=True):
        assert line.get_xdata().tolist() == [0.5, 1.5, 2.5, 3.5]
        np.testing.assert_array_equal(line.get_ydata(), values.numpy())
    (band,) = curve.patches
    assert (band.get_x(), band.get_width()) == (2, 1)
    assert [label.get_text() for label in curve.get_xticklabels()] == ["1", "3", "5", "7"]
    marked = [axis for axis in figure.axes[1:] if axis.spines["left"].get_linewidth() > 1]
    assert len(marked) == 1
    assert np.asarray(marked[0].images[0].get_array()).min() == 1  # the frame of slot 2 in the second clip
    # Each frame stands above its slot.
    for axis, slot in zip(figure.axes[1:5], range(4), strict=True):
        box, area = axis.get_position(), curve.get_position()
        assert (box.x0 + box.x1) / 2 == pytest.approx(area.x0 + area.width * (slot + 0.5) / 4, abs=1e-6)


def test_long_clips_show_the_violation_among_few_frames(figures, tmp_path):
    plot_surprise(torch.zeros(1, 64, 1, 4, 4), torch.rand(1, 32), tmp_path / "s.png", violation=13, max_slots=6)
    curve, *frames = figures[0].axes
    assert len(frames) == 6
    assert "27" in [label.get_text() for label in curve.get_xticklabels()]
    assert sum(axis.spines["left"].get_linewidth() > 1 for axis in frames) == 1


def test_what_does_not_fit_is_refused(tmp_path):
    path, videos, energy = tmp_path / "x.png", torch.zeros(2, 8, 1, 4, 4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="3 time slots do not divide clips of 8 frames"):
        plot_video_pca(videos, torch.zeros(2, 12, 4), (3, 2, 2), path)
    with pytest.raises(ValueError, match="`grid_size`"):
        plot_video_pca(videos, torch.zeros(2, 36, 4), (4, 3, 3), path)
    with pytest.raises(ValueError, match=r"`features` must have shape \(2, 16, D\)"):
        plot_video_pca(videos, torch.zeros(2, 15, 4), (4, 2, 2), path)
    with pytest.raises(ValueError, match="`videos` must be a non-empty"):
        plot_surprise(videos[0], energy, path)
    with pytest.raises(ValueError, match=r"`energy` must be a non-empty \(B, T\)"):
        plot_surprise(videos, energy[0], path)
    with pytest.raises(ValueError, match="2 clips and `energy` 1 curves"):
        plot_surprise(videos, energy[:1], path)
    with pytest.raises(ValueError, match="time slot from 0 to 3, got 4"):
        plot_surprise(videos, energy, path, violation=4)
    with pytest.raises(ValueError, match="without any"):
        plot_surprise(videos, energy * torch.nan, path)
    with pytest.raises(ValueError, match="must name 2 clips"):
        plot_surprise(videos, energy, path, labels=["one"])
    assert not list(tmp_path.iterdir())
