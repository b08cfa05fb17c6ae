"""Tubes as a recipe asks for them."""

from types import SimpleNamespace

import torch

from hf_jepa.data.clip_batches import clip_collator
from hf_jepa.models.vjepa import VJepaConfig


def test_a_share_of_every_frame_is_hidden():
    config = VJepaConfig(crop_size=32, patch_size=8, frames_per_clip=4, tubelet_size=2)
    model = SimpleNamespace(config=SimpleNamespace(encoder_config=config))
    samples = [{"pixel_values_videos": torch.zeros(4, 3, 32, 32), "draw": draw} for draw in range(3)]
    batch = clip_collator(model, num_frames=[4], tube_ratio=0.75)(samples)
    (context,), (target,) = batch["context_mask"], batch["target_mask"]
    assert (context.shape, target.shape) == ((3, 8), (3, 24))
    assert torch.equal(context[:, :4] + 16, context[:, 4:])
