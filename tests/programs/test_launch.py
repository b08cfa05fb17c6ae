"""Processes that `hf-jepa train` starts: what they are told, and how their end is waited for."""

import os
import shlex
import signal
from typing import Any

import pytest

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
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            return 143

    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert launch.launch(["ijepa_fashion_mnist", "--max_steps", "3"], "cpu", 2) == 143
    assert seen["handed on"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    # What an interrupted run tells to call again.
    called = "hf-jepa train ijepa_fashion_mnist --max_steps 3 --accelerate_config cpu --num_processes 2"
    assert seen["env"][launch.COMMAND] == shlex.join(called.split())
