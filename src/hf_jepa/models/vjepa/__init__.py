from .configuration_vjepa import VJepaConfig
from .configuration_vjepa_pretraining import VJepa2PreTrainingConfig, VJepaPreTrainingConfig
from .modeling_vjepa import VJepaModel
from .modeling_vjepa_anticipation import VJepaActionAnticipationConfig, VJepaForActionAnticipation
from .modeling_vjepa_classification import VJepaForVideoClassification
from .modeling_vjepa_pretraining import VJepa2ForPreTraining, VJepaForPreTraining
from .pooler_vjepa import VJepaAttentivePooler

__all__ = [
    "VJepa2ForPreTraining",
    "VJepa2PreTrainingConfig",
    "VJepaActionAnticipationConfig",
    "VJepaAttentivePooler",
    "VJepaConfig",
    "VJepaForActionAnticipation",
    "VJepaForPreTraining",
    "VJepaForVideoClassification",
    "VJepaModel",
    "VJepaPreTrainingConfig",
]
