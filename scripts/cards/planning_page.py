"""docs/planning.md: what published recipes need on many devices, from their counts and the package's cost model."""

import json
import math
from collections.abc import Iterator

from hf_jepa.programs.cost import FLOAT, H100, Work, memory, seconds, traffic

from .count_models import COUNTS

STEP_TIME = COUNTS.with_name("benchmark_step_time.json")
INPUTS = COUNTS.with_name("benchmark_input_pipeline.json")
DEVICES = (8, 64, 512)
# Updates that were published, and samples of one.
PUBLISHED = {
    "I-JEPA ViT-H/14, 224 px": (187500, 2048),
    "V-JEPA 2 ViT-g/16, 16 frames, 256 px": (240000, 3072),
}


INTRODUCTION = f"""# Planning a large run

Nothing on this page was run at its size. Parameters, FLOPs and activations were counted on shapes alone, by
`python -m scripts.cards.count_models`; memory and time follow from them by the arithmetic of `hf_jepa.programs.cost`,
which `hf-jepa train RECIPE --dry_run` prints for any recipe. Tests hold the FLOPs of the forward pass to torch's own
counter exactly and those of the step from 0 to 5 % above it (10 % with gradient checkpointing), the memory of weights,
gradients and AdamW to the bytes of a real step, and a transformer layer's activations to their known sum within 5 %.

**Assumed**, not measured:

- {H100.name}: {H100.memory_bytes / 1e9:.0f} GB, {H100.peak_flops / 1e12:.0f} TFLOP/s in dense bfloat16, of which
  {H100.utilization:.0%} are reached; {H100.node_link / 1e9:.0f} GB/s to the devices of a node of {H100.per_node},
  {H100.network_link / 1e9:.0f} GB/s to others, each way;
- AdamW, float32 weights, bfloat16 products; data always ready; communication wholly behind computation, so that a step
  takes the longer of the two;
- a device is full at 90 % of its memory: workspaces, fragments and, under gradient checkpointing, the inner
  activations of one layer are not in the sums.
"""
LIMITS = """- **Order of samples**: every process permutes all rows (8 bytes a row) and walks through the draws of all.
- **Losses that compare samples** (SIGReg, RDMReg, VICReg, InfoNCE) gather or reduce embeddings over all processes in
  every forward pass: global batch times width, and no computation hides it.
- **The EMA update** is local to each shard under FSDP2, and done whole on every device under `ddp` and `zero2`.
- **Checkpoints** are written in shards by every process under FSDP2, and whole by the main process otherwise.
- **VL-JEPA** is not cut up by FSDP2, and V-JEPA 2.1 was not tried there with images and clips in one step.
"""


def _measured() -> Iterator[str]:
    """What steps of small models took, against the same arithmetic."""
    steps = json.loads(STEP_TIME.read_text(encoding="utf-8"))["steps"]
    factors = [row["time_over_formula"] for row in steps]
    yield from (
        "## Against measured steps",
        "",
        "Time was compared with steps of small models on one CPU core (`python -m scripts.benchmarks.step_time`): the",
        "formula given this core's rate of one large matrix product as a device that is used wholly. A step took",
        f"{min(factors):.2f} to {max(factors):.2f} times what it says, which is a utilization of "
        f"{1 / max(factors):.0%} to {1 / min(factors):.0%}:",
        "given the one of the first row, all others are foretold within "
        f"{max(abs(factor / factors[0] - 1) for factor in factors):.0%}. What is not in it: norms, softmax,",
        "activations, the optimizer and the EMA, whose share falls as width and batch grow.",
        "",
        "| run | samples | GFLOP per step | time over formula |",
        "|---|---|---|---|",
        *(
            f"| {row['run']} | {row['samples']} | {row['gflops']:.1f} | {row['time_over_formula']:.2f}x |"
            for row in steps
        ),
        "",
    )


def _inputs() -> str:
    """What one core decodes."""
    found = json.loads(INPUTS.read_text(encoding="utf-8"))
    parts = []
    for name, what in (("images", "JPEGs of 500 x 375 to 224 px"), ("clips", "16 frames of 340 x 256")):
        ours, *others = found[name]
        ratios = (f"{1 / row['time_over_ours']:.2f} of the time of {row['contestant']}" for row in others)
        parts.append(f"{ours[f'{name}_per_second']:.0f} {name} a second ({what}; {', '.join(ratios)})")
    return (
        f"one core read, decoded and augmented {' and '.join(parts)}: `python -m scripts.benchmarks.input_pipeline`."
    )


def _rows(title: str, work: Work, batch: int) -> Iterator[str]:
    for devices in DEVICES:
        passes, here, steps = 1, batch, 0
        if title in PUBLISHED:
            steps, samples = PUBLISHED[title]
            passes = -(-samples // (devices * batch))
            here = samples // (devices * passes)
        for sharding in ("ddp", "zero2", "fsdp2"):
            need = memory(work, here, devices, sharding)
            time = seconds(work, here, devices, sharding, H100, passes=passes)
            fits = "yes" if need["total"] < 0.9 * H100.memory_bytes else "no"
            states = need["total"] - need["activations"]
            cells = [devices, f"`{sharding}`", f"{here} x {passes}", f"{states / 1e9:.1f}"]
            cells += [
                f"{need['activations'] / 1e9:.1f}",
                fits,
                f"{time['compute']:.3f}",
                f"{time['communication']:.3f}",
            ]
            cells.append(f"{devices * here * passes / time['step']:,.0f}")
            if steps:
                cells.append(f"{steps * time['step'] / 86400:.2f}")
            yield f"| {' | '.join(map(str, cells))} |"


def _smallest_batch(work: Work, devices: int, sharding: str) -> int:
    """Samples per device from which computing takes longer than communicating."""
    one = seconds(work, 1, devices, sharding, H100)
    return max(1, math.ceil(one["communication"] / one["compute"]))


def planning_page() -> str:
    """One section for each counted model, and what limits this package."""
    counts = json.loads(COUNTS.read_text(encoding="utf-8"))
    works = {title: Work(**entry["counted"]) for title, entry in counts.items()}
    lines = [INTRODUCTION]
    for title, entry in counts.items():
        work, batch = works[title], entry["batch_size"]
        sizes = f"{work.trained / 1e6:,.0f} M trained parameters"
        sizes += f" and {work.frozen / 1e6:,.0f} M of the EMA target" if work.frozen else ""
        checkpointing = " Gradient checkpointing." if work.recomputed_flops else ""
        last = " published run, days |" if title in PUBLISHED else ""
        update = "An update of the published size" if title in PUBLISHED else f"{batch} per device, in one pass"
        lines += [
            f"## {title}",
            "",
            f"{sizes}; {work.step_flops / 1e12:.2f} TFLOP per {entry['sample']} and step.{checkpointing} {update}.",
            "",
            "| devices | way | per device x passes | states, GB | activations, GB | fits | compute, s "
            f"| communication, s | samples/s |{last}",
            f"|{'---|' * (9 + bool(last))}",
            *_rows(title, work, batch),
            "",
        ]
    lines += [*_measured(), "## Where this package is the limit", ""]
    for title, work in works.items():
        batches = ", ".join(f"{_smallest_batch(work, 512, way)} under `{way}`" for way in ("ddp", "fsdp2"))
        lines.append(
            f"- **{title}** on 512 devices: fewer samples per device and pass than {batches} wait for the network "
            f"({traffic(work, 512, 'ddp') / 1e9:.1f} GB sent per device and step under `ddp`). A release under FSDP2 "
            f"gathers {FLOAT * (work.trained + work.frozen) / 1e9:.1f} GB in the main process's memory."
        )
    vit, giant = (H100.peak_flops * H100.utilization / works[title].step_flops for title in PUBLISHED)
    lines += [
        f"- **Decoding**: a device takes {vit:,.0f} images of the first or {giant:.0f} clips of the second a second, "
        f"which its `dataloader_num_workers` have to decode and augment. Here {_inputs()} A few updates show what a "
        "machine can do: `hf-jepa train RECIPE --max_steps 50` logs `images_per_second`.",
        LIMITS,
    ]
    return "\n".join(lines)
