"""
Speed, memory and precision of the objectives against their plain formulas and against PyPI's, as ratios in one run.

    python -m scripts.benchmarks.objectives                               # everything
    python -m scripts.benchmarks.objectives --parts sigreg --rounds 15
    python -m scripts.benchmarks.objectives --no-peers --clock wall --threads 2

One pass is forward and backward from embeddings that need a gradient, random directions drawn anew. Contestants take
turns, so that a slow spell of the machine hits all of them; each round's own ratio is taken, then the median. Peak
extra memory is what one pass adds to the resident memory of a fresh process. `--clock cpu` counts processor time: on
one thread it is little disturbed by other programs.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from scripts.benchmarks.image import peak_mib, table, timed
from scripts.benchmarks.report import header, write
from scripts.peers.environment import PEERS, run_with_peers

Loss = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """One objective: the embeddings' shape, who computes it (the first is ours), and who of them is a peer."""

    shape: tuple[int, ...]
    contestants: dict[str, Callable[[], Loss]]
    peers: tuple[str, ...] = ()
    precision: Callable[[Tensor], dict] | None = None


SLICES = 1024


def epps_pulley_formula(embeddings: Tensor, directions: Tensor) -> Tensor:
    """SIGReg as its formula reads, on all knots at once."""
    t = torch.linspace(0, 3, 17, dtype=torch.float64).to(embeddings.dtype)
    target = torch.exp(-0.5 * t.square())
    weights = 0.375 * target
    weights[[0, -1]] /= 2
    angles = (embeddings @ directions.T).unsqueeze(-1) * t
    error = (angles.cos().mean(0) - target).square() + angles.sin().mean(0).square()
    return (error @ weights).mean() * len(embeddings)


def sigreg_hf_jepa() -> Loss:
    from hf_jepa.objectives import SIGReg

    return SIGReg(SLICES)


def sigreg_formula() -> Loss:
    from hf_jepa.objectives import random_directions

    generator = torch.Generator().manual_seed(0)
    return lambda z: epps_pulley_formula(z, random_directions(SLICES, z.shape[1], generator))


def sigreg_jepa_science() -> Loss:
    from jepa_science import SIGReg

    return SIGReg(num_slices=SLICES)


def sigreg_lightly() -> Loss:
    from lightly.loss.lejepa_loss import SIGReg

    return SIGReg(num_vectors=SLICES)


def sigreg_stable_pretraining() -> Loss:
    from stable_pretraining.methods.lejepa import SlicedEppsPulley

    return SlicedEppsPulley(num_slices=SLICES)


def sigreg_precision(embeddings: Tensor) -> dict:
    """Errors in float32 against the formula in float64, on the same directions."""
    from hf_jepa.objectives import random_directions, sigreg

    directions = random_directions(SLICES, embeddings.shape[1], torch.Generator().manual_seed(0))

    def value_and_gradient(function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        z = embeddings.detach().to(dtype).requires_grad_()
        value = function(z, directions.to(dtype))
        return value.detach(), torch.autograd.grad(value, z)[0]

    truth, exact = value_and_gradient(epps_pulley_formula, torch.float64)
    errors = {}
    for name, function in (("hf_jepa", sigreg), ("plain formula", epps_pulley_formula)):
        value, gradient = value_and_gradient(function, torch.float32)
        errors[name] = {
            "value_relative": abs(value.double() / truth - 1).item(),
            "gradient_relative": ((gradient - exact).norm() / exact.norm()).item(),
            "gradient_largest": (gradient - exact).abs().max().item(),
        }
    return errors


NUM_PROJECTIONS = 2048


def rdmreg_draws(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    from hf_jepa.objectives import random_directions, rgg_samples

    generator = torch.Generator().manual_seed(0)
    directions = random_directions(NUM_PROJECTIONS, embeddings.shape[1], generator).contiguous()
    return rgg_samples(embeddings.shape, 1.0, generator=generator), directions


def rdmreg_hf_jepa() -> Loss:
    from hf_jepa.objectives import rdmreg

    return lambda z: rdmreg(z, *rdmreg_draws(z))


def rdmreg_formula() -> Loss:
    """Sorted along the first axis, as the projections come out of `embeddings @ directions.T`."""

    def loss(embeddings: Tensor) -> Tensor:
        targets, directions = rdmreg_draws(embeddings)
        ours, theirs = ((samples @ directions.T).sort(dim=0).values for samples in (embeddings, targets))
        return (ours - theirs).square().mean()

    return loss


def vicreg_hf_jepa() -> Loss:
    from hf_jepa.objectives import vicreg

    return lambda z: vicreg(*z.unbind(1)).loss


def vicreg_formula() -> Loss:
    """Through each view's covariance matrix, width x width."""

    def loss(embeddings: Tensor) -> Tensor:
        x, y = embeddings.unbind(1)
        total = 25 * torch.nn.functional.mse_loss(x, y)
        for view in (x, y):
            centred = view - view.mean(dim=0)
            total = total + 12.5 * torch.relu(1 - torch.sqrt(centred.var(dim=0) + 1e-4)).mean()
            covariance = centred.T @ centred / (len(view) - 1)
            total = total + (covariance.square().sum() - covariance.diagonal().square().sum()) / view.shape[1]
        return total

    return loss


def infonce_hf_jepa() -> Loss:
    from hf_jepa.objectives import info_nce

    return lambda z: info_nce(*z.unbind(1))


def infonce_formula() -> Loss:
    """All logits at once."""

    def loss(embeddings: Tensor) -> Tensor:
        x, y = torch.nn.functional.normalize(embeddings, dim=-1).unbind(1)
        logits, labels = x @ y.T / 0.07, torch.arange(len(x))
        cross_entropy = torch.nn.functional.cross_entropy
        return 0.5 * (cross_entropy(logits, labels) + cross_entropy(logits.T, labels))

    return loss


PARTS = {
    "sigreg": Part(
        shape=(1024, 512),
        contestants={
            "hf_jepa": sigreg_hf_jepa,
            "plain formula": sigreg_formula,
            "jepa-science": sigreg_jepa_science,
            "lightly": sigreg_lightly,
            "stable-pretraining": sigreg_stable_pretraining,
        },
        peers=("jepa-science", "lightly", "stable-pretraining"),
        precision=sigreg_precision,
    ),
    "rdmreg": Part((512, 512), {"hf_jepa": rdmreg_hf_jepa, "plain formula": rdmreg_formula}),
    # Views along the second axis, so that the first is the batch everywhere.
    "vicreg": Part((256, 2, 2048), {"hf_jepa": vicreg_hf_jepa, "plain formula": vicreg_formula}),
    **{
        f"infonce_{n}": Part((n, 2, 256), {"hf_jepa": infonce_hf_jepa, "plain formula": infonce_formula})
        for n in (2048, 4096, 8192)
    },
}


def make_embeddings(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def one_pass(loss: Loss, embeddings: Tensor) -> float:
    embeddings.grad = None
    value = loss(embeddings)
    value.backward()
    return value.item()


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def extra_memory(part: Part, name: str) -> float:
    """MiB that one pass adds at its peak to this process, after a pass over a few embeddings has loaded everything."""
    loss = part.contestants[name]()
    one_pass(loss, make_embeddings((4, *part.shape[1:])))
    embeddings = make_embeddings(part.shape)
    # Imports peak above what they leave: fill up to that peak, or it would hide what the pass takes.
    missing = math.ceil((peak_mib() - resident_mib() + 1) * 2**18)
    ballast = torch.ones(missing)
    before = peak_mib()
    one_pass(loss, embeddings)
    del ballast
    return peak_mib() - before


def bench(name: str, arguments: argparse.Namespace, clock: Callable[[], float]) -> dict:
    part = PARTS[name]
    names = [n for n in part.contestants if n not in part.peers or not arguments.no_peers]
    losses, embeddings = {n: part.contestants[n]() for n in names}, make_embeddings(part.shape)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    values = {}
    for n, loss in losses.items():
        values[n] = one_pass(loss, embeddings)
    for number in range(arguments.rounds):
        for n, loss in losses.items():
            seconds[n].append(timed(lambda: one_pass(loss, embeddings), clock))  # noqa: B023
        print(f"  {name}: round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    rows = []
    for n in names:
        command = [sys.executable, "-m", __spec__.name, "--memory-of", name, n, "--threads", str(arguments.threads)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(
            {
                "contestant": n,
                "value": values[n],
                "seconds": median(seconds[n]),
                "time_over_ours": median(s / o for s, o in zip(seconds[n], seconds[names[0]], strict=True)),
                "extra_mib": float(output.split()[-1]),
            }
        )
    for row in rows:
        row["memory_over_ours"] = row["extra_mib"] / rows[0]["extra_mib"]
    result: dict = {"shape": part.shape, "contestants": rows}
    if part.precision:
        result["precision"] = part.precision(embeddings)
    return result


def render(name: str, result: dict) -> str:
    body = [
        [
            row["contestant"],
            f"{1e3 * row['seconds']:.1f}",
            f"{row['time_over_ours']:.2f}x",
            f"{row['extra_mib']:.1f}",
            f"{row['memory_over_ours']:.1f}x",
        ]
        for row in result["contestants"]
    ]
    header = ["", "milliseconds", "time / ours", "peak extra MiB", "memory / ours"]
    blocks = [table(f"{name}, forward and backward, embeddings {tuple(result['shape'])}", header, body)]
    if precision := result.get("precision"):
        columns = list(next(iter(precision.values())))
        body = [[n, *(f"{errors[c]:.1e}" for c in columns)] for n, errors in precision.items()]
        blocks.append(table(f"{name}, float32 errors against float64", ["", *columns], body))
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--no-peers", action="store_true", help="only what hf_jepa itself needs: nothing is installed")
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        part, name = arguments.memory_of
        print(extra_memory(PARTS[part], name))
        return
    with_peers = not arguments.no_peers and any(PARTS[name].peers for name in arguments.parts)
    if with_peers:
        run_with_peers()
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    results = header(arguments.threads, clock=arguments.clock, peers=list(PEERS) if with_peers else [])
    for name in arguments.parts:
        results[name] = bench(name, arguments, clock)
        print(render(name, results[name]), flush=True)
    write(results, arguments.output)
    if arguments.output:
        print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
