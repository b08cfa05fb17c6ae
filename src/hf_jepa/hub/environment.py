"""What a run was made with: versions and hardware, for results files and bug reports."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..version import __version__

_LIBRARIES = ("torchvision", "accelerate", "datasets", "huggingface_hub", "safetensors", "peft", "timm", "numpy")


def _git_commit() -> str | None:
    """Commit of the source tree that the package runs from, with `-dirty` where files differ; None when installed."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() or None


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware_name() -> str:
    """One line naming the accelerators, or the processor and its usable cores where there is none."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor_name()}, {cores} cores"


def _version_of(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment_info() -> dict[str, Any]:
    """The `environment` section of `results.json`.

    Returns:
        `commit` (of the source tree, or None), `torch`, `transformers`, `hf_jepa` (versions), `hardware` (one line),
        `num_threads` (int), `date` (ISO, UTC).
    """
    return {
        "commit": _git_commit(),
        "torch": torch.__version__,
        "transformers": _version_of("transformers"),
        "hf_jepa": __version__,
        "hardware": hardware_name(),
        "num_threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def environment_report() -> dict[str, Any]:
    """`environment_info` and the versions of everything else a bug report needs."""
    report = environment_info()
    report["python"] = platform.python_version()
    report["platform"] = platform.platform()
    report["cuda"] = torch.version.cuda if torch.cuda.is_available() else None
    return report | {library: _version_of(library) for library in _LIBRARIES}
