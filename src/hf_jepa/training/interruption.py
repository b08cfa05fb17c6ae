"""Ctrl-C and SIGTERM: a checkpoint at the end of the update instead of a lost run."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingInterrupted(SystemExit, KeyboardInterrupt):  # noqa: N818 (named as KeyboardInterrupt is)
    """
    Raised by `train()` once the checkpoint of an interrupted run is complete. A program that lets it through ends
    without a traceback and with the status that shells expect; it can be caught as the `KeyboardInterrupt` it was.

    Args:
        number (`int`): of the signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(128 + number)


def shelter_workers(loader: DataLoader) -> DataLoader:
    """
    Puts the workers of a loader into process groups of their own, where neither Ctrl-C nor a launcher's signal to the
    group reaches them: without them the update could not end. They notice by themselves when their process is gone.

    Args:
        loader (`DataLoader`): prepared by accelerate or not; changed in place.
    """
    base = getattr(loader, "base_dataloader", loader)
    base.worker_init_fn = partial(_leave_group, base.worker_init_fn)
    return loader


def _leave_group(worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


class InterruptionCallback(TrainerCallback):
    """
    While `listening`, a first Ctrl-C or SIGTERM lets the update end and a checkpoint be saved; a second one acts as
    ever. With several processes all stop after the same update, whichever was told: they agree in the background, over
    the CPUs, and act on it one update later.

    Args:
        numbers (`tuple[int, ...]`): the signals.
    """

    def __init__(self, numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.numbers = numbers
        self.received: int | None = None
        self.has_stopped = False
        self._handlers: dict[int, object] = {}
        self._group: dist.ProcessGroup | None = None
        self._agreement: tuple[dist.Work, torch.Tensor] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over for the block; only Python's main thread can."""
        self.received, self.has_stopped = None, False
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in self.numbers}
        try:
            yield
        finally:
            self._hand_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._hand_back()

    def _hand_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._agreement = None
        if args.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if self._group is not None:
            self._agree()
        elif self.received is None:
            return
        else:
            self.has_stopped = True
        if self.has_stopped:
            control.should_save, control.should_training_stop = True, True
            # Who is told to leave may not have the time.
            control.should_evaluate = False

    def is_told_at_the_end(self) -> bool:
        """
        Whether a signal came since the last update ended, in an evaluation say, to any of the processes, which all
        have to ask.
        """
        if self._group is not None and not self.has_stopped:
            told = torch.tensor(self.received or 0)
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group)
            self.received = int(told) or None
        return self.received is not None and not self.has_stopped

    def tell(self, step: int, command: str) -> None:
        """Says where the run stands and how to go on, whatever the level of logs."""
        name = signal.Signals(self.received).name
        print(f"{name}: update {step} is saved. Go on with: {command}", flush=True)  # noqa: T201

    def _agree(self) -> None:
        if self._agreement is not None:
            work, told = self._agreement
            work.wait()
            if told.item():
                self.received, self.has_stopped = int(told), True
                return
        told = torch.tensor(self.received or 0)
        self._agreement = dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group, async_op=True), told
