"""What shapes the trajectory of a run, and how a resumed run is compared by it."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from .checkpoints import COMPLETE_MARKER, TRAINING_ARGS

# Longer lists and tensors are data, not settings.
_MAX_VALUES = 64
# What of an image or video processor changes pixels.
_PROCESSING = ("size", "crop_size", "do_resize", "do_center_crop", "do_normalize", "image_mean", "image_std")
# Rows, counters, what the trainer sets, and what is compared by itself.
_UNSETTLED = {"rows", "dataset", "samples", "counter", "num_bad", "epoch", "training", "draws_per_step", "root"}
_UNSETTLED |= {"max_bad_fraction", "backend"}
# The settings that shape the trajectory. The batch is compared as a whole: its split over devices does not matter.
TRAJECTORY_SETTINGS = (
    "seed",
    "data_seed",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "learning_rate_start",
    "learning_rate_end",
    "learning_rate_linear_decay",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "weight_decay_end",
    "ema_momentum",
    "ema_momentum_end",
    "lars_trust_coefficient",
    "lars_clip",
    "fix_pred_lr",
    "decay_vectors",
    "schedule_horizon",
    "context_loss_start_step",
    "context_loss_full_step",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "clip_after_steps",
    "clip_separately",
    "train_sampling_strategy",
    "neftune_noise_alpha",
    "optim_target_modules",
    "tube_variant",
    "tube_times",
    "max_row_tokens",
    "bf16",
    "fp16",
)


def changed_settings(folder: Path, args: dict[str, Any], run: dict[str, Any], config: PreTrainedConfig) -> list[str]:
    """
    Lists what differs between a checkpoint's run and this one and would change the trajectory.

    Args:
        folder (`Path`): the checkpoint.
        args (`dict`): this run's training arguments.
        run (`dict`): as given to [`mark_complete`].
        config (`PreTrainedConfig`): this run's model configuration.

    Returns:
        `list[str]`: such as `"learning_rate: 0.001 in the checkpoint, 0.002 now"`.
    """
    saved_args = json.loads((folder / TRAINING_ARGS).read_text())
    saved_run = json.loads((folder / COMPLETE_MARKER).read_text())["run"]
    config_now = json.loads(config.to_json_string())
    # A field that the package has gained since has its default, which is what the checkpoint's run did.
    gained = {
        field.name: field.default
        for field in fields(config)
        if field.name in config_now and field.default is not MISSING
    }
    saved_config = gained | json.loads((folder / "config.json").read_text())
    # With a fixed number of updates the number of epochs is never read.
    unread = {"num_train_epochs"} if args["max_steps"] > 0 and saved_args["max_steps"] > 0 else set()
    # So with the arguments: what the package has gained since is off unless asked for.
    settings = [name for name in TRAJECTORY_SETTINGS if name not in unread and (name in saved_args or args.get(name))]
    bookkeeping = {"transformers_version", "architectures", "dtype", "_name_or_path", "torch_dtype"}
    bookkeeping |= {"trained_size", "trained_frames"}  # noted at the first batch, which is yet to come
    return [
        *_differences({name: saved_args.get(name) for name in settings}, {name: args.get(name) for name in settings}),
        *_differences(saved_run, run, is_record=True),
        *_differences(saved_config, config_now, ignored=bookkeeping, prefix="config."),
    ]


def _differences(
    old: dict[str, Any], new: dict[str, Any], ignored: Iterable[str] = (), prefix: str = "", is_record: bool = False
) -> list[str]:
    """Of a record, which this package makes, what it has gained since was not recorded and cannot be compared."""
    found = []
    for name in sorted((old.keys() if is_record else old.keys() | new.keys()) - set(ignored)):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, ignored, f"{prefix}{name}.", is_record)
        elif before != now:
            found.append(f"{prefix}{name}: {before!r} in the checkpoint, {now!r} now")
    return found


def describe(thing: Any) -> Any:
    """
    What of a dataset, transform or collator shapes a run, as JSON holds it: the public settings of this package's and
    torchvision's objects, at any depth; of others the name, and what of those they hold. Rows are not looked at.

    Args:
        thing: such as a [`~hf_jepa.data.SeededImageDataset`] or a [`~hf_jepa.data.MaskCollator`].
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, Enum):
        return thing.value
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        return thing.tolist() if math.prod(thing.shape) <= _MAX_VALUES else list(thing.shape)
    if isinstance(thing, Mapping):
        return {str(name): describe(value) for name, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [describe(value) for value in thing] if len(thing) <= _MAX_VALUES else len(thing)
    if isinstance(thing, partial):
        return {"function": thing.func.__qualname__, "args": describe(thing.args), **describe(thing.keywords)}
    if isinstance(thing, BaseImageProcessor):
        plain = thing.to_dict()
        return {name: describe(plain[name]) for name in _PROCESSING if name in plain}
    known = _is_known(thing)
    held = dict(vars(thing)) if hasattr(thing, "__dict__") and not isinstance(thing, type | FunctionType) else {}
    held |= held.pop("_modules", {})
    settings = {
        name: describe(value)
        for name, value in held.items()
        if not name.startswith("_") and name not in _UNSETTLED and (known or _is_known(value))
    }
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    return {"class": name, **settings} if settings else name


def _is_known(thing: Any) -> bool:
    if isinstance(thing, partial):
        return _is_known(thing.func)
    module = getattr(thing, "__module__", None) or type(thing).__module__
    return str(module).split(".")[0] in ("hf_jepa", "torchvision")


def compares_examples(model: PreTrainedModel) -> bool:
    """Whether a model's loss compares examples of a batch with each other, so that how it is split changes it."""
    config = model.config
    contrasts = "infonce" in (getattr(config, "loss", None), getattr(config, "distance", None))
    regularizes = hasattr(model, "batch_warning") or getattr(config, "regularizer", "none") != "none"
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    return contrasts or regularizes or any(isinstance(module, batch_norm) for module in model.modules())
