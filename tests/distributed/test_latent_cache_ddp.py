"""Two processes that train on one cache of latents: the first fills it, the second waits and reads it whole."""

import time
from pathlib import Path

import numpy as np
import torch

from hf_jepa import VJepa2ACConfig, VJepa2ACModel, VJepaConfig
from hf_jepa.data import ArrayTrajectories
from hf_jepa.programs.train_world_model import cached_latents
from hf_jepa.programs.world_model_arguments import TrajectoryArguments
from hf_jepa.training import JepaTrainingArguments
from tests.processes import run_in_two_processes

LENGTHS = (3, 5, 4)


def tiny_model() -> VJepa2ACModel:
    torch.manual_seed(0)
    encoder = VJepaConfig(
        crop_size=16, patch_size=8, frames_per_clip=2, hidden_size=12, num_hidden_layers=1, num_attention_heads=2
    )
    config = VJepa2ACConfig(encoder_config=encoder, hidden_size=12, num_hidden_layers=1, num_attention_heads=2)
    return VJepa2ACModel(config)


def worker(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    draws = np.random.default_rng(0)
    frames = [draws.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8) for length in LENGTHS]
    trajectories = ArrayTrajectories([np.zeros((length - 1, 7)) for length in LENGTHS], frames)
    model, encoded = tiny_model(), []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        # The second comes while the first is at it.
        time.sleep(0.2)
        return VJepa2ACModel.encode(model, pixels)

    model.encode = encode
    args = JepaTrainingArguments(output_dir=folder / "run", use_cpu=True, report_to="none")
    data_args = TrajectoryArguments(dataset="arrays", latent_cache=str(folder / "latents"))
    cached = cached_latents(trajectories, model, data_args, args)
    read = [torch.from_numpy(cached.frames(index, np.arange(length))) for index, length in enumerate(LENGTHS)]
    torch.save((encoded, torch.cat(read), np.concatenate(frames)), folder / f"{rank}.pt")


def test_one_process_encodes_and_both_read_the_same(tmp_path: Path) -> None:
    run_in_two_processes(worker, tmp_path)
    (first, read, frames), (second, again, _) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)
    )
    assert first == list(LENGTHS)
    assert second == []
    pixels = torch.from_numpy(frames).movedim(-1, 1)
    torch.testing.assert_close(read, tiny_model().eval().encode(pixels[:, None])[:, 0])
    assert torch.equal(read, again)
