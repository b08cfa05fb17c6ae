from .configuration_cjepa import CJepaPreTrainingConfig
from .modeling_cjepa import CJepaForPreTraining

__all__ = ["CJepaForPreTraining", "CJepaPreTrainingConfig"]
