"""
Speed and memory of hf_jepa against what the machine can do and against lightly's I-JEPA parts, as ratios in one run.

    python -m scripts.benchmarks.image                         # everything
    python -m scripts.benchmarks.image --parts steps --rounds 9 --dtypes bf16
    python -m scripts.benchmarks.image --no-peers --clock cpu --threads 1

Parts: `steps` (one training step as a share of the rate that plain matmuls of its own shapes reach), `masks` (balanced
against reference collation), `ema` (target update against a per-parameter loop), `memory` (peak resident memory of a
step, in a fresh process each). Contestants take turns, so that a slow spell of the machine hits all of them, and
medians are reported. `--clock cpu` counts processor instead of wall time: with `--threads 1` it is little disturbed by
other programs on the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from scripts.benchmarks.gemm import GemmSuite, StepSizes, flops, step_products
from scripts.benchmarks.image_steps import CONTESTANTS
from scripts.benchmarks.report import header, write
from scripts.peers.environment import PEERS, run_with_peers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = ("steps", "masks", "ema", "memory")


def timed(function: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def bench_steps(names: list[str], dtypes: list[str], sizes: StepSizes, rounds: int, clock) -> list[dict]:
    products, rows = step_products(sizes), []
    for dtype in dtypes:
        gemm = GemmSuite(products, DTYPES[dtype], clock)
        steps = {name: CONTESTANTS[name](sizes, DTYPES[dtype]) for name in names}
        for step in (gemm.seconds, *steps.values()):
            step()
            step()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        matmul: list[float] = []
        for number in range(rounds):
            matmul.append(gemm.seconds())
            for name, step in steps.items():
                seconds[name].append(timed(step, clock))
            print(f"  {dtype}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name in names:
            rows.append(
                {
                    "dtype": dtype,
                    "contestant": name,
                    "seconds": median(seconds[name]),
                    "gflops_per_second": flops(products) / median(seconds[name]) / 1e9,
                    "matmul_gflops_per_second": flops(products) / median(matmul) / 1e9,
                    # Each round's own ratio first: the machine's speed of that moment cancels.
                    "share_of_matmul_rate": median(m / s for m, s in zip(matmul, seconds[name], strict=True)),
                    "time_over_ours": median(s / o for s, o in zip(seconds[name], seconds[names[0]], strict=True)),
                }
            )
    return rows


def bench_masks(rounds: int, clock, batch_size: int = 128) -> dict:
    """Masks of a batch of 128 at 224 px, patch 16."""
    from hf_jepa.masking import MultiBlockMaskGenerator

    makers = {mode: MultiBlockMaskGenerator(224, 16, mode=mode) for mode in ("reference", "balanced")}
    seconds: dict[str, list[float]] = {mode: [] for mode in makers}
    for number in range(rounds + 2):
        for mode, maker in makers.items():
            repeats = 5 if mode == "balanced" else 1
            taken = timed(lambda: [maker(batch_size) for _ in range(repeats)], clock) / repeats  # noqa: B023
            if number >= 2:
                seconds[mode].append(taken)
    return {
        "batch_size": batch_size,
        "reference_seconds": median(seconds["reference"]),
        "balanced_seconds": median(seconds["balanced"]),
        "speedup": median(r / b for r, b in zip(seconds["reference"], seconds["balanced"], strict=True)),
    }


def bench_ema(rounds: int, clock) -> dict:
    """Target update of a ViT-B/16."""
    from hf_jepa.models.ijepa import IJepaForPreTraining, IJepaPreTrainingConfig

    model = IJepaForPreTraining(IJepaPreTrainingConfig.from_size("base", predictor_num_hidden_layers=1))
    momentum = 0.996

    @torch.no_grad()
    def loop() -> None:
        # As the released training loop: one product and one sum per parameter.
        pairs = zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True)
        for source, target in pairs:
            target.data.mul_(momentum).add_((1.0 - momentum) * source.detach().data)

    ours, theirs = [], []
    for number in range(rounds + 2):
        pair = timed(lambda: model.update_target(momentum), clock), timed(loop, clock)
        if number >= 2:
            ours.append(pair[0])
            theirs.append(pair[1])
    return {
        "seconds": median(ours),
        "loop_seconds": median(theirs),
        "speedup": median(t / o for o, t in zip(ours, theirs, strict=True)),
    }


def bench_memory(names: list[str], dtypes: list[str], arguments: argparse.Namespace) -> list[dict]:
    rows = []
    for dtype in dtypes:
        for name in names:
            command = [sys.executable, "-m", __spec__.name, "--memory-of", name, "--dtypes", dtype]
            command += ["--threads", str(arguments.threads), "--batch-size", str(arguments.batch_size)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"dtype": dtype, "contestant": name, "peak_mib": float(output.split()[-1])})
    return rows


def peak_mib() -> float:
    """Peak resident memory of this process; getrusage would report the parent's, which a child inherits on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise SystemExit("The memory part reads /proc/self/status, which this system lacks; leave it out with --parts.")


def peak_memory(name: str, dtype: str, sizes: StepSizes) -> float:
    """MiB by which three steps raise the peak resident memory of this process above torch and transformers alone."""
    import transformers.models.ijepa.modeling_ijepa  # noqa: F401

    before = peak_mib()
    step = CONTESTANTS[name](sizes, DTYPES[dtype])
    for _ in range(3):
        step()
    return peak_mib() - before


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def render(results: dict) -> str:
    blocks = []
    if rows := results.get("steps"):
        matmul = ", ".join(
            f"{d} {r:.0f}" for d, r in {x["dtype"]: x["matmul_gflops_per_second"] for x in rows}.items()
        )
        body = [
            [
                r["dtype"],
                r["contestant"],
                f"{r['seconds']:.2f}",
                f"{r['gflops_per_second']:.0f}",
                f"{r['share_of_matmul_rate']:.0%}",
                f"{r['time_over_ours']:.2f}x",
            ]
            for r in rows
        ]
        header = ["dtype", "step", "seconds", "GFLOP/s", "share of matmul rate", "time / ours"]
        blocks.append(table(f"Training step, ViT-S/16, 224 px (matmul GFLOP/s: {matmul})", header, body))
    if r := results.get("masks"):
        row = [
            f"{1e3 * r['reference_seconds']:.1f} ms",
            f"{1e3 * r['balanced_seconds']:.2f} ms",
            f"{r['speedup']:.0f}x",
        ]
        title = f"Multi-block masks, batch {r['batch_size']}"
        blocks.append(table(title, ["reference mode", "balanced mode", "speed-up"], [row]))
    if r := results.get("ema"):
        row = [f"{1e3 * r['loop_seconds']:.1f} ms", f"{1e3 * r['seconds']:.1f} ms", f"{r['speedup']:.1f}x"]
        blocks.append(table("EMA update, ViT-B/16", ["per-parameter loop", "update_target", "speed-up"], [row]))
    if rows := results.get("memory"):
        body = [[r["dtype"], r["contestant"], f"{r['peak_mib']:.0f}"] for r in rows]
        blocks.append(table("Peak memory of a step above the imports", ["dtype", "step", "MiB"], body))
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--no-peers", action="store_true", help="leave lightly out: nothing is installed")
    parser.add_argument("--output", type=Path, default=Path("model_cards/benchmark.json"))
    parser.add_argument("--memory-of", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    names = [n for n in arguments.contestants if n != "lightly" or not arguments.no_peers]
    if "lightly" in names and {"steps", "memory"} & set(arguments.parts):
        run_with_peers()
    torch.set_num_threads(arguments.threads)
    sizes = StepSizes(batch_size=arguments.batch_size)
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, arguments.dtypes[0], sizes))
        return

    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    results = header(arguments.threads, clock=arguments.clock, peers=list(PEERS) if "lightly" in names else [])
    if "steps" in arguments.parts:
        results["steps"] = bench_steps(names, arguments.dtypes, sizes, arguments.rounds, clock)
    if "masks" in arguments.parts:
        results["masks"] = bench_masks(max(arguments.rounds, 7), clock)
    if "ema" in arguments.parts:
        results["ema"] = bench_ema(max(arguments.rounds, 15), clock)
    if "memory" in arguments.parts:
        results["memory"] = bench_memory(names, arguments.dtypes, arguments)
    write(results, arguments.output)
    print(render(results))
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
