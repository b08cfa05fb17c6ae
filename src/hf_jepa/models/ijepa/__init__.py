from .configuration_ijepa import CJepaPreTrainingConfig, IJepaPreTrainingConfig
from .modeling_ijepa import CJepaForPreTraining, IJepaForPreTraining

__all__ = ["CJepaForPreTraining", "CJepaPreTrainingConfig", "IJepaForPreTraining", "IJepaPreTrainingConfig"]
