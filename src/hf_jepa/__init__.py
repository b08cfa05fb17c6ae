"""Joint-Embedding Predictive Architectures for the Hugging Face stack."""

import importlib
from typing import TYPE_CHECKING, Any

from .methods import Method, ModelClass, model_classes, register_method, watch_transformers
from .version import __version__

if TYPE_CHECKING:
    from .modeling_jepa import JepaOutput, JepaPreTrainedModel
    from .models import *
    from .pipelines import VLJepaPipeline
    from .planning import CEMPlanner, GradientPlanner, MPCPolicy, MPPIPlanner
    from .training import (
        JepaTrainer,
        JepaTrainingArguments,
        LLMJepaTrainer,
        LLMJepaTrainingArguments,
        VLJepaTrainer,
        VLJepaTrainingArguments,
    )

# Public name -> the room that has it; the classes of the methods stand in their table.
_HOME = {
    "CEMPlanner": ".planning",
    "GradientPlanner": ".planning",
    "JepaOutput": ".modeling_jepa",
    "JepaPreTrainedModel": ".modeling_jepa",
    "JepaTrainer": ".training",
    "JepaTrainingArguments": ".training",
    "LLMJepaTrainer": ".training",
    "LLMJepaTrainingArguments": ".training",
    "MPCPolicy": ".planning",
    "MPPIPlanner": ".planning",
    "VLJepaPipeline": ".pipelines",
    "VLJepaTrainer": ".training",
    "VLJepaTrainingArguments": ".training",
}
for _classes in model_classes():
    for _path in (_classes.config, _classes.model, _classes.processor):
        if isinstance(_path, str):
            _room, _, _name = _path.partition(":")
            _HOME[_name] = _room

watch_transformers()

__all__ = sorted([*_HOME, "Method", "ModelClass", "__version__", "register_method"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
