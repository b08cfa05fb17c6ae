from .configuration_ijepa import IJepaPreTrainingConfig
from .modeling_ijepa import IJepaForPreTraining

__all__ = ["IJepaForPreTraining", "IJepaPreTrainingConfig"]
