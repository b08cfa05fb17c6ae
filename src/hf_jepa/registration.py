"""The one table of model types; registering them with the Auto classes is all that `import hf_jepa` does."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .models.cjepa import CJepaForPreTraining, CJepaPreTrainingConfig
from .models.ijepa import IJepaForPreTraining, IJepaPreTrainingConfig

# (config, model, Auto classes beside AutoConfig)
MODELS = [
    (IJepaPreTrainingConfig, IJepaForPreTraining, (AutoModel, AutoModelForPreTraining)),
    (CJepaPreTrainingConfig, CJepaForPreTraining, (AutoModel, AutoModelForPreTraining)),
]


def register() -> None:
    """Registers every model type; calling it again changes nothing."""
    for config, model, auto_classes in MODELS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class in auto_classes:
            auto_class.register(config, model, exist_ok=True)
