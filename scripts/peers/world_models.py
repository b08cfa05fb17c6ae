"""
Speed of LeWorldModel here and in torch-world, in one run: a training step, and a plan by the cross-entropy method.

    python -m scripts.peers.world_models
    python -m scripts.peers.world_models --rounds 1 --samples 20      # does it run?

Both models have the published sizes (ViT-tiny of twelve layers, projectors of 2048, six predictor layers of 16 x 64
over three frames), the same batch, AdamW and clipping, and both planners the same samples, elites, iterations, horizon
and bounds. They take turns; medians of processor seconds, and of each round's ratio, on one thread, and the floating
point operations of matrix products, as torch counts them. torch-world is installed from PyPI into
outputs/world-peers-venv on the first run.

Before anything is timed, both are compared on one set of weights. For that alone ours leaves out the layer norms that
LeWM's released code has at the head of every attention and MLP of the predictor and torch-world has not, torch-world's
biases of queries, keys and values are zero, where the released code has none, and nothing is dropped. Timed are both
as they come; torch-world's predictor then drops inside its MLPs alone, ours as released.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_jepa import LatentWorldModel, LatentWorldModelConfig
from hf_jepa.planning import CEMPlanner
from scripts.benchmarks.video import take_turns
from scripts.peers.environment import run_with_peers

PEER = "torch-world==0.2.0"
WIDTH, LAYERS, HEADS, PATCH, ACTION, FRAMES = 192, 12, 3, 14, 10, 4
BOUND, HORIZON = 3.0, 5
# torch-world's names of parameters, and ours.
RENAMED = (
    (r"^pos_embed$", "predictor.position_embeddings"),
    (r"^encoder\.vit\.cls_token$", "encoder.embeddings.cls_token"),
    (r"^encoder\.vit\.patch_embed\.proj", "encoder.embeddings.patch_embeddings.projection"),
    (r"^encoder\.vit\.transformer\.norm", "encoder.layernorm"),
    (r"^encoder\.vit\.transformer\.blocks\.(\d+)\.norm1", r"encoder.layers.\1.layernorm_before"),
    (r"^encoder\.vit\.transformer\.blocks\.(\d+)\.norm2", r"encoder.layers.\1.layernorm_after"),
    (r"^encoder\.vit\.transformer\.blocks\.(\d+)\.attn\.proj", r"encoder.layers.\1.attention.o_proj"),
    (r"^encoder\.vit\.transformer\.blocks\.(\d+)\.mlp\.0", r"encoder.layers.\1.mlp.fc1"),
    (r"^encoder\.vit\.transformer\.blocks\.(\d+)\.mlp\.2", r"encoder.layers.\1.mlp.fc2"),
    (r"^encoder\.vit\.transformer\.blocks\.(\d+)\.attn\.qkv", r"encoder.layers.\1.attention.qkv"),
    (r"^action_encoder\.0", "predictor.action_encoder.0"),
    (r"^action_encoder\.1\.0", "predictor.action_encoder.1"),
    (r"^action_encoder\.1\.2", "predictor.action_encoder.3"),
    (r"^predictor\.blocks\.(\d+)\.attn", r"predictor.layers.\1.attention"),
    (r"^predictor\.blocks\.(\d+)\.mlp\.0", r"predictor.layers.\1.mlp.1"),
    (r"^predictor\.blocks\.(\d+)\.mlp\.[23]", r"predictor.layers.\1.mlp.4"),
    (r"^predictor\.blocks\.(\d+)\.modulation\.1", r"predictor.layers.\1.modulation"),
    (r"^pred_proj", "prediction_projector"),
)


def build_ours(image_size: int, **changes: float) -> LatentWorldModel:
    encoder = {
        "model_type": "vit",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "patch_size": PATCH,
        "image_size": image_size,
        "layer_norm_eps": 1e-6,
    }
    statistics = {"action_mean": [0.0] * 2, "action_std": [1.0] * 2}
    bounds = {"action_low": [-BOUND] * 2, "action_high": [BOUND] * 2}
    fields = {"encoder_config": encoder, **statistics, **bounds, **changes}
    return LatentWorldModel(LatentWorldModelConfig.from_preset("lewm", **fields))


def build_peer(image_size: int, **changes: float) -> nn.Module:
    from torch_world.models import LeWM
    from torch_world.nn import CLSEncoder

    encoder = CLSEncoder(img_size=image_size, patch_size=PATCH, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS)
    return LeWM(encoder, action_dim=ACTION, embed_dim=WIDTH, **changes)


@torch.no_grad()
def share_weights(peer: nn.Module, ours: nn.Module) -> None:
    """Gives torch-world's weights to our model, after a start at which actions matter."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in peer.named_parameters():
        if ".modulation." in name:
            parameter.normal_(std=0.1, generator=generator)
        elif name.startswith("predictor.") and name.endswith("qkv.bias"):
            parameter.zero_()
    named = {}
    for name, value in peer.state_dict().items():
        for pattern, ours_name in RENAMED:
            name = re.sub(pattern, ours_name, name)
        if name == "predictor.position_embeddings":
            value = value[:, :, None]
        if name.startswith("encoder.") and ".qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                named[name.replace(".qkv.", f".{letter}_proj.")] = part
        elif not name.startswith("sigreg."):
            named[name] = value
    # torch-world's class token has no position.
    named["encoder.embeddings.position_embeddings"] = nn.functional.pad(peer.encoder.vit.pos_embed, (0, 0, 1, 0))
    missing, unexpected = ours.load_state_dict(named, strict=False)
    own = r"sigreg\.|predictor\.layers\.\d+\.(attention\.norm|mlp\.0|attention\.qkv\.bias)"
    if left := [name for name in (*missing, *unexpected) if not re.match(own, name)]:
        raise SystemExit(f"These parameters have no counterpart: {left}")
    for layer in ours.predictor.layers:
        layer.attention.norm = layer.mlp[0] = nn.Identity()


@torch.no_grad()
def compare(frames: Tensor) -> dict[str, float]:
    """The largest difference of each result on one set of weights, over the result's largest value."""
    image_size = frames.shape[-1]
    ours, peer = build_ours(image_size, predictor_dropout=0.0), build_peer(image_size, dropout=0.0)
    share_weights(peer, ours)
    actions = torch.randn(len(frames), FRAMES, ACTION)
    components, losses = ours.train()(frames, actions).loss_components, peer.train()(frames, actions)
    latents, others = ours.eval().encode(frames), peer.eval().encode(frames)
    blocks = torch.randn(len(frames), HORIZON, ACTION).clamp(-BOUND, BOUND)
    pairs = {
        "prediction_loss": (components["prediction"], losses["pred_loss"]),
        "latents": (latents[:, :, 0], others),
        "rollout": (ours.rollout(latents[:, :1], blocks)[:, :, 0], peer.rollout(others[:, :1], blocks)[:, 1:]),
        "sigreg": (components["sigreg"], losses["sigreg_loss"]),
    }
    apart = {name: ((one - other).abs().max() / other.abs().max()).item() for name, (one, other) in pairs.items()}
    # SIGReg's directions are each one's own draws.
    if any(difference > (0.05 if name == "sigreg" else 1e-4) for name, difference in apart.items()):
        raise SystemExit(f"The models do not compute the same: {apart}.")
    return apart


def take_counted_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    found = take_turns(functions, rounds, time.process_time)
    for name, function in functions.items():
        with FlopCounterMode(display=False) as counter:
            function()
        found[name]["gflop"] = counter.get_total_flops() / 1e9
    return found


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
    return take_counted_turns(functions, rounds)


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
    return take_counted_turns(functions, rounds)


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
        "differences": compare(frames),
        "training_step": bench_training(ours, peer, frames, arguments.rounds),
        "plan": bench_planning(ours, peer, frames, sizes, arguments.rounds),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    for part in ("training_step", "plan"):
        for name, found in results[part].items():
            times = f"{found['seconds']:.3f} s  {found['time_over_ours']:.2f} x ours"
            print(f"{part:14} {name:12} {times}  {found['gflop']:.0f} GFLOP")
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
