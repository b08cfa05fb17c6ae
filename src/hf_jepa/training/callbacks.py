"""The callbacks that turn the stock training loop into a JEPA's: target EMA, weight decay, seeds and guards."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from ..data import CountedSampler
from ..data.seeding import mix_seed
from .jepa.arguments import JepaTrainingArguments
from .jepa.schedules import cosine_weight_decay, linear_ema_momentum, progressive_share

logger = logging.get_logger(__name__)

NON_FINITE_REPORT = "non_finite_loss.json"


class NonFiniteLossError(ArithmeticError):
    """
    Raised when the training loss is NaN or infinite.

    Args:
        step (`int`): 0-based index of the first update with such a loss.
        loss (`float`): the logged loss.
        grad_norm (`float`, *optional*): the gradient norm logged with it.
        report (`Path`, *optional*): where the details were written.
    """

    def __init__(self, step: int, loss: float, grad_norm: float | None = None, report: Path | None = None) -> None:
        self.step, self.loss, self.grad_norm, self.report = step, loss, grad_norm, report
        where = "" if report is None else f" Details: {report}; look at the samples listed there."
        super().__init__(
            f"The loss became {loss} at update {step} (gradient norm {grad_norm}); training was stopped and no "
            f"checkpoint of these weights was written.{where} Lower `learning_rate` or lengthen the warmup, then "
            "resume from the last checkpoint, if there is one."
        )


def momentum_at(step: int, args: JepaTrainingArguments, max_steps: int) -> float:
    """EMA momentum after the 0-based update `step` of a run of `max_steps` updates."""
    total = args.schedule_horizon * max_steps
    return linear_ema_momentum(step, total, start=args.ema_momentum, end=args.ema_momentum_end)


def weight_decay_at(step: int, args: JepaTrainingArguments, max_steps: int) -> float:
    """Weight decay of the 0-based update `step` of a run of `max_steps` updates."""
    total = int(args.schedule_horizon * max_steps)
    return cosine_weight_decay(step, total, start=args.weight_decay, end=args.weight_decay_end)


def context_loss_weight_at(step: int, args: JepaTrainingArguments, weight: float) -> float:
    """What the loss on visible tokens, of weight `weight` once warmed up, weighs in the 0-based update `step`."""
    return weight * progressive_share(step, start=args.context_loss_start_step, full=args.context_loss_full_step)


class TargetEMACallback(TrainerCallback):
    """
    Moves the target encoder after each optimizer step, once per step under gradient accumulation and not at all when
    the step was skipped (fp16 overflow).
    """

    def on_optimizer_step(
        self,
        args: JepaTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model=None,
        optimizer=None,
        **_,
    ) -> None:
        # The event also fires for a skipped step; only accelerate's wrapper knows.
        if getattr(optimizer, "step_was_skipped", False):
            return
        # `global_step` is raised after this event, so it still is the 0-based index of this update.
        model.update_target(momentum_at(state.global_step, args, state.max_steps))


class WeightDecayCallback(TrainerCallback):
    """Sets the scheduled weight decay on the parameter groups that decay, before each step."""

    def on_step_begin(
        self, args: JepaTrainingArguments, state: TrainerState, control: TrainerControl, optimizer=None, **_
    ) -> None:
        value = weight_decay_at(state.global_step, args, state.max_steps)
        for group in optimizer.param_groups:
            if group.get("decays", group["weight_decay"] != 0.0):
                group["weight_decay"] = value


class ContextLossCallback(TrainerCallback):
    """Warms V-JEPA 2.1's loss on visible tokens up, before each step."""

    def on_step_begin(
        self, args: JepaTrainingArguments, state: TrainerState, control: TrainerControl, model=None, **_
    ) -> None:
        value = context_loss_weight_at(state.global_step, args, model.config.context_loss_weight)
        # A tensor: compiled code would take a number for a constant and compile again in every step.
        model.context_loss_weight = torch.tensor(value)


class StepSeedCallback(TrainerCallback):
    """
    Reseeds the global generators from `(seed, step, rank)` before each step, so that dropout and the like are the same
    in a resumed run.
    """

    def on_step_begin(self, args: JepaTrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
        seed = mix_seed(args.seed, state.global_step, args.process_index)
        random.seed(seed)
        np.random.seed(seed)
        if args.device.type == "cpu":
            # `torch.manual_seed` takes a stack trace for each kind of device not used yet: 1 % of a small step.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)


class SamplerEpochCallback(TrainerCallback):
    """
    Tells the training sampler its epoch. The stock loop reaches a sampler through one wrapper, but a resumed run under
    DDP has two.

    Args:
        get_sampler (`Callable`): returns the sampler, or None for a stream.
    """

    def __init__(self, get_sampler: Callable[[], CountedSampler | None]) -> None:
        self.get_sampler = get_sampler

    def on_epoch_begin(self, args: JepaTrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
        sampler = self.get_sampler()
        if sampler is not None:
            sampler.set_epoch(state.global_step * sampler.batch_size // len(sampler))


class GuardCallback(TrainerCallback):
    """
    Watches what is logged, so it costs the training step nothing: raises [`NonFiniteLossError`] for a NaN or infinite
    loss after writing a report, and warns about, or stops at, a collapse.

    Args:
        describe_step (`Callable[[int], dict]`, *optional*): returns what is known of a 0-based update (draws, images),
            for the report.

    `finding` says what the newest log shows to be wrong, or is None: a card has to say it.
    """

    # What follows the values in a warning.
    advice = (
        'The loss says nothing about this. Usual cures: `initialization="fan_in"` in small models, a higher '
        "`ema_momentum`, a lower `learning_rate`, a `regularizer`."
    )

    def __init__(self, describe_step: Callable[[int], dict] | None = None) -> None:
        self.describe_step = describe_step
        self.hits = 0
        self.finding: str | None = None

    def on_log(
        self, args: JepaTrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **_
    ) -> TrainerControl:
        if "loss" not in logs:
            return control
        if not math.isfinite(logs["loss"]) or "non_finite_step" in logs:
            step = int(logs.get("non_finite_step", max(state.global_step - 1, 0)))
            raise self.report_non_finite(args, state, step, logs["loss"], logs.get("grad_norm"))
        self._check_collapse(args, state, control, logs)
        return control

    def report_non_finite(
        self, args: JepaTrainingArguments, state: TrainerState, step: int, loss: float, grad_norm: float | None
    ) -> NonFiniteLossError:
        """Writes the report and returns the error to raise."""
        path = Path(args.output_dir) / NON_FINITE_REPORT
        # Text, because NaN and infinity are not JSON.
        history = [{key: str(value) for key, value in entry.items()} for entry in state.log_history[-5:]]
        report = {
            "first_non_finite_update": step,
            "global_step": state.global_step,
            "loss": str(loss),
            "grad_norm": str(grad_norm),
            "last_logs": history,
            **(self.describe_step(step) if self.describe_step else {}),
        }
        if args.should_save:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=2) + "\n")
        return NonFiniteLossError(step, loss, grad_norm, path)

    def _limits(self, args: JepaTrainingArguments) -> dict[str, float]:
        """Least healthy values of what is logged."""
        return {"target_std": args.collapse_std_threshold, "target_rankme": args.collapse_rank_threshold}

    def _check_collapse(
        self, args: JepaTrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float]
    ) -> None:
        low = [
            f"{name} {logs[name]:.3g} is below {limit:.3g}"
            for name, limit in self._limits(args).items()
            if logs.get(name, limit) < limit
        ]
        self.hits = self.hits + 1 if low else 0
        self.finding = f"Features look collapsed at step {state.global_step}: {', '.join(low)}." if low else None
        if self.hits not in (1, args.collapse_patience):
            return
        logger.warning(f"{self.finding} ({self.hits} logs in a row) {self.advice}")
        if self.hits >= args.collapse_patience and args.collapse_action == "stop":
            logger.warning(f'Stopping at step {state.global_step}, as `collapse_action="stop"` asks.')
            control.should_training_stop = True
