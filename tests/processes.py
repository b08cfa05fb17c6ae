"""
Processes that start at once: they fork from one server that has imported torch, transformers and what these import
late, which takes seconds each time, but nothing of hf_jepa.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

PRELOADED = ("accelerate", "datasets", "matplotlib.pyplot", "peft", "pytest", "timm", "transformers.trainer")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))


def run_in_two_processes(worker: Callable[..., None], *arguments: Any) -> None:
    """
    Calls `worker(*arguments)` in two processes of a gloo group, as torchrun would start them.

    An error of either is raised here, with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = (f"file://{folder}/rendezvous", worker, arguments)
        torch.multiprocessing.start_processes(_run_rank, task, nprocs=2, start_method="forkserver")


def _run_rank(rank: int, rendezvous: str, worker: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    # An error in one process ends the other's waiting.
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=120), rank=rank, world_size=2)
    worker(*arguments)
    # Programs end it themselves.
    if dist.is_initialized():
        dist.destroy_process_group()


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What `python -W ignore -c script arguments` does and writes, in a session of its own."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        argv = ["-c", *map(str, arguments)]
        process = CONTEXT.Process(target=_run_main, args=(script, argv, *files))
        process.start()
        process.join()
        return subprocess.CompletedProcess(argv, process.exitcode, *(file.read_text() for file in files))


def _run_main(script: str, argv: list[str], stdout: Path, stderr: Path) -> None:
    os.setsid()
    for number, file in enumerate((stdout, stderr), start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    warnings.simplefilter("ignore")
    assert "hf_jepa" not in sys.modules
    sys.argv = argv
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
