from .configuration_joint_embedding import (
    JointEmbeddingPreTrainingConfig,
    LeJepaPreTrainingConfig,
    RectifiedLpJepaPreTrainingConfig,
    SimSiamPreTrainingConfig,
    VICRegPreTrainingConfig,
)
from .modeling_joint_embedding import JointEmbeddingPreTrainedModel
from .modeling_lejepa import LeJepaForPreTraining, lejepa_loss
from .modeling_rectified_lpjepa import RectifiedLpJepaForPreTraining
from .modeling_simsiam import SimSiamForPreTraining
from .modeling_vicreg import VICRegForPreTraining

__all__ = [
    "JointEmbeddingPreTrainedModel",
    "JointEmbeddingPreTrainingConfig",
    "LeJepaForPreTraining",
    "LeJepaPreTrainingConfig",
    "RectifiedLpJepaForPreTraining",
    "RectifiedLpJepaPreTrainingConfig",
    "SimSiamForPreTraining",
    "SimSiamPreTrainingConfig",
    "VICRegForPreTraining",
    "VICRegPreTrainingConfig",
    "lejepa_loss",
]
