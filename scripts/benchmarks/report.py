"""What every benchmark writes: how and where it was run, and what it found."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def header(num_threads: int, **environment: Any) -> dict[str, Any]:
    """The command and the machine; `environment` is what a benchmark adds about the latter."""
    return {
        "command": " ".join(["python -m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]),
        "environment": {
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "num_threads": num_threads,
            **environment,
        },
    }


def write(results: dict[str, Any], path: Path | None) -> None:
    """As JSON, if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")
