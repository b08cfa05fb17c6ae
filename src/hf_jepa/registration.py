"""The one table of model types; registering them with the Auto classes is all that `import hf_jepa` does."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoProcessor,
)

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

# (config, model, Auto classes beside AutoConfig)
MODELS = [
    (IJepaPreTrainingConfig, IJepaForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (CJepaPreTrainingConfig, CJepaForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (Data2VecVisionPreTrainingConfig, Data2VecVisionForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (LeJepaPreTrainingConfig, LeJepaForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (RectifiedLpJepaPreTrainingConfig, RectifiedLpJepaForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (SimSiamPreTrainingConfig, SimSiamForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (VICRegPreTrainingConfig, VICRegForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (ConvEncoderConfig, ConvEncoderModel, (AutoModel,)),
    (LatentWorldModelConfig, LatentWorldModel, (AutoModel, AutoModelForPreTraining)),
    (LLMJepaConfig, LLMJepaForCausalLM, (AutoModel, AutoModelForPreTraining)),
    (VJepaConfig, VJepaModel, (AutoModel,)),
    (VJepaConfig, VJepaForVideoClassification, (AutoModelForVideoClassification,)),
    (VJepaActionAnticipationConfig, VJepaForActionAnticipation, (AutoModel,)),
    (VJepaPreTrainingConfig, VJepaForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (VJepa2PreTrainingConfig, VJepa2ForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (VLJepaConfig, VLJepaModel, (AutoModel, AutoModelForPreTraining)),
]


def register() -> None:
    """Registers every model type; calling it again changes nothing."""
    for config, model, auto_classes in MODELS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class in auto_classes:
            auto_class.register(config, model, exist_ok=True)
    AutoProcessor.register(VLJepaConfig, VLJepaProcessor, exist_ok=True)
