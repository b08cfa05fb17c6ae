"""
A process that has imported everything and forks one run of the image program for each line of JSON that it reads. A
run counts its *moments*: what the trainer tells its callbacks, forward passes, files that are made, renamed or
deleted, files that are half written, requests to the Hub. At a chosen one it is sent a signal.

    {"argv": [...], "record": FILE, "moment": NUMBER or null, "signal": NUMBER, "delay": SECONDS}

`record` gets a line `PHASE<tab>WHAT` for each moment, written before anything else happens, and `resumed<tab>STEP`,
`saved<tab>STEP`.
"""

import dataclasses
import gc
import json
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import datasets
import safetensors.torch
import sklearn.linear_model
import torch
from huggingface_hub.utils import get_session
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from hf_jepa.hub.card import render_card
from hf_jepa.programs import run as running
from hf_jepa.programs.pretrain_image import PROGRAM
from hf_jepa.programs.program import nothing
from hf_jepa.training import JepaTrainer

torch.set_num_threads(1)
datasets.disable_progress_bars()
_ = sklearn.linear_model  # what probes import
WATCHED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")


class Moments:
    """Counts the moments of a run and sends the signal at one of them."""

    def __init__(self, record: str, moment: int | None, number: int, delay: float, folder: str) -> None:
        self.file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.moment, self.number, self.delay, self.folder = moment, number, delay, folder
        self.count, self.phases, self.is_busy = 0, ["start"], False

    def note(self, phase: str, what: object) -> None:
        os.write(self.file, f"{phase}\t{what}\n".encode())

    def __call__(self, what: str) -> None:
        if self.is_busy:
            return
        self.is_busy = True
        self.note(self.phases[-1], what)
        if self.count == self.moment:
            self.send()
        self.count += 1
        self.is_busy = False

    def send(self) -> None:
        own = os.getpid()
        if not self.delay:
            os.kill(own, self.number)
        elif not os.fork():
            time.sleep(self.delay)
            os.kill(own, self.number)
            os._exit(0)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[1], str):
            is_write = arguments[1][:1] in ("w", "x", "a")
        elif event == "open":
            is_write = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            is_write = event in WATCHED
        if is_write and self.folder in str(arguments[0]):
            self(f"{event} {os.path.basename(str(arguments[0]))}")


class Record(TrainerCallback):
    def __init__(self, moments: Moments) -> None:
        self.moments, self.has_begun = moments, False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.has_begun:
            self.moments.note("resumed", state.global_step)
        self.has_begun = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.moments.note("saved", state.global_step)


def within(moments: Moments, owner: Any, name: str, phase: str) -> None:
    """While the function runs, moments are of that phase."""
    function = getattr(owner, name)

    def run(*arguments: Any, **options: Any) -> Any:
        moments.phases.append(phase)
        try:
            return function(*arguments, **options)
        finally:
            moments.phases.pop()

    setattr(owner, name, run)


def half_written(moments: Moments, owner: Any, name: str, path_of: Callable[..., Any]) -> None:
    """Files that this writes lie there for a moment as they would if it was interrupted."""
    function = getattr(owner, name)

    def run(*arguments: Any, **options: Any) -> Any:
        done = function(*arguments, **options)
        path = pathlib.Path(path_of(*arguments, **options))
        if moments.folder in str(path):
            whole = path.read_bytes()
            os.truncate(path, len(whole) // 2)
            moments(f"half of {path.name}")
            path.write_bytes(whole)
        return done

    setattr(owner, name, run)


def watch(moments: Moments) -> None:
    within(moments, JepaTrainer, "train", "step")
    within(moments, JepaTrainer, "_save_checkpoint", "save")
    within(moments, JepaTrainer, "evaluate", "evaluation")
    within(moments, JepaTrainer, "write_release", "release")
    within(moments, running, "update_release", "release")
    within(moments, JepaTrainer, "push_folder", "push")
    half_written(moments, safetensors.torch, "serialize_file", lambda tensors, filename, **_: filename)
    half_written(moments, pathlib.Path, "write_text", lambda path, *_, **__: path)
    # Of httpx or what has followed it.
    client_class = type(get_session())
    call, send = CallbackHandler.call_event, client_class.send

    def call_event(handler: Any, event: str, *arguments: Any, **options: Any) -> Any:
        moments(event)
        return call(handler, event, *arguments, **options)

    def send_request(client: Any, request: Any, **options: Any) -> Any:
        moments(f"before {request.method} {request.url.path}")
        answer = send(client, request, **options)
        moments(f"after {request.method} {request.url.path}")
        return answer

    CallbackHandler.call_event, client_class.send = call_event, send_request
    torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: moments(type(module).__name__))
    sys.addaudithook(moments.audit)


def run(order: dict[str, Any]) -> None:
    output = order["argv"][order["argv"].index("--output_dir") + 1]
    log = os.open(order["record"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    moments = Moments(order["record"], order["moment"], order["signal"], order["delay"], output)
    watch(moments)

    def build_trainer(*parts: Any) -> JepaTrainer:
        trainer = PROGRAM.build_trainer(*parts)
        trainer.add_callback(Record(moments))
        return trainer

    # Pictures take longer than all else, and a run is whole without them.
    running.run(dataclasses.replace(PROGRAM, build_trainer=build_trainer, draw=nothing), order["argv"])


def main() -> None:
    # What all runs share is not looked through by each of them.
    render_card({"model": {"name": "tiny", "family": "ijepa"}, "licence": "unknown"})
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            status = 1
            try:
                run(json.loads(line))
                status = 0
            except SystemExit as error:
                status = error.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
