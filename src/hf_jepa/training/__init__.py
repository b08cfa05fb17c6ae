from .arguments import JepaTrainingArguments
from .callbacks import (
    ContextLossCallback,
    GuardCallback,
    NonFiniteLossError,
    SamplerEpochCallback,
    StepSeedCallback,
    TargetEMACallback,
    WeightDecayCallback,
)
from .jepa_trainer import JepaTrainer
from .llm_arguments import LLMJepaTrainingArguments
from .llm_jepa_trainer import LLMJepaTrainer
from .schedules import (
    cosine_weight_decay,
    linear_ema_momentum,
    progressive_share,
    warmup_cosine_learning_rate,
    warmup_stable_decay_learning_rate,
)
from .vl_arguments import VLJepaTrainingArguments
from .vl_decoder import train_y_decoder
from .vl_jepa_trainer import VLJepaTrainer

__all__ = [
    "ContextLossCallback",
    "GuardCallback",
    "JepaTrainer",
    "JepaTrainingArguments",
    "LLMJepaTrainer",
    "LLMJepaTrainingArguments",
    "NonFiniteLossError",
    "SamplerEpochCallback",
    "StepSeedCallback",
    "TargetEMACallback",
    "VLJepaTrainer",
    "VLJepaTrainingArguments",
    "WeightDecayCallback",
    "cosine_weight_decay",
    "linear_ema_momentum",
    "progressive_share",
    "train_y_decoder",
    "warmup_cosine_learning_rate",
    "warmup_stable_decay_learning_rate",
]
