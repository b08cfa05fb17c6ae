"""Processes that `hf-jepa train` starts: what they are told, and how their end is waited for."""

import shlex
import signal
from typing import Any

import pytest
from accelerate import DeepSpeedPlugin

from hf_jepa.programs import launch


def test_processes_are_waited_for_when_they_are_told_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Process:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            seen["env"] = env

        def terminate(self) -> None:
            seen["handed on"] = True

        def wait(self) -> int:
            # As if they were saving a checkpoint.
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            return 143

    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert launch.launch(["ijepa_fashion_mnist", "--max_steps", "3"], "cpu", 2) == 143
    assert seen["handed on"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    # What an interrupted run tells to call again.
    called = "hf-jepa train ijepa_fashion_mnist --max_steps 3 --accelerate_config cpu --num_processes 2"
    assert seen["env"][launch.COMMAND] == shlex.join(called.split())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of what would have been started, on a machine with four GPUs."""
    command: list[str] = []

    class Process:
        def __init__(self, given: list[str], env: dict[str, str]) -> None:
            command.extend(given)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    return command


NODES = {"NNODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("config", ["ddp", "fsdp2", "zero2"])
def test_several_machines_are_told_of_each_other(monkeypatch, started, config) -> None:
    for name, value in NODES.items():
        monkeypatch.setenv(name, value)
    launch.launch(["ijepa_fashion_mnist"], config, None)
    told = " ".join(started)
    assert "--num_processes=12 --num_machines=3 --machine_rank=1" in told
    assert "--main_process_ip=10.0.0.1 --main_process_port=29500" in told
    del started[:]
    launch.launch(["ijepa_fashion_mnist"], "cpu", 2)
    told = " ".join(started)
    assert "--nnodes=3 --node_rank=1 --master_addr=10.0.0.1 --master_port=29500 --nproc_per_node=2" in told
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ValueError, match="every machine needs MASTER_ADDR too"):
        launch.launch(["ijepa_fashion_mnist"], config, None)


@pytest.mark.parametrize("config", ["fsdp2", "zero2"])
def test_nothing_is_cut_up_without_gpus(monkeypatch, started, config) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=f"{config} cuts models up over GPUs"):
        launch.launch(["ijepa_fashion_mnist"], config, 2)
    assert started == []
    launch.launch(["ijepa_fashion_mnist"], "ddp", 2)
    assert "torch.distributed.run" in started


@pytest.mark.parametrize("config", sorted(path.stem for path in launch.CONFIGS.glob("*.yaml")))
def test_accelerate_understands_every_config(config) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(launch.accelerate_config(config)))
    kind = {"cpu": "NO", "gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}[config]
    assert found.distributed_type == kind
    if config == "zero2":
        plugin = DeepSpeedPlugin(**{**found.deepspeed_config, "gradient_accumulation_steps": 1})
        assert plugin.deepspeed_config["zero_optimization"]["stage"] == plugin.zero_stage == 2
