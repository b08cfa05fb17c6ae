from .arguments import JepaTrainingArguments
from .callbacks import (
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
from .schedules import cosine_weight_decay, linear_ema_momentum, warmup_cosine_learning_rate

__all__ = [
    "GuardCallback",
    "JepaTrainer",
    "JepaTrainingArguments",
    "LLMJepaTrainer",
    "LLMJepaTrainingArguments",
    "NonFiniteLossError",
    "SamplerEpochCallback",
    "StepSeedCallback",
    "TargetEMACallback",
    "WeightDecayCallback",
    "cosine_weight_decay",
    "linear_ema_momentum",
    "warmup_cosine_learning_rate",
]
