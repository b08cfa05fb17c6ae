"""Training arguments of the VL-JEPA trainer."""

from dataclasses import dataclass, field

from ..base_arguments import CommonTrainingArguments


@dataclass
class VLJepaTrainingArguments(CommonTrainingArguments):
    r"""
    Arguments of [`VLJepaTrainer`]: those of [`~transformers.TrainingArguments`] plus learning rates by part, gradient
    caching and guards. What the loss is stands in the model's config.

    Args:
        y_encoder_lr_multiplier (`float`, *optional*, defaults to 0.05):
            Learning rate of the Y-encoder over that of the rest (paper §3.1, and its ablation).
        y_projection_lr_multiplier (`float`, *optional*, defaults to 1.0):
            That of the new map behind the Y-encoder. The paper speaks of "text encoder parameters"; whether the map
            is one of them is not stated.
        gradient_cache_micro_batch (`int`, *optional*):
            Compute the gradient of each process's batch in parts of this many pairs, so that memory does not grow with
            the batch: negatives are all pairs of all processes, at the price of one more forward pass. (Gradient
            accumulation adds no negatives.)
        ema_momentum (`float`, *optional*, defaults to 0.996), ema_momentum_end (`float`, *optional*, defaults to 1.0):
            Momentum of an EMA target (`target="ema"`), on a straight line over the run.
        collapse_std_threshold (`float`, *optional*, defaults to 1e-3):
            A log whose standard deviation of L2-normalised predictions or targets, times the square root of their
            width, is below this counts as a collapse (1 is isotropic). 0 switches the check off.
        collapse_rank_threshold (`float`, *optional*, defaults to 1.5):
            The same for their RankMe, whose least value is 1.
        collapse_patience (`int`, *optional*, defaults to 3):
            Number of such logs in a row after which `collapse_action` is taken.
        collapse_action (`str`, *optional*, defaults to `"warn"`):
            `"warn"` or `"stop"`. The first such log is always warned about.
        allow_changed_settings (`bool`, *optional*, defaults to `False`):
            Resume although settings that shape the trajectory differ from those of the checkpoint.

    Overridden defaults: `learning_rate` 5e-5 and `lr_scheduler_type` `"constant"` (the paper's first stage),
    `per_device_train_batch_size` 64, `logging_steps` 50, `report_to` `"none"`, `remove_unused_columns` and
    `logging_nan_inf_filter` `False` (must stay so), `ddp_find_unused_parameters` `False`, `accelerator_config`
    `{"dispatch_batches": False}`. Weight decay (0), warmup (0) and clipping (1.0) are transformers' defaults; the
    paper states none of them.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "Learning rate (paper: 5e-5 in pretraining)."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Paper: constant, then cosine in SFT."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs per process and forward pass."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many updates."})

    y_encoder_lr_multiplier: float = field(default=0.05, metadata={"help": "Y-encoder's share of learning_rate."})
    y_projection_lr_multiplier: float = field(default=1.0, metadata={"help": "That of the map behind it."})
    gradient_cache_micro_batch: int | None = field(
        default=None, metadata={"help": "Pairs per forward pass under gradient caching; default: no caching."}
    )
    collapse_std_threshold: float = field(
        default=1e-3, metadata={"help": "Spread of embeddings below which a log counts as collapse; 0 is off."}
    )
    collapse_rank_threshold: float = field(
        default=1.5, metadata={"help": "RankMe of embeddings below which a log counts as collapse; 0 is off."}
    )
    collapse_patience: int = field(default=3, metadata={"help": "Collapsed logs in a row before the action."})
    collapse_action: str = field(default="warn", metadata={"help": "What a collapse does: `warn` or `stop`."})

    # Read by the schedule of the momentum.
    schedule_horizon = 1.0

    def __post_init__(self) -> None:
        for name in ("y_encoder_lr_multiplier", "y_projection_lr_multiplier"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a finite number that is not negative.")
        if self.gradient_cache_micro_batch is not None and self.gradient_cache_micro_batch < 1:
            raise ValueError(
                f"`gradient_cache_micro_batch` is {self.gradient_cache_micro_batch}; give 1 or more, or None."
            )
        if self.collapse_patience < 1 or self.collapse_action not in ("warn", "stop"):
            raise ValueError(
                "`collapse_patience` is at least 1, `collapse_action` 'warn' or 'stop'; got "
                f"{self.collapse_patience}, {self.collapse_action!r}."
            )
        # The loss keeps falling while retrieval already declines: select by retrieval.
        if self.metric_for_best_model is None and (self.load_best_model_at_end or self.save_strategy == "best"):
            self.metric_for_best_model = "eval_retrieval_at_1"
        super().__post_init__()
