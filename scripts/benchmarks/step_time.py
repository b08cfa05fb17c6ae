"""
What the cost model of `--dry_run` says of a training step's time against steps that are taken here: small models of
every kind, forward, backward, AdamW and EMA, on one thread in float32.

    python -m scripts.benchmarks.step_time
    python -m scripts.benchmarks.step_time --rounds 9 --output elsewhere.json

The formula gets FLOPs that `hf_jepa.programs.counting` has counted and this machine's rate of one large matrix
product, measured in the same round, as a device that is used wholly; the measured time over the formula's is then how
much of a device has to be assumed as its utilization, and the formula is good where that number is one for all rows.
Processor time; medians of each round's ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_jepa.programs.cost import Device, Work, seconds
from hf_jepa.programs.counting import count_work, enable_checkpointing
from scripts.benchmarks.gemm import StepSizes
from scripts.benchmarks.image import table, timed
from scripts.benchmarks.image_steps import hf_jepa_model, make_batch
from scripts.benchmarks.llm import LENGTHS, OURS, Contestant, examples
from scripts.benchmarks.report import header, write
from scripts.benchmarks.video_steps import ClipSizes, build_model
from scripts.benchmarks.video_steps import make_batch as make_clips

MATMUL_SIDE = 1024
BASE = {"hidden_size": 768, "num_heads": 12}
TINY = {"hidden_size": 96, "num_heads": 3, "predictor_hidden_size": 48}
Case = tuple[PreTrainedModel, dict[str, Any], int]


@dataclass(frozen=True)
class Run:
    """A model in training, and what the formula needs of it."""

    name: str
    samples: int
    work: Work
    step: Callable[[], None]


def ijepa(samples: int, **sizes: int) -> Case:
    sizes = StepSizes(batch_size=samples, **sizes)
    images, context, target = make_batch(sizes)
    batch = {"pixel_values": images, "context_mask": context, "target_mask": target}
    return hf_jepa_model(sizes, "sdpa"), batch, samples


def vjepa2(samples: int, image_size: int) -> Case:
    sizes = ClipSizes(image_size, samples)
    clips, context, target = make_clips(sizes)
    model = build_model(sizes)
    model.set_attn_implementation("sdpa")
    return model, {"pixel_values_videos": clips, "context_mask": context, "target_mask": target}, samples


def llm_jepa(samples: int) -> Case:
    contestant = Contestant(OURS, LENGTHS["nl_rx_synth"], samples)
    return contestant.model, contestant.collate(examples(contestant.lengths, samples, 0)), samples


CASES: dict[str, Callable[[], Case]] = {
    "I-JEPA ViT-S/16, 224 px": lambda: ijepa(1),
    "I-JEPA ViT-S/16, 224 px, larger batch": lambda: ijepa(4),
    "I-JEPA ViT-S/16, 224 px, gradient checkpointing": lambda: ijepa(1),
    "I-JEPA ViT-B/16, 224 px": lambda: ijepa(1, **BASE),
    "V-JEPA 2 ViT-S/16, 16 frames, 128 px": lambda: vjepa2(1, 128),
    "LLM-JEPA, Llama of 6 layers, width 256": lambda: llm_jepa(16),
    "I-JEPA, width 96, 224 px": lambda: ijepa(4, **TINY),
}


def prepare(name: str) -> Run:
    torch.manual_seed(0)
    model, batch, samples = CASES[name]()
    model.train()
    if "checkpointing" in name:
        enable_checkpointing(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    work, _ = count_work(model, lambda batch: model(**batch).loss, batch, samples)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if getattr(model, "target_encoder", None) is not None:
            model.update_target(0.996)

    return Run(name, samples, work, step)


def matmul_rate(clock: Callable[[], float], times: int = 5) -> float:
    """FLOPs per second of a square product."""
    a, b = torch.randn(2, MATMUL_SIDE, MATMUL_SIDE)
    out = torch.empty_like(a)
    return 2 * MATMUL_SIDE**3 / min(timed(lambda: torch.mm(a, b, out=out), clock) for _ in range(times))


def measure(rounds: int, clock: Callable[[], float] = time.process_time) -> list[dict[str, Any]]:
    rows = []
    for name in CASES:
        run = prepare(name)
        run.step()
        taken, predicted = [], []
        for _ in range(rounds):
            here = Device("this machine", 0.0, matmul_rate(clock), 1.0, 1, 1.0, 1.0)
            predicted.append(seconds(run.work, run.samples, 1, "ddp", here, half=False)["step"])
            taken.append(timed(run.step, clock))
        rows.append(
            {
                "run": name,
                "samples": run.samples,
                "gflops": run.work.step_flops * run.samples / 1e9,
                "seconds": median(taken),
                "formula_seconds": median(predicted),
                "time_over_formula": median(t / p for t, p in zip(taken, predicted, strict=True)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("model_cards/comparisons/benchmark_step_time.json"))
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    results = header(1, clock="cpu", matmul_side=MATMUL_SIDE) | {"steps": measure(arguments.rounds)}
    write(results, arguments.output)
    body = [
        [row["run"], str(row["samples"]), f"{row['gflops']:.1f}", f"{row['seconds']:.2f}"]
        + [f"{row['formula_seconds']:.2f}", f"{row['time_over_formula']:.2f}x"]
        for row in results["steps"]
    ]
    head = ["run", "samples", "GFLOP", "seconds", "formula", "time / formula"]
    print(table("Steps against the cost model, one thread", head, body))
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
