"""Training arguments of the LLM-JEPA trainer."""

from dataclasses import dataclass, field

from ...masking.semantic_tube import TUBE_VARIANTS
from ..base_arguments import CommonTrainingArguments

REGIMES = ("clean", "official")


@dataclass
class LLMJepaTrainingArguments(CommonTrainingArguments):
    r"""
    Arguments of [`LLMJepaTrainer`]: those of [`~transformers.TrainingArguments`] plus how losses are normalised, how
    pairs are packed and what evaluation generates. What the loss is (weights, distance, predictors) is in the model's
    config; what labels and views are is in the dataset's [`~hf_jepa.data.PairFormat`].

    Args:
        regime (`str`, *optional*, defaults to `"clean"`):
            `"clean"`: cross-entropy over all labelled tokens of an optimizer step, distance over all its pairs,
            whatever its split over processes and accumulation. `"official"`: as the released code: means over each
            micro-batch whose gradients are *added* up over the accumulation steps, so that they grow with them.
        jepa_dropout (`float`, *optional*, defaults to 0.0):
            Share of examples, in [0, 1), without JEPA tokens. The paper's rule is to keep `lambda * (1 - dropout)`.
        max_row_tokens (`int`, *optional*):
            Pack examples into rows of this many tokens; by default each has a row of its own.
        pad_to_multiple_of (`int`, *optional*, defaults to 1):
            Round row lengths up, 128 for FlexAttention.
        tube_variant (`str`, *optional*, defaults to `"paper"`):
            Semantic tube prediction only: `"paper"`, `"random_span"`, the released code's, or `"inner_span"`.
        tube_times (`int`, *optional*, defaults to 1):
            Semantic tube prediction only: displacement pairs per example.
        lambda_warmup_steps (`int`, *optional*, defaults to 0):
            Updates over which the weight of the JEPA term grows from near 0 on a straight line.
        ema_momentum (`float`, *optional*, defaults to 0.99), ema_momentum_end (`float`, *optional*, defaults to 1.0):
            Momentum of an EMA target (`target="ema"`), on a straight line over the run.
        generate_examples (`int`, *optional*, defaults to 0):
            Evaluation also answers this many of its rows by generation, and reports `eval_exact_match`; -1 is all.
        generate_max_new_tokens (`int`, *optional*, defaults to 128):
            The longest answer.
        collapse_margin (`float`, *optional*, defaults to 0.02):
            A paired cosine that exceeds the unpaired by less than this for 100 updates, or in a run's last log, is
            warned about once; the card says the latter. 0 switches the check off.
        allow_changed_settings (`bool`, *optional*, defaults to `False`):
            Resume although settings that shape the trajectory differ from those of the checkpoint.

    Overridden defaults: `learning_rate` 2e-5, `lr_scheduler_type` `"linear"`, `weight_decay` 0, `max_grad_norm` 1.0
    and `num_train_epochs` 4 (the paper's), `per_device_train_batch_size` 4, `logging_steps` 10, `report_to` `"none"`,
    `remove_unused_columns` and `logging_nan_inf_filter` `False` (must stay so), `ddp_find_unused_parameters` `False`,
    `accelerator_config` `{"dispatch_batches": False}`.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate (paper: 1e-5 to 8e-5)."})
    num_train_epochs: float = field(default=4.0, metadata={"help": "Passes over the data (paper: 4)."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Examples per process and micro-batch."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many updates."})

    regime: str = field(default="clean", metadata={"help": "How losses are normalised: clean or official."})
    jepa_dropout: float = field(default=0.0, metadata={"help": "Share of examples without JEPA tokens, in [0, 1)."})
    max_row_tokens: int | None = field(default=None, metadata={"help": "Pack examples into rows of so many tokens."})
    pad_to_multiple_of: int = field(default=1, metadata={"help": "Round row lengths up to a multiple."})
    tube_variant: str = field(default="paper", metadata={"help": "STP's: paper, random_span or inner_span."})
    tube_times: int = field(default=1, metadata={"help": "STP's displacement pairs per example."})
    lambda_warmup_steps: int = field(default=0, metadata={"help": "Updates until the JEPA weight is reached."})
    ema_momentum: float = field(default=0.99, metadata={"help": "Momentum of an EMA target at the start."})
    generate_examples: int = field(default=0, metadata={"help": "Evaluation rows answered by generation; -1 is all."})
    generate_max_new_tokens: int = field(default=128, metadata={"help": "Longest generated answer."})
    collapse_margin: float = field(default=0.02, metadata={"help": "Least paired minus unpaired cosine; 0 is off."})

    # Read by the schedule of the momentum; a fine-tuning run is its whole horizon.
    schedule_horizon = 1.0

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise ValueError(f"`regime` is {self.regime!r}; choose 'clean' or 'official'.")
        if not 0.0 <= self.jepa_dropout < 1.0:
            raise ValueError(f"`jepa_dropout` is {self.jepa_dropout}; it lies in [0, 1).")
        if self.generate_examples < -1 or self.generate_max_new_tokens < 1:
            raise ValueError("`generate_examples` is -1 or more, `generate_max_new_tokens` positive.")
        if self.tube_variant not in TUBE_VARIANTS or self.tube_times < 1 or self.lambda_warmup_steps < 0:
            raise ValueError(
                f"`tube_variant` is one of {TUBE_VARIANTS}, `tube_times` positive, `lambda_warmup_steps` 0 or more; "
                f"got {self.tube_variant!r}, {self.tube_times}, {self.lambda_warmup_steps}."
            )
        super().__post_init__()
