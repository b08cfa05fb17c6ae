from .configuration_vjepa import VJepaConfig
from .configuration_vjepa_pretraining import VJepa2PreTrainingConfig, VJepaPreTrainingConfig
from .modeling_vjepa import VJepaModel
from .modeling_vjepa_pretraining import VJepa2ForPreTraining, VJepaForPreTraining

__all__ = [
    "VJepa2ForPreTraining",
    "VJepa2PreTrainingConfig",
    "VJepaConfig",
    "VJepaForPreTraining",
    "VJepaModel",
    "VJepaPreTrainingConfig",
]
