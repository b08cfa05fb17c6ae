from .callbacks import (
    ContextLossCallback,
    GuardCallback,
    NonFiniteLossError,
    SamplerEpochCallback,
    StepSeedCallback,
    TargetEMACallback,
    WeightDecayCallback,
)
from .interruption import TrainingInterrupted
from .jepa.arguments import JepaTrainingArguments
from .jepa.schedules import (
    cosine_weight_decay,
    linear_ema_momentum,
    progressive_share,
    warmup_cosine_learning_rate,
    warmup_stable_decay_learning_rate,
)
from .jepa.trainer import JepaTrainer
from .llm.arguments import LLMJepaTrainingArguments
from .llm.trainer import LLMJepaTrainer
from .vl.arguments import VLJepaTrainingArguments
from .vl.decoder import train_y_decoder
from .vl.trainer import VLJepaTrainer

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
    "TrainingInterrupted",
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
