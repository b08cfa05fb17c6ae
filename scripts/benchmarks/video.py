"""
Speed and memory of the video models, as ratios in one run: a V-JEPA 2 training step (ViT-S/16, 16 frames, short- and
long-range masks) against the same step in the form of the released code, encoder inference against in-tree
`VJEPA2Model`, and masks.

    python -m scripts.benchmarks.video                          # everything
    python -m scripts.benchmarks.video --parts steps --rounds 5 --sizes 128
    python -m scripts.benchmarks.video --device cuda --output model_cards/comparisons/benchmark_video_gpu.json

Contestants take turns, so that a slow spell of the machine hits all of them, and medians of each round's ratio are
reported. The steps' losses and the encoders' outputs are compared before anything is timed. `memory` is the peak
resident memory that three steps add, in a fresh process each; on a GPU, what its allocator held at most.
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

from hf_jepa.masking import LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator
from scripts.benchmarks.image import DTYPES, peak_mib, table, timed
from scripts.benchmarks.report import header, write
from scripts.benchmarks.video_steps import CONTESTANTS, ENCODERS, ClipSizes, build_model, make_batch

PARTS = ("steps", "inference", "masks", "memory")
MEASURED = {"steps": CONTESTANTS, "inference": ENCODERS}
BATCH_SIZES = {"cpu": {128: 4, 224: 2}, "cuda": {128: 64, 224: 24}}


def finished(function: Callable[[], object], device: str) -> Callable[[], object]:
    """The function, ending when its work on the device has."""

    def whole() -> object:
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return whole


def take_turns(
    functions: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Median seconds of each function, and the median over rounds of its time over the first one's."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            taken = timed(function, clock)
            if number:
                seconds[name].append(taken)
    first = next(iter(seconds.values()))
    return {
        name: {
            "seconds": median(values),
            "time_over_ours": median(v / o for v, o in zip(values, first, strict=True)),
        }
        for name, values in seconds.items()
    }


def bench_steps(image_sizes: list[int], dtypes: list[str], rounds: int, device: str) -> list[dict]:
    rows = []
    for image_size in image_sizes:
        for dtype in dtypes:
            sizes = ClipSizes(image_size, BATCH_SIZES[device][image_size], device=device)
            steps = {name: finished(build(sizes, DTYPES[dtype]), device) for name, build in CONTESTANTS.items()}
            losses = {name: step() for name, step in steps.items()}
            apart = max(losses.values()) - min(losses.values())
            if apart > (1e-5 if dtype == "fp32" else 1e-2):
                raise SystemExit(f"The contestants' losses differ: {losses}.")
            for name, row in take_turns(steps, rounds).items():
                shape = {"image_size": image_size, "batch_size": sizes.batch_size}
                rows.append({**shape, "dtype": dtype, "contestant": name, **row})
            rows[-1]["loss_difference"] = apart
            print(f"  steps, {image_size} px, {dtype}", file=sys.stderr, flush=True)
    return rows


@torch.no_grad()
def bench_inference(image_sizes: list[int], dtypes: list[str], rounds: int, device: str) -> list[dict]:
    """Encoding of whole clips by the same weights. In-tree has its default attention, sdpa."""
    rows = []
    for image_size in image_sizes:
        sizes = ClipSizes(image_size, BATCH_SIZES[device][image_size], device=device)
        model = build_model(sizes).eval()
        clips, in_tree = make_batch(sizes)[0], model.export_encoder("context").eval()
        for dtype in dtypes:
            models = {
                "hf_jepa": lambda: model.get_features(clips, "context"),  # noqa: B023
                "in-tree VJEPA2Model": lambda: in_tree(clips, skip_predictor=True).last_hidden_state,  # noqa: B023
            }
            models = {name: finished(function, device) for name, function in models.items()}
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
                ours, theirs = (function().float() for function in models.values())
                apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
                if dtype == "fp32" and apart > 1e-5:
                    raise SystemExit(f"The encoders' outputs differ by {apart:.1e}.")
                for name, row in take_turns(models, rounds).items():
                    shape = {"image_size": image_size, "batch_size": sizes.batch_size}
                    rows.append({**shape, "dtype": dtype, "contestant": name, **row})
            rows[-1]["output_difference"] = apart
            print(f"  inference, {image_size} px, {dtype}", file=sys.stderr, flush=True)
    return rows


def bench_masks(rounds: int, batch_size: int = 24) -> list[dict]:
    """Masks of a batch of 24 clips of 16 frames at 256 px, patch 16."""
    recipes = {"short range": [SHORT_RANGE], "long range": [LONG_RANGE], "both": [SHORT_RANGE, LONG_RANGE]}
    repeats, rows = {"balanced": 5, "reference": 1}, []

    def maker(chosen: list[dict], mode: str) -> Callable[[], object]:
        generators = [MultiBlock3DMaskGenerator(256, 16, mode=mode, **recipe) for recipe in chosen]
        return lambda: [generator(batch_size) for _ in range(repeats[mode]) for generator in generators]

    for name, chosen in recipes.items():
        found = take_turns({mode: maker(chosen, mode) for mode in repeats}, rounds)
        rows.append(
            {
                "recipe": name,
                "batch_size": batch_size,
                "reference_seconds": found["reference"]["seconds"],
                "balanced_seconds": found["balanced"]["seconds"] / repeats["balanced"],
                "speedup": found["reference"]["time_over_ours"] * repeats["balanced"],
            }
        )
    return rows


def bench_memory(image_sizes: list[int], dtypes: list[str], threads: int, device: str) -> list[dict]:
    rows = []
    for image_size in image_sizes:
        for dtype in dtypes:
            for part, name in [(part, name) for part, names in MEASURED.items() for name in names]:
                command = [sys.executable, "-m", __spec__.name, "--memory-of", part, name, "--dtypes", dtype]
                command += ["--sizes", str(image_size), "--threads", str(threads), "--device", device]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                row = {"part": part, "image_size": image_size, "dtype": dtype, "contestant": name}
                rows.append({**row, "peak_mib": float(output.split()[-1])})
    return rows


def peak_memory(part: str, name: str, dtype: str, sizes: ClipSizes) -> float:
    """MiB by which three steps, or passes, raise the peak memory of this process above the imports."""
    before = peak_mib()
    step = MEASURED[part][name](sizes, DTYPES[dtype])
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated() / 2**20 if sizes.device == "cuda" else peak_mib() - before


def render(results: dict) -> str:
    blocks = []
    memory = {
        (r["part"], r["image_size"], r["dtype"], r["contestant"]): f"{r['peak_mib']:.0f}"
        for r in results.get("memory", ())
    }
    for part, title in (("steps", "Training step, ViT-S/16, 16 frames"), ("inference", "Encoder, whole clips")):
        if rows := results.get(part):
            body = []
            for r in rows:
                key = (part, r["image_size"], r["dtype"], r["contestant"])
                line = [str(r["image_size"]), r["dtype"], r["contestant"], f"{r['seconds']:.3f}"]
                body.append([*line, f"{r['time_over_ours']:.2f}x", memory.get(key, "")])
            header = ["pixels", "dtype", "contestant", "seconds", "time / ours", "peak MiB"]
            blocks.append(table(title, header, body))
    if rows := results.get("masks"):
        body = [
            [
                r["recipe"],
                f"{1e3 * r['reference_seconds']:.1f} ms",
                f"{1e3 * r['balanced_seconds']:.2f} ms",
                f"{r['speedup']:.0f}x",
            ]
            for r in rows
        ]
        title = f"3-D masks, batch {rows[0]['batch_size']}, 16 frames, 256 px"
        blocks.append(table(title, ["recipe", "reference mode", "balanced mode", "speed-up"], body))
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--sizes", nargs="+", type=int, choices=list(BATCH_SIZES["cpu"]), default=[128, 224])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=list(BATCH_SIZES), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    parser.add_argument("--output", type=Path, default=Path("model_cards/comparisons/benchmark_video.json"))
    parser.add_argument("--memory-of", nargs=2, metavar=("PART", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    # float32 is float32: by default a GPU's convolutions, of which ours has none, round to TF32.
    torch.backends.cudnn.allow_tf32 = False
    if arguments.memory_of:
        size, device = arguments.sizes[0], arguments.device
        sizes = ClipSizes(size, BATCH_SIZES[device][size], device=device)
        print(peak_memory(*arguments.memory_of, arguments.dtypes[0], sizes))
        return
    results = header(arguments.threads, gpu=torch.cuda.get_device_name() if arguments.device == "cuda" else None)
    sizes, dtypes, rounds, device = arguments.sizes, arguments.dtypes, arguments.rounds, arguments.device
    parts = {
        "steps": lambda: bench_steps(sizes, dtypes, rounds, device),
        "inference": lambda: bench_inference(sizes, dtypes, 2 * rounds, device),
        "masks": lambda: bench_masks(max(rounds, 7)),
        "memory": lambda: bench_memory(sizes, dtypes, arguments.threads, device),
    }
    for part in [name for name in PARTS if name in arguments.parts]:
        results[part] = parts[part]()
        # After each part, so that a run that is cut short loses no more than one.
        write(results, arguments.output)
    print(render(results))
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
