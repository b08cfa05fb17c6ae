"""From a recipe's name to the program that trains it, in this process or in several."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path

from ..file_errors import naming
from ..methods import method_of

# Names the environment variable that tells a program's processes what the user has called.
COMMAND = "HF_JEPA_COMMAND"
CONFIGS = Path(str(files(__package__.rpartition(".")[0]) / "accelerate_configs"))


def family_of(argv: Sequence[str]) -> str:
    """
    The method that a command line trains: its flag `--family`, or the key `family` of its recipe.

    Raises:
        ValueError: for neither.
    """
    from .recipes import family_in

    flags = list(argv)
    for place, flag in enumerate(flags):
        if flag.startswith("--family"):
            return flag.partition("=")[2] or "".join(flags[place + 1 : place + 2])
    family = family_in(argv[0]) if argv and not argv[0].startswith("-") else None
    if family is None:
        raise ValueError(
            "The recipe does not name its method: add `family`, or give --family. `hf-jepa list` names them."
        )
    return family


def program_of(argv: Sequence[str]) -> Callable[[list[str]], None]:
    """The program that trains what a command line asks for; `ValueError` for an unknown method."""
    has_recipe = bool(argv) and not argv[0].startswith("-")
    with naming(argv[0]) if has_recipe else nullcontext():
        return method_of(family_of(argv)).load("program")


def train(argv: list[str]) -> None:
    """Runs the program of a recipe's method; `argv` is `RECIPE [--key value ...]`."""
    program_of(argv)(argv)


def accelerate_config(name: str) -> Path:
    """
    The file of an accelerate configuration: one of this package by name, or a path.

    Raises:
        ValueError: if there is neither.
    """
    known = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    path = Path(name).expanduser()
    if name not in known and not path.is_file():
        raise ValueError(f"There is no accelerate config {name!r}; give a file, or one of {', '.join(known)}.")
    return known.get(name, path)


def nodes_of(environment: Mapping[str, str]) -> dict[str, str]:
    """
    Where this machine stands among several, as torch's launcher calls it; nothing for one alone.

    Args:
        environment (`Mapping`): with the variables that clusters set.

    Raises:
        ValueError: naming those that are missing.
    """
    if int(environment.get("NNODES", "1")) == 1:
        return {}
    names = {"nnodes": "NNODES", "node_rank": "NODE_RANK", "master_addr": "MASTER_ADDR", "master_port": "MASTER_PORT"}
    if missing := [name for name in names.values() if name not in environment]:
        raise ValueError(f"NNODES is {environment['NNODES']}; every machine needs {', '.join(missing)} too.")
    return {option: environment[name] for option, name in names.items()}


def launch(argv: list[str], config: str | None, num_processes: int | None) -> int:
    """
    Trains in processes of their own, which `accelerate launch` starts.

    Args:
        argv (`list[str]`): `RECIPE [--key value ...]`.
        config (`str`, *optional*): name or file of an accelerate configuration; default: `ddp`, or on a machine
            without a GPU `cpu`.
        num_processes (`int`, *optional*): of this machine; default: one per GPU, on CPUs one.

    On several machines the same call is made on each, with the variables of torch's launchers in the environment:
    `NNODES`, `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT`.

    Returns:
        The exit status.

    Raises:
        ValueError: for an unknown configuration or program, one that cuts models up on a machine without a GPU, or
            machines that are named in part, before anything is started.
    """
    import torch
    import yaml

    program_of(argv)
    gpus = torch.cuda.device_count()
    path = accelerate_config(config or ("ddp" if gpus else "cpu"))
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    on_cpu = bool(settings.get("use_cpu")) or not gpus
    if on_cpu and settings.get("distributed_type") in ("FSDP", "DEEPSPEED"):
        raise ValueError(
            f"{path.stem} cuts models up over GPUs, and there are none here: accelerate would train whole copies "
            "without a word. Use `--accelerate_config cpu`, or `--dry_run` to see what the recipe needs."
        )
    nodes = nodes_of(os.environ)
    count = num_processes or (1 if on_cpu else gpus)
    program = ["-m", f"{__package__}", *argv]
    given = {"--accelerate_config": config, "--num_processes": num_processes}
    asked = [str(word) for option in given.items() if option[1] is not None for word in option]
    environment = {**os.environ, COMMAND: shlex.join(["hf-jepa", "train", *argv, *asked])}
    if on_cpu:
        # `accelerate launch` starts one process on CPUs, whatever number it is asked for, so torch's launcher does it.
        environment["ACCELERATE_USE_CPU"] = "true"
        flags = ["--use_cpu=true", *(["--ddp_backend=gloo"] if count > 1 or nodes else [])]
        place = [f"--{name}={value}" for name, value in nodes.items()] or ["--standalone"]
        launcher = ["-m", "torch.distributed.run", *place, f"--nproc_per_node={count}"]
        command = [sys.executable, *launcher, *program, *flags]
    else:
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch"]
        options = [f"--config_file={path}", f"--num_processes={count * int(nodes.get('nnodes', 1))}"]
        names = ("num_machines", "machine_rank", "main_process_ip", "main_process_port")
        options += [f"--{name}={value}" for name, value in zip(names, nodes.values(), strict=False)]
        command = [sys.executable, *launcher, *options, *program]
    print(f"{count} process{'es' * (count > 1)}, {'CPU' if on_cpu else path.stem}", flush=True)
    process = subprocess.Popen(command, env=environment)
    # Told to leave, the processes save a checkpoint first; Ctrl-C reaches them by itself.
    handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda *_: process.terminate()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
