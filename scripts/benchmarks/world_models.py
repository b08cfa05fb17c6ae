"""
Speed of world models, as ratios in one run: V-JEPA 2-AC's rollout with keys and values kept over time against the same
rollout without, and one planning step against the form of the released code (a stored dense mask, one environment at a
time, the whole past again at every step).

    python -m scripts.benchmarks.world_models                     # everything
    python -m scripts.benchmarks.world_models --parts rollout --rounds 9
    python -m scripts.benchmarks.world_models --device cuda --output model_cards/comparisons/benchmark_world_gpu.json

Contestants take turns, and medians of each round's ratio are reported: processor time on a CPU, so that neighbours do
not count. What they compute is compared before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from hf_jepa import VJepa2ACConfig, VJepa2ACModel, VJepaConfig
from hf_jepa.models.vjepa.layers_vjepa import rotate
from hf_jepa.models.vjepa2_ac.predictor_vjepa2_ac import VJepa2ACAttention
from hf_jepa.planning import CEMPlanner, PlanTrace
from scripts.benchmarks.image import table
from scripts.benchmarks.report import header, write
from scripts.benchmarks.video import finished, take_turns

PARTS = ("rollout", "planning")
HORIZONS = (2, 4, 8)
# The predictor, and candidates per example: on a GPU the released sizes.
SIZES = {
    "cpu": {"hidden": 192, "layers": 6, "heads": 6, "grid": 8, "latent": 192, "candidates": 8},
    "cuda": {"hidden": 1024, "layers": 24, "heads": 16, "grid": 16, "latent": 1408, "candidates": 100},
}
# Candidates in one call of the model: on a CPU what its cache holds, on a GPU all.
MAX_ROLLOUTS = {"cpu": 16, "cuda": None}
ENVIRONMENTS, ITERATIONS, PLANNING_HORIZON = 4, 3, 2


class DenseMaskAttention(VJepa2ACAttention):
    """The released form: every query against every key, and a mask cut from one that the model keeps."""

    mask: torch.Tensor

    def forward(self, hidden_states, rotary, frame_length, past):
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        tokens = hidden_states.shape[1]
        output = scaled_dot_product_attention(query, key, value, self.mask[:tokens, :tokens], scale=self.scaling)
        return self.proj(output.transpose(1, 2).flatten(2)), (key, value)


def build_model(device: str) -> VJepa2ACModel:
    size = SIZES[device]
    torch.manual_seed(0)
    encoder = VJepaConfig.from_size(
        "tiny", crop_size=16 * size["grid"], hidden_size=size["latent"], num_hidden_layers=1
    )
    config = VJepa2ACConfig(
        encoder_config=encoder,
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        initializer_range=0.05,
    )
    return VJepa2ACModel(config).to(device).eval()


def as_released(model: VJepa2ACModel) -> VJepa2ACModel:
    """The same weights behind a stored dense mask, without keys and values of the past."""
    size, config = SIZES[model.device.type], model.config
    frames = torch.arange(config.max_steps, device=model.device)
    frames = frames.repeat_interleave(size["grid"] ** 2 + config.tokens_per_step)
    mask = frames[:, None] >= frames
    dense = build_model(model.device.type)
    dense.load_state_dict(model.state_dict())
    for layer in dense.predictor.layer:
        layer.attention.__class__ = DenseMaskAttention
        layer.attention.mask = mask
    dense.rollout = partial(dense.rollout, use_cache=False)
    return dense


def draw_latents(model: VJepa2ACModel, batch: int, generator: torch.Generator) -> torch.Tensor:
    width = model.config.latent_size
    tokens = SIZES[model.device.type]["grid"] ** 2
    return layer_norm(torch.randn(batch, 1, tokens, width, generator=generator), (width,)).to(model.device)


def clock_of(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" else time.perf_counter


@torch.no_grad()
def bench_rollout(device: str, rounds: int) -> list[dict]:
    """One example and its candidates, one context frame."""
    model, generator, rows = build_model(device), torch.Generator().manual_seed(0), []
    latents, states = draw_latents(model, 1, generator), torch.zeros(1, 1, 7, device=device)
    for horizon in HORIZONS:
        actions = 0.05 * torch.randn(SIZES[device]["candidates"], horizon, 7, generator=generator)
        actions = actions.to(device)
        functions = {
            name: finished(partial(model.rollout, latents, actions, states, use_cache=use_cache), device)
            for name, use_cache in (("cache", True), ("no cache", False))
        }
        apart = (functions["cache"]() - functions["no cache"]()).abs().max().item()
        if apart > (1e-5 if device == "cpu" else 1e-3):
            raise SystemExit(f"Rollouts with and without a cache differ by {apart:.1e}.")
        found = take_turns(functions, rounds, clock_of(device))
        rows.append(
            {
                "horizon": horizon,
                "candidates": len(actions),
                "cache_seconds": found["cache"]["seconds"],
                "no_cache_seconds": found["no cache"]["seconds"],
                "speedup": found["no cache"]["time_over_ours"],
                "difference": apart,
            }
        )
        print(f"  rollout, horizon {horizon}", file=sys.stderr, flush=True)
    return rows


@torch.no_grad()
def bench_planning(device: str, rounds: int) -> list[dict]:
    """One replanning of every environment by V-JEPA 2-AC's planner, from the same noise."""
    generator = torch.Generator().manual_seed(0)
    ours = build_model(device)
    theirs = as_released(ours)
    samples = 2 * SIZES[device]["candidates"]
    planner = CEMPlanner.vjepa2_ac(
        horizon=PLANNING_HORIZON,
        num_samples=samples,
        num_iterations=ITERATIONS,
        num_elites=min(10, samples // 2),
        max_rollouts=MAX_ROLLOUTS[device],
    )
    latents, goals = (draw_latents(ours, ENVIRONMENTS, generator) for _ in range(2))
    states = torch.zeros(ENVIRONMENTS, 1, 7, device=device)
    noise = torch.randn(ITERATIONS, ENVIRONMENTS, samples, PLANNING_HORIZON, 7, generator=generator).to(device)

    def plan(model: VJepa2ACModel, chosen: slice) -> tuple[torch.Tensor, PlanTrace]:
        given = {"noise": noise[:, chosen], "states": states[chosen], "return_trace": True}
        return planner.plan(model, latents[chosen], goals[chosen, 0], **given)

    functions = {
        "hf_jepa": lambda: [plan(ours, slice(None))],
        "as released": lambda: [plan(theirs, slice(index, index + 1)) for index in range(ENVIRONMENTS)],
    }
    functions = {name: finished(function, device) for name, function in functions.items()}
    # Of the first iteration: rounding may exchange elites whose costs are all but equal, and plans part from there.
    costs = [torch.cat([trace.costs[0] for _, trace in function()]) for function in functions.values()]
    apart = (costs[0] - costs[1]).abs().max().item()
    if apart > (1e-5 if device == "cpu" else 1e-3):
        raise SystemExit(f"The costs of the same candidates differ by {apart:.1e}.")
    shape = {"environments": ENVIRONMENTS, "samples": samples, "iterations": ITERATIONS, "horizon": PLANNING_HORIZON}
    found = take_turns(functions, rounds, clock_of(device))
    return [{**shape, "contestant": name, **row, "cost_difference": apart} for name, row in found.items()]


def render(results: dict) -> str:
    blocks = []
    if rows := results.get("rollout"):
        body = [
            [str(r["horizon"]), f"{r['cache_seconds']:.3f}", f"{r['no_cache_seconds']:.3f}", f"{r['speedup']:.2f}x"]
            for r in rows
        ]
        header = ["horizon", "cache, seconds", "no cache, seconds", "speed-up"]
        blocks.append(table(f"V-JEPA 2-AC rollout, {rows[0]['candidates']} candidates", header, body))
    if rows := results.get("planning"):
        body = [[r["contestant"], f"{r['seconds']:.3f}", f"{r['time_over_ours']:.2f}x"] for r in rows]
        first = rows[0]
        title = (
            f"V-JEPA 2-AC planning step, {first['environments']} environments, {first['samples']} samples, "
            f"{first['iterations']} iterations, horizon {first['horizon']}"
        )
        blocks.append(table(title, ["contestant", "seconds", "time / ours"], body))
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=list(SIZES), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("model_cards/comparisons/benchmark_world_models.json"))
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    results = header(arguments.threads, gpu=torch.cuda.get_device_name() if arguments.device == "cuda" else None)
    results["sizes"] = SIZES[arguments.device]
    parts = {"rollout": bench_rollout, "planning": bench_planning}
    for part in [name for name in PARTS if name in arguments.parts]:
        results[part] = parts[part](arguments.device, arguments.rounds)
        # After each part, so that a run that is cut short loses no more than one.
        write(results, arguments.output)
    print(render(results))
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
