import numpy as np
import pytest
import torch
from PIL import Image

from hf_jepa.visualization.latent_decoder import LatentDecoder, train_decoder
from hf_jepa.visualization.planning import (
    plot_distance_maps,
    plot_energy_landscape,
    plot_imagination,
    save_episode_animation,
)


def frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def inked(path):
    """Whether a picture is more than one colour."""
    return np.asarray(Image.open(path).convert("RGB")).std() > 5


@pytest.mark.parametrize("channels", [1, 3])
def test_imagination(tmp_path, channels):
    path = plot_imagination(
        frames(2, 4, 16, 16, channels), np.random.rand(2, 4, 16, 16, channels), tmp_path / "a" / "imagination.png"
    )
    assert inked(path)
    with pytest.raises(ValueError, match="must both be"):
        plot_imagination(frames(2, 4, 16, 16, 3), frames(2, 3, 16, 16, 3), path)


def test_distance_maps(tmp_path):
    maps = np.random.rand(2, 3, 10, 12)
    background = frames(16, 16, 3)
    assert inked(plot_distance_maps(maps, np.array([[0.1, 0.2], [0.7, 0.9]]), background, tmp_path / "d.png", "abc"))
    with pytest.raises(ValueError, match="titles"):
        plot_distance_maps(maps, np.zeros((2, 2)), background, tmp_path / "d.png", "ab")


def test_energy_landscape(tmp_path):
    path = plot_energy_landscape(
        np.random.rand(2, 5, 5),
        np.linspace(-1, 1, 5),
        frames(2, 8, 8, 3),
        frames(2, 8, 8, 3),
        np.zeros((2, 2)),
        tmp_path / "e.png",
    )
    assert inked(path)


def test_animation_shows_every_step_beside_the_goal(tmp_path):
    episode = np.zeros((2, 5, 8, 8, 3), dtype=np.uint8)
    for step in range(5):
        episode[:, step, :, step] = (255, 170, 40)
    goals = np.full((2, 8, 8, 3), 60, dtype=np.uint8)
    path = save_episode_animation(episode, goals, tmp_path / "e.gif", scale=2)
    with Image.open(path) as animation:
        assert animation.n_frames == 5
        assert animation.size == (2 * (8 + 4 + 8), 2 * (8 + 4 + 8))
        for step in range(5):
            animation.seek(step)
            shown = np.asarray(animation.convert("RGB"))
            assert np.abs(shown[4, 2 * step].astype(int) - (255, 170, 40)).max() < 12
            assert np.abs(shown[4, -2].astype(int) - 60).max() < 12
    with pytest.raises(ValueError, match="one of each"):
        save_episode_animation(episode, goals[:1], path)


def test_decoder_draws_what_the_latent_knows():
    generator = torch.Generator().manual_seed(0)
    bright = torch.rand(200, 1, 1, generator=generator)
    pictures = (bright[..., None].expand(-1, 3, 16, 16) * 255).to(torch.uint8)
    decoder = train_decoder(bright, pictures, num_steps=300, learning_rate=1e-2, hidden_size=32)
    with torch.no_grad():
        drawn = decoder(torch.tensor([[[[0.2]]], [[[0.9]]]]))
    assert drawn.shape == (2, 1, 3, 16, 16)
    assert abs(drawn[0].mean() - 0.2) < 0.08
    assert abs(drawn[1].mean() - 0.9) < 0.08
    with pytest.raises(ValueError, match="multiple of 16"):
        LatentDecoder(4, image_size=20)
    with pytest.raises(ValueError, match="square frames"):
        train_decoder(bright, pictures[:10])
