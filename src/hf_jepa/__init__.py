"""Joint-Embedding Predictive Architectures for the Hugging Face stack."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register
from .version import __version__

if TYPE_CHECKING:
    from .modeling_jepa import JepaOutput, JepaPreTrainedModel
    from .models.cjepa import CJepaForPreTraining, CJepaPreTrainingConfig
    from .models.data2vec_vision import Data2VecVisionForPreTraining, Data2VecVisionPreTrainingConfig
    from .models.ijepa import IJepaForPreTraining, IJepaPreTrainingConfig
    from .models.joint_embedding import (
        LeJepaForPreTraining,
        LeJepaPreTrainingConfig,
        RectifiedLpJepaForPreTraining,
        RectifiedLpJepaPreTrainingConfig,
        SimSiamForPreTraining,
        SimSiamPreTrainingConfig,
        VICRegForPreTraining,
        VICRegPreTrainingConfig,
    )
    from .models.latent_world_model import (
        ConvEncoderConfig,
        ConvEncoderModel,
        LatentWorldModel,
        LatentWorldModelConfig,
    )
    from .models.llm_jepa import LLMJepaConfig, LLMJepaForCausalLM
    from .models.vjepa import (
        VJepa2ForPreTraining,
        VJepa2PreTrainingConfig,
        VJepaActionAnticipationConfig,
        VJepaConfig,
        VJepaForActionAnticipation,
        VJepaForPreTraining,
        VJepaForVideoClassification,
        VJepaModel,
        VJepaPreTrainingConfig,
    )
    from .models.vl_jepa import VLJepaConfig, VLJepaModel, VLJepaProcessor
    from .pipelines.vl_jepa import VLJepaPipeline
    from .training import (
        JepaTrainer,
        JepaTrainingArguments,
        LLMJepaTrainer,
        LLMJepaTrainingArguments,
        VLJepaTrainer,
        VLJepaTrainingArguments,
    )


_HOME = {
    "CJepaForPreTraining": "models.cjepa",
    "CJepaPreTrainingConfig": "models.cjepa",
    "ConvEncoderConfig": "models.latent_world_model",
    "ConvEncoderModel": "models.latent_world_model",
    "Data2VecVisionForPreTraining": "models.data2vec_vision",
    "Data2VecVisionPreTrainingConfig": "models.data2vec_vision",
    "IJepaForPreTraining": "models.ijepa",
    "IJepaPreTrainingConfig": "models.ijepa",
    "JepaOutput": "modeling_jepa",
    "JepaPreTrainedModel": "modeling_jepa",
    "JepaTrainer": "training",
    "JepaTrainingArguments": "training",
    "LLMJepaConfig": "models.llm_jepa",
    "LLMJepaForCausalLM": "models.llm_jepa",
    "LLMJepaTrainer": "training",
    "LLMJepaTrainingArguments": "training",
    "LatentWorldModel": "models.latent_world_model",
    "LatentWorldModelConfig": "models.latent_world_model",
    "LeJepaForPreTraining": "models.joint_embedding",
    "LeJepaPreTrainingConfig": "models.joint_embedding",
    "RectifiedLpJepaForPreTraining": "models.joint_embedding",
    "RectifiedLpJepaPreTrainingConfig": "models.joint_embedding",
    "SimSiamForPreTraining": "models.joint_embedding",
    "SimSiamPreTrainingConfig": "models.joint_embedding",
    "VICRegForPreTraining": "models.joint_embedding",
    "VICRegPreTrainingConfig": "models.joint_embedding",
    "VJepa2ForPreTraining": "models.vjepa",
    "VJepa2PreTrainingConfig": "models.vjepa",
    "VJepaActionAnticipationConfig": "models.vjepa",
    "VJepaConfig": "models.vjepa",
    "VJepaForActionAnticipation": "models.vjepa",
    "VJepaForPreTraining": "models.vjepa",
    "VJepaForVideoClassification": "models.vjepa",
    "VJepaModel": "models.vjepa",
    "VJepaPreTrainingConfig": "models.vjepa",
    "VLJepaConfig": "models.vl_jepa",
    "VLJepaModel": "models.vl_jepa",
    "VLJepaPipeline": "pipelines.vl_jepa",
    "VLJepaProcessor": "models.vl_jepa",
    "VLJepaTrainer": "training",
    "VLJepaTrainingArguments": "training",
}

__all__ = [
    "CJepaForPreTraining",
    "CJepaPreTrainingConfig",
    "ConvEncoderConfig",
    "ConvEncoderModel",
    "Data2VecVisionForPreTraining",
    "Data2VecVisionPreTrainingConfig",
    "IJepaForPreTraining",
    "IJepaPreTrainingConfig",
    "JepaOutput",
    "JepaPreTrainedModel",
    "JepaTrainer",
    "JepaTrainingArguments",
    "LLMJepaConfig",
    "LLMJepaForCausalLM",
    "LLMJepaTrainer",
    "LLMJepaTrainingArguments",
    "LatentWorldModel",
    "LatentWorldModelConfig",
    "LeJepaForPreTraining",
    "LeJepaPreTrainingConfig",
    "RectifiedLpJepaForPreTraining",
    "RectifiedLpJepaPreTrainingConfig",
    "SimSiamForPreTraining",
    "SimSiamPreTrainingConfig",
    "VICRegForPreTraining",
    "VICRegPreTrainingConfig",
    "VJepa2ForPreTraining",
    "VJepa2PreTrainingConfig",
    "VJepaActionAnticipationConfig",
    "VJepaConfig",
    "VJepaForActionAnticipation",
    "VJepaForPreTraining",
    "VJepaForVideoClassification",
    "VJepaModel",
    "VJepaPreTrainingConfig",
    "VLJepaConfig",
    "VLJepaModel",
    "VLJepaPipeline",
    "VLJepaProcessor",
    "VLJepaTrainer",
    "VLJepaTrainingArguments",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


register()
