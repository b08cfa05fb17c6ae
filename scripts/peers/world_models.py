"""
Speed of LeWorldModel here and in torch-world, in one run: a training step, and a plan by the cross-entropy method.

    python -m scripts.peers.world_models
    python -m scripts.peers.world_models --rounds 1 --samples 20      # does it run?

Both models have the published sizes (ViT-tiny of twelve layers, projectors of 2048, six predictor layers of 16 x 64
over three frames), the same batch, AdamW and clipping, and both planners the same samples, elites, iterations, horizon
and bounds. They take turns; medians of processor seconds, and of each round's ratio, on one thread. torch-world is
installed from PyPI into outputs/world-peers-venv on the first run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_jepa import LatentWorldModel, LatentWorldModelConfig
from hf_jepa.planning import CEMPlanner
from scripts.benchmarks.video import take_turns
from scripts.peers.environment import run_with_peers

PEER = "torch-world==0.2.0"
WIDTH, LAYERS, HEADS, PATCH, ACTION, FRAMES = 192, 12, 3, 14, 10, 4
BOUND, HORIZON = 3.0, 5


def build_ours(image_size: int) -> LatentWorldModel:
    encoder = {
        "model_type": "vit",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "patch_size": PATCH,
        "image_size": image_size,
    }
    statistics = {"action_mean": [0.0] * 2, "action_std": [1.0] * 2}
    bounds = {"action_low": [-BOUND] * 2, "action_high": [BOUND] * 2}
    return LatentWorldModel(LatentWorldModelConfig.from_preset("lewm", encoder_config=encoder, **statistics, **bounds))


def build_peer(image_size: int) -> nn.Module:
    from torch_world.models import LeWM
    from torch_world.nn import CLSEncoder

    encoder = CLSEncoder(img_size=image_size, patch_size=PATCH, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS)
    return LeWM(encoder, action_dim=ACTION, embed_dim=WIDTH)


def training_step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    """LeWM's: AdamW on everything, global norm clipped at 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=1e-3)

    def step() -> None:
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def bench_training(ours: LatentWorldModel, peer: nn.Module, frames: Tensor, rounds: int) -> dict:
    actions = torch.randn(len(frames), FRAMES, ACTION)
    functions = {
        "hf_jepa": training_step(ours.train(), lambda: ours(frames, actions).loss),
        "torch-world": training_step(peer.train(), lambda: peer(frames, actions)["loss"]),
    }
    return take_turns(functions, rounds, time.process_time)


@torch.no_grad()
def bench_planning(ours: LatentWorldModel, peer: nn.Module, frames: Tensor, sizes: dict, rounds: int) -> dict:
    from torch_world.planning import CEM

    ours.eval()
    peer.eval()
    samples, elites, iterations = sizes["samples"], sizes["elites"], sizes["iterations"]
    planner = CEMPlanner(horizon=HORIZON, num_samples=samples, num_elites=elites, num_iterations=iterations)
    other = CEM(HORIZON, ACTION, samples, elites, iterations, bounds=(-BOUND, BOUND))
    now, goal = ours.encode(frames[:1, :1]), ours.encode_goal(frames[:1, -1:])
    peer_now, peer_goal = peer.encode(frames[:1, :1]), peer.encode(frames[:1, -1:])[:, 0]
    functions = {
        "hf_jepa": lambda: planner.plan(ours, now, goal),
        "torch-world": lambda: other(peer, peer_now, peer_goal),
    }
    shapes = {name: tuple(function().shape) for name, function in functions.items()}
    if set(shapes.values()) != {(1, HORIZON, ACTION)}:
        raise SystemExit(f"The planners do not plan the same: {shapes}.")
    return take_turns(functions, rounds, time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image_size", type=int, default=56)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("model_cards/comparisons/peers_world_models.json"))
    arguments = parser.parse_args()
    run_with_peers((PEER,), Path("outputs") / "world-peers-venv")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours, peer = build_ours(arguments.image_size), build_peer(arguments.image_size)
    frames = torch.randn(arguments.batch_size, FRAMES, 3, arguments.image_size, arguments.image_size)
    sizes = {"samples": arguments.samples, "elites": arguments.samples // 10, "iterations": arguments.iterations}
    results = {
        "command": " ".join(["python -m scripts.peers.world_models", *sys.argv[1:]]),
        "environment": {"torch": torch.__version__, "torch-world": version("torch-world"), "num_threads": 1},
        "sizes": {**sizes, "horizon": HORIZON, "image_size": arguments.image_size, "batch": arguments.batch_size},
        "parameters": {
            "hf_jepa": sum(parameter.numel() for parameter in ours.parameters()),
            "torch-world": sum(parameter.numel() for parameter in peer.parameters()),
        },
        "training_step": bench_training(ours, peer, frames, arguments.rounds),
        "plan": bench_planning(ours, peer, frames, sizes, arguments.rounds),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    for part in ("training_step", "plan"):
        for name, found in results[part].items():
            print(f"{part:14} {name:12} {found['seconds']:.3f} s  {found['time_over_ours']:.2f} x ours")
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
