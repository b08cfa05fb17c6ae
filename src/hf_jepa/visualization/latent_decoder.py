from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LatentDecoder(nn.Module):
    """
    Draws what a latent stands for: a linear layer and transposed convolutions. Trained by itself on a frozen model's
    latents, so that the model never learns to please it; what it cannot draw is not in the latent, or beyond it.

    Args:
        width (`int`): Of a latent frame, tokens laid end to end.
        image_size (`int`): Of the square frames, a multiple of 16.
        num_channels (`int`): Of the frames.
        hidden_size (`int`): Channels of the coarsest map; halved at every doubling of the size.
    """

    def __init__(self, width: int, image_size: int = 64, num_channels: int = 3, hidden_size: int = 64) -> None:
        super().__init__()
        if image_size % 16:
            raise ValueError(f"`image_size` must be a multiple of 16, got {image_size}.")
        self.coarse = image_size // 16
        sizes = [max(hidden_size // 2**step, 8) for step in range(4)]
        self.expand = nn.Linear(width, sizes[0] * self.coarse**2)
        layers: list[nn.Module] = []
        for before, after in zip(sizes, [*sizes[1:], num_channels], strict=True):
            layers += [nn.GELU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """`(..., tokens, width)` latents to `(..., channels, height, width)` pixels, about [0, 1]."""
        flat = latents.flatten(-2).flatten(0, -2)
        maps = self.expand(flat).unflatten(1, (-1, self.coarse, self.coarse))
        return self.layers(maps).unflatten(0, latents.shape[:-2])


def train_decoder(
    latents: Tensor,
    frames: Tensor,
    num_steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    hidden_size: int = 64,
    seed: int = 0,
) -> LatentDecoder:
    """
    Fits a [`LatentDecoder`] to pairs of latents and the frames they were made from.

    Pixels are weighed by how far they are from the mean picture, so that a small thing that moves counts beside a
    large background that never changes.

    Args:
        latents (`(n, tokens, width)` float32): Of a frozen encoder.
        frames (`(n, channels, size, size)` uint8): The frames.
        num_steps, batch_size (`int`), learning_rate (`float`): AdamW with cosine decay.
        hidden_size (`int`): Of the decoder.
        seed (`int`): Of weights and draws.

    Raises:
        ValueError: If the numbers of latents and frames differ, or frames are not square.
    """
    if len(latents) != len(frames) or frames.ndim != 4 or frames.shape[2] != frames.shape[3]:
        raise ValueError(
            f"{tuple(latents.shape)} latents need as many square frames (n, channels, size, size), got "
            f"{tuple(frames.shape)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = LatentDecoder(latents.shape[1:].numel(), frames.shape[-1], frames.shape[1], hidden_size)
        picks = torch.randint(len(latents), (num_steps, batch_size))
    decoder.to(latents.device)
    mean = frames[:: max(1, len(frames) // 500)].float().mean(0) / 255
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for chosen in picks:
        wanted = frames[chosen].float() / 255
        weight = 0.05 + (wanted - mean).abs().mean(1, keepdim=True)
        drawn = decoder(latents[chosen])
        loss = (weight.to(drawn.device) * F.mse_loss(drawn, wanted.to(drawn.device), reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return decoder.eval()
