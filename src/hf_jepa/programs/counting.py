"""Counts a forward pass: FLOPs, and what autograd keeps of it. Works on tensors without storage as well."""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .cost import Work

# Of CPUs; torch knows how to count the others.
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CAST = torch.ops.aten._to_copy


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class ForwardCounter(TorchDispatchMode):
    """
    Counts the FLOPs of the operators below it: matrix products, convolutions and attention, by torch's own formulas.

    Args:
        weights (`Iterable[torch.Tensor]`): the model's.

    Attributes:
        flops (`int`): of all operators.
        tracked (`int`): of those that ran with gradients on.
        weights (`set[int]`): storages of the weights, and of their copies in another precision.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.flops = self.tracked = 0
        self.weights = {_storage(weight) for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet is _ATTENTION:
            query, key = args[0].shape, args[1].shape
            found = 4 * math.prod(query) * key[-2]
        elif packet in flop_registry:
            found = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        else:
            if packet is _CAST and _storage(args[0]) in self.weights:
                self.weights.add(_storage(out))
            return out
        self.flops += found
        if torch.is_grad_enabled():
            self.tracked += found
        return out


class KeptTensors(torch.autograd.graph.saved_tensors_hooks):
    """
    Sizes of what autograd keeps for a backward pass.

    Args:
        weights (`set[int]`): storages that are there anyway.
    """

    def __init__(self, weights: set[int]) -> None:
        self._weights = weights
        self._kept: dict[int, int] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    @property
    def nbytes(self) -> int:
        """`int`: of all storages that are kept."""
        return sum(size for storage, size in self._kept.items() if storage not in self._weights)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self._kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor


class CheckpointedLayers:
    """
    What gradient checkpointing keeps and does again: the inputs of its layers, and their FLOPs. Made for a model whose
    checkpointing is on, before the forward pass.

    Args:
        model (`nn.Module`).
        counter ([`ForwardCounter`]): that is at work during the pass.
    """

    def __init__(self, model: torch.nn.Module, counter: ForwardCounter) -> None:
        self.nbytes, self.flops, self._before = 0, 0, 0
        self._counter = counter
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, module: torch.nn.Module, inputs: tuple) -> None:
        # Called inside of the checkpoint; what it was given is `inputs`.
        if torch.is_grad_enabled():
            self.nbytes += inputs[0].nbytes
        self._before = self._counter.tracked

    def _leave(self, *_: Any) -> None:
        self.flops += self._counter.tracked - self._before


def gathered_parameters(model: PreTrainedModel) -> int:
    """Parameters that FSDP holds whole at one time: those outside of layers, the layer at work, and the next one."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(sizes)
    return rest + 2 * max(sizes, default=0)


def fake_mode(model: PreTrainedModel) -> FakeTensorMode | None:
    """The mode of a model whose parameters are shapes without storage; None for one with weights."""
    return next((parameter.fake_mode for parameter in model.parameters() if hasattr(parameter, "fake_mode")), None)


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Gradient checkpointing, by transformers' later name or its earlier one."""
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()


def map_tensors(value: Any, function: Any) -> Any:
    """A batch with `function` applied to its tensors."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: map_tensors(item, function) for name, item in value.items()}
    return [map_tensors(item, function) for item in value] if isinstance(value, list | tuple) else value


def count_work(
    model: PreTrainedModel, step: Callable[[Any], torch.Tensor], batch: Any, samples: int, half: bool = False
) -> tuple[Work, torch.Tensor]:
    """
    Runs one forward pass and counts.

    Args:
        model (`PreTrainedModel`): in training mode, with weights or shapes for them.
        step (`Callable`): from a batch to the loss.
        batch: of tensors.
        samples (`int`): in the batch.
        half (`bool`): whether matrix products are computed in bfloat16.

    Returns:
        [`~hf_jepa.programs.cost.Work`] of one sample, and the loss.
    """
    counter = ForwardCounter(model.parameters())
    kept, checkpointed = KeptTensors(counter.weights), CheckpointedLayers(model, counter)
    with contextlib.ExitStack() as stack:
        if (mode := fake_mode(model)) is not None:
            batch = map_tensors(batch, mode.from_tensor)
            stack.enter_context(mode)
            # As under compilation, where models do not look at values either.
            stack.enter_context(patch.object(torch.compiler, "is_compiling", return_value=True))
        for context in (kept, counter, torch.autocast("cpu", torch.bfloat16, enabled=half)):
            stack.enter_context(context)
        loss = step(batch)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    work = Work(
        trained,
        sum(parameter.numel() for parameter in model.parameters()) - trained,
        counter.flops / samples,
        counter.tracked / samples,
        (kept.nbytes + checkpointed.nbytes) / samples,
        gathered_parameters(model),
        checkpointed.flops / samples,
    )
    return work, loss
