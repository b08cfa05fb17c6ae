"""What the demos share: tables, what a run has cost, and the release as a stranger finds it."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def bf16_pays() -> bool:
    """Whether this processor multiplies bfloat16 matrices well faster than float32 ones; many only emulate it."""
    matrices = [torch.ones(512, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    rounds = []
    for _ in range(50):
        seconds = []
        for matrix in matrices:
            started = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - started)
        rounds.append(seconds)
    # The fastest of each: what else runs makes either slow, and the first call builds its kernel.
    full, half = (min(column) for column in zip(*rounds, strict=True))
    return half < 0.7 * full


def table(columns: dict[str, dict[str, float]]) -> str:
    """Shares as per cent, a line for each name and a column for each contestant."""
    rows = list(next(iter(columns.values())))
    width = max(map(len, rows)) + 2
    wide = max(14, 2 + max(map(len, columns)))
    lines = [" " * width + "".join(f"{name:>{wide}}" for name in columns)]
    for row in rows:
        values = (100 * column[row] for column in columns.values())
        lines.append(f"{row:<{width}}" + "".join(f"{value:>{wide - 1}.1f}%" for value in values))
    return "\n".join(lines)


def compute_facts(cpu_seconds: float) -> dict[str, Any]:
    """The section `compute` of a run's results."""
    return {"cpu_seconds": cpu_seconds, "energy_kwh": None, "energy_note": "no power meter on this machine"}


def run_as_stranger(program: str, *arguments: str | Path, fault: str) -> str:
    """What a program prints in a process of its own, without the Hub; where it fails, ends this one with `fault`."""
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if found.returncode:
        sys.exit(f"error: {fault}: {found.stderr.strip().splitlines()[-1]}")
    return found.stdout.strip()


def print_end(started: float, written: Iterable[Path]) -> None:
    """Seconds since `started`, of the monotonic clock, the largest process's memory, and the files."""
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in users) / 2**20
    print(f"{time.monotonic() - started:.0f} s in all, {peak:.1f} GiB at most per process. Written:")
    for path in written:
        print(f"  {path}")
