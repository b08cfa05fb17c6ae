"""Joint-Embedding Predictive Architectures for the Hugging Face stack."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register
from .version import __version__

if TYPE_CHECKING:
    from .modeling_jepa import JepaOutput, JepaPreTrainedModel
    from .models.cjepa import CJepaForPreTraining, CJepaPreTrainingConfig
    from .models.ijepa import IJepaForPreTraining, IJepaPreTrainingConfig
    from .training import JepaTrainer, JepaTrainingArguments

_HOME = {
    "CJepaForPreTraining": "models.cjepa",
    "CJepaPreTrainingConfig": "models.cjepa",
    "IJepaForPreTraining": "models.ijepa",
    "IJepaPreTrainingConfig": "models.ijepa",
    "JepaOutput": "modeling_jepa",
    "JepaPreTrainedModel": "modeling_jepa",
    "JepaTrainer": "training",
    "JepaTrainingArguments": "training",
}

__all__ = [
    "CJepaForPreTraining",
    "CJepaPreTrainingConfig",
    "IJepaForPreTraining",
    "IJepaPreTrainingConfig",
    "JepaOutput",
    "JepaPreTrainedModel",
    "JepaTrainer",
    "JepaTrainingArguments",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


register()
