"""What a run optimizes and how: parameter groups, the learning rate, clipping."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from .arguments import JepaTrainingArguments
from .schedules import warmup_cosine_learning_rate, warmup_stable_decay_learning_rate


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, decay_vectors: bool = False, fix_pred_lr: bool = False
) -> list[dict[str, Any]]:
    """
    The original's four groups: encoder and rest with decay, encoder and rest without. A parameter does not decay if
    "bias" is in its name or it is a vector, unless the model has a rule of its own (`model.decays`); frozen ones are
    left out.

    Args:
        model (`nn.Module`): a composite whose context encoder is `model.encoder`.
        weight_decay (`float`): of the groups that decay; [`WeightDecayCallback`] changes it as the run goes on.
        decay_vectors (`bool`): biases and vectors decay too.
        fix_pred_lr (`bool`): the predictor has groups of its own, last and marked `fixed`.

    Returns:
        `list[dict]`: groups for a torch optimizer, those that would be empty left out.

    Raises:
        ValueError: with `fix_pred_lr`, for a model without a predictor.
    """
    decays = getattr(model, "decays", lambda name, parameter: "bias" not in name and parameter.ndim != 1)
    members: dict[tuple[bool, bool, bool], list[torch.nn.Parameter]] = {
        (fixed, decayed, is_encoder): []
        for fixed in (False, True)
        for decayed in (True, False)
        for is_encoder in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = decay_vectors or decays(name, parameter), name.startswith("encoder.")
            members[(fix_pred_lr and name.startswith("predictor."), *kind)].append(parameter)
    if fix_pred_lr and not any(parameters for (fixed, *_), parameters in members.items() if fixed):
        raise ValueError(f"`fix_pred_lr` is for models with a predictor, which {type(model).__name__} has not.")
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "decays": decayed, "fixed": fixed}
        for (fixed, decayed, _), parameters in members.items()
        if parameters
    ]


def check_full_precision(model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: for a parameter below float32.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"`{name}` is {parameter.dtype}, but the weights behind an EMA target must be float32: small updates "
                "are rounded away below it. Load the model with `dtype=torch.float32` and pass `bf16=True` to the "
                "training arguments for speed."
            )


def learning_rate_schedule(args: JepaTrainingArguments, num_training_steps: int) -> Callable[[int], float]:
    """
    The learning rate as a function of the 0-based update: warmup and cosine, or with `learning_rate_linear_decay`
    warmup, constant and line.

    Args:
        args ([`JepaTrainingArguments`]).
        num_training_steps (`int`): updates of the whole run.

    Raises:
        ValueError: for a warmup longer than the run, or one that runs into the line.
    """
    total, warmup = int(args.schedule_horizon * num_training_steps), args.get_warmup_steps(num_training_steps)
    common = {
        "total_steps": total,
        "warmup_steps": warmup,
        "start": args.learning_rate_start,
        "peak": args.learning_rate,
        "end": args.learning_rate_end,
    }
    if args.learning_rate_linear_decay is None:
        return partial(warmup_cosine_learning_rate, **common)
    decay = round(args.learning_rate_linear_decay * total)
    if warmup + decay > total:
        raise ValueError(
            f"A warmup of {warmup} updates and a linear decay over {decay} do not fit into a schedule of {total}; "
            "lower `warmup_steps` or `learning_rate_linear_decay`."
        )
    return partial(warmup_stable_decay_learning_rate, decay_steps=decay, **common)


def clip_parts(model: torch.nn.Module, max_norm: float, accelerator: Accelerator) -> torch.Tensor:
    """
    Clips the gradients of the context encoder and of everything else by themselves (V-JEPA, released code).

    Args:
        model (`nn.Module`): a composite whose context encoder is `model.encoder`.
        max_norm (`float`): most that either part's norm may be.
        accelerator (`Accelerator`): undoes the loss scale of float16.

    Returns:
        `torch.FloatTensor` of shape `()`: norm of all gradients before clipping.
    """
    accelerator.unscale_gradients()
    parts: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parts[name.startswith("encoder.")].append(parameter)
    norms = [torch.nn.utils.clip_grad_norm_(part, max_norm) for part in parts.values()]
    return torch.stack(norms).norm()


def keep_untrained_rows(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> None:
    """
    Makes an optimizer leave the rows of a parameter alone whose gradient is zero. The original keeps every mask token
    in a parameter of its own, and one that no clip of a step needed neither decays nor moves.

    Args:
        optimizer (`torch.optim.Optimizer`).
        parameter (`nn.Parameter` of shape `(rows, ...)`): one of its parameters.
    """
    before: list[torch.Tensor] = []

    @torch.no_grad()
    def remember(*_: Any) -> None:
        before[:] = [] if parameter.grad is None else [parameter.clone()]

    @torch.no_grad()
    def restore(*_: Any) -> None:
        if before:
            idle = (parameter.grad == 0).flatten(1).all(dim=1).view(-1, *[1] * (parameter.ndim - 1))
            parameter.copy_(torch.where(idle, before.pop(), parameter))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(restore)
