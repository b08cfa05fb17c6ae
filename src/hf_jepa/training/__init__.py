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
from .schedules import cosine_weight_decay, linear_ema_momentum, warmup_cosine_learning_rate

__all__ = [
    "GuardCallback",
    "JepaTrainer",
    "JepaTrainingArguments",
    "NonFiniteLossError",
    "SamplerEpochCallback",
    "StepSeedCallback",
    "TargetEMACallback",
    "WeightDecayCallback",
    "cosine_weight_decay",
    "linear_ema_momentum",
    "warmup_cosine_learning_rate",
]
