"""Training arguments of the JEPA trainers."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ..base_arguments import CommonTrainingArguments


@dataclass
class JepaTrainingArguments(CommonTrainingArguments):
    r"""
    Arguments of [`JepaTrainer`]: those of [`~transformers.TrainingArguments`] plus the schedules of the originals,
    probes and guards. The defaults are the published I-JEPA recipe (facebookresearch/ijepa `in1k_vith14_ep300`).
    The recipes of V-JEPA are written out in `hf_jepa/recipes`. What is constant in V-JEPA 2 has its end equal to its
    start (`learning_rate_end=learning_rate`, `weight_decay_end=weight_decay`, `ema_momentum_end=ema_momentum`).

    Args:
        ema_momentum (`float`, *optional*, defaults to 0.996):
            Momentum of the first target update; in [0, 1].
        ema_momentum_end (`float`, *optional*, defaults to 1.0):
            Momentum that a straight line over the schedule reaches; in [0, 1].
        learning_rate_start (`float`, *optional*):
            Where the warmup starts. Defaults to a fifth of `learning_rate`, the ratio of the published recipe.
        learning_rate_end (`float`, *optional*, defaults to 1e-6):
            Where the cosine ends, and its floor.
        learning_rate_linear_decay (`float`, *optional*):
            Instead of the cosine: keep the learning rate after the warmup, and let it fall to `learning_rate_end` in a
            straight line over this share of the schedule, its last. 1.0 is V-JEPA 2's cooldown, 15/315 V-JEPA 2-AC.
        weight_decay_end (`float`, *optional*, defaults to 0.4):
            Where the cosine of the weight decay ends; it starts at `weight_decay`.
        lars_trust_coefficient (`float`, *optional*):
            Train with LARS (timm's) and this coefficient, in place of `optim`; what does not decay is not adapted
            either. VICReg's released code has 0.001, Rectified LpJEPA's 0.02.
        lars_clip (`bool`, *optional*, defaults to `False`):
            Let LARS lower the learning rate of a parameter, never raise it (LARC), as Rectified LpJEPA's code does.
        decay_vectors (`bool`, *optional*, defaults to `False`):
            Decay biases and norms too, as the released code of SimSiam and LeJEPA's MINIMAL.md do.
        fix_pred_lr (`bool`, *optional*, defaults to `False`):
            The predictor's learning rate is `learning_rate` from the first update to the last, whatever the schedule
            (SimSiam, arXiv 2011.10566, and released code).
        clip_after_steps (`float`, *optional*, defaults to 0.0):
            Updates, or below 1 a share of the run, before `max_grad_norm` is heeded. V-JEPA (with `max_grad_norm`
            10.0): 41/300, one epoch after the warmup.
        clip_separately (`bool`, *optional*, defaults to `False`):
            Clip the context encoder and everything else by themselves, each to `max_grad_norm`, as V-JEPA does.
        context_loss_start_step (`int`, *optional*, defaults to 0), context_loss_full_step (`int`, *optional*, \
            defaults to 0):
            The update up to which V-JEPA 2.1's loss on visible tokens does not count, and the one from which it has
            the weight that the model's config gives it. Published: 15,000 and 30,000, and in the cooldown 0 and 0.
        schedule_horizon (`float`, *optional*, defaults to 1.0):
            The schedules reach their ends after `schedule_horizon * max_steps` updates (`ipe_scale` in the originals);
            at least 1. Warmup is not stretched, as in the original.
        probe_every_steps (`int`, *optional*):
            Run the k-NN and ridge probes on target features every so many updates; short for
            `eval_strategy="steps", eval_steps=...`.
        probe_num_neighbors (`int`, *optional*, defaults to 20):
            Neighbours of the k-NN probe.
        collapse_std_threshold (`float`, *optional*, defaults to 0.01):
            A log whose target feature std (across images, per position and dimension) is below this counts as a
            collapse. 0 switches the check off.
        collapse_rank_threshold (`float`, *optional*, defaults to 1.5):
            The same for RankMe of the target features, whose least value is 1. 0 switches the check off.
        collapse_patience (`int`, *optional*, defaults to 3):
            Number of such logs in a row after which `collapse_action` is taken.
        collapse_action (`str`, *optional*, defaults to `"warn"`):
            `"warn"` or `"stop"`. The first such log is always warned about.
        start_from_checkpoint (`str`, *optional*):
            A training checkpoint of an earlier phase: the run starts with its weights and the optimizer's moments, but
            at update 0, with settings and schedules of its own (V-JEPA 2's cooldown). A resumed run has no use for it.
        allow_changed_settings (`bool`, *optional*, defaults to `False`):
            Resume although settings that shape the trajectory differ from those of the checkpoint.

    Overridden defaults:

    - `learning_rate` 1e-3, `weight_decay` 0.04, `warmup_steps` 40/300 of the run, `lr_scheduler_type` `"cosine"`: the
      published recipe. With another `lr_scheduler_type` the learning rate is transformers' own schedule.
    - `max_grad_norm` 0: the originals do not clip.
    - `remove_unused_columns` `False`: masks and draws are not arguments that a dataset could be checked against.
    - `logging_nan_inf_filter` `False`: the stock default logs a NaN loss as 0.
    - `report_to` `"none"`: no network traffic that nobody asked for.
    - `ddp_find_unused_parameters` `False`: every trainable parameter is used in every step.
    - `accelerator_config` `{"dispatch_batches": False}`: each rank decodes its own images.
    - `logging_steps` 50.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.04, metadata={"help": "Weight decay at the start of its cosine."})
    warmup_steps: float = field(
        default=40 / 300, metadata={"help": "Warmup updates, or below 1 a share of the run (published: 40/300)."}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "`cosine` is the originals' warmup-cosine; others are transformers' own."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none, as in the originals."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many updates."})

    learning_rate_start: float | None = field(
        default=None, metadata={"help": "Learning rate that the warmup starts from; default: learning_rate / 5."}
    )
    learning_rate_end: float = field(default=1e-6, metadata={"help": "Learning rate at the end of the cosine."})
    learning_rate_linear_decay: float | None = field(
        default=None, metadata={"help": "Share of the schedule, its last, over which the rate falls linearly."}
    )
    weight_decay_end: float = field(default=0.4, metadata={"help": "Weight decay at the end of its cosine."})
    lars_trust_coefficient: float | None = field(
        default=None, metadata={"help": "Train with LARS (momentum 0.9) and this trust coefficient."}
    )
    lars_clip: bool = field(default=False, metadata={"help": "LARS never raises a learning rate (LARC)."})
    decay_vectors: bool = field(default=False, metadata={"help": "Decay biases and norms too."})
    fix_pred_lr: bool = field(default=False, metadata={"help": "Keep the predictor's learning rate constant."})
    clip_after_steps: float = field(
        default=0.0, metadata={"help": "Updates, or below 1 a share of the run, before gradients are clipped."}
    )
    clip_separately: bool = field(default=False, metadata={"help": "Clip context encoder and the rest separately."})
    context_loss_start_step: int = field(default=0, metadata={"help": "Last update without the context loss."})
    context_loss_full_step: int = field(default=0, metadata={"help": "First update with the whole context loss."})
    schedule_horizon: float = field(
        default=1.0, metadata={"help": "Stretches every schedule beyond the run (`ipe_scale` in the originals)."}
    )
    probe_every_steps: int | None = field(
        default=None, metadata={"help": "Probe the target features every so many updates."}
    )
    probe_num_neighbors: int = field(default=20, metadata={"help": "Neighbours of the k-NN probe."})
    collapse_std_threshold: float = field(
        default=0.01, metadata={"help": "Target feature std below which a log counts as collapse; 0 is off."}
    )
    collapse_rank_threshold: float = field(
        default=1.5, metadata={"help": "RankMe of the targets below which a log counts as collapse; 0 is off."}
    )
    collapse_patience: int = field(default=3, metadata={"help": "Collapsed logs in a row before the action."})
    collapse_action: str = field(default="warn", metadata={"help": "What a collapse does: `warn` or `stop`."})
    start_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint of an earlier phase, whose weights and moments a new run takes."}
    )

    def __post_init__(self) -> None:
        if self.probe_every_steps is not None:
            if self.probe_every_steps < 1:
                raise ValueError(
                    f"`probe_every_steps` is {self.probe_every_steps}; give a positive number of updates, or None."
                )
            self.eval_strategy = "steps"
            self.eval_steps = self.probe_every_steps
        if self.learning_rate_start is None:
            self.learning_rate_start = self.learning_rate / 5
        # The stock default is "loss", which the probes do not measure.
        if self.metric_for_best_model is None and (self.load_best_model_at_end or self.save_strategy == "best"):
            self.metric_for_best_model = "eval_knn_accuracy"
        self._check_jepa_fields()
        super().__post_init__()

    def _check_jepa_fields(self) -> None:
        for name in (
            "learning_rate",
            "learning_rate_start",
            "learning_rate_end",
            "weight_decay",
            "weight_decay_end",
            "clip_after_steps",
            "context_loss_start_step",
            "collapse_std_threshold",
            "collapse_rank_threshold",
        ):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a number that is not negative.")
        if self.lars_trust_coefficient is not None and not self.lars_trust_coefficient > 0:
            raise ValueError(
                f"`lars_trust_coefficient` is {self.lars_trust_coefficient}; give a positive one, or None."
            )
        if self.learning_rate_linear_decay is not None and not 0.0 < self.learning_rate_linear_decay <= 1.0:
            raise ValueError(
                f"`learning_rate_linear_decay` is {self.learning_rate_linear_decay}; it is a share of the schedule, "
                "in (0, 1]."
            )
        if (self.clip_after_steps or self.clip_separately) and not self.max_grad_norm:
            raise ValueError(
                f"`clip_after_steps` is {self.clip_after_steps} and `clip_separately` {self.clip_separately}, but "
                "`max_grad_norm` is 0: nothing is clipped. V-JEPA has 10.0."
            )
        if not self.context_loss_full_step >= self.context_loss_start_step:
            raise ValueError(
                f"`context_loss_full_step` is {self.context_loss_full_step}; give `context_loss_start_step` "
                f"({self.context_loss_start_step}) or more."
            )
        if not self.schedule_horizon >= 1.0:
            raise ValueError(
                f"`schedule_horizon` is {self.schedule_horizon}; it stretches the schedules: 1.0 or more."
            )
        for name in ("collapse_patience", "probe_num_neighbors"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.lr_scheduler_kwargs and self.lr_scheduler_type == "cosine":
            raise ValueError(
                f"`lr_scheduler_kwargs` is {self.lr_scheduler_kwargs}, but lr_scheduler_type='cosine' is the "
                "originals' schedule here, which has none; leave it out, or choose another of transformers' schedules."
            )
        if self.collapse_action not in ("warn", "stop"):
            raise ValueError(f"`collapse_action` is {self.collapse_action!r}; choose 'warn' or 'stop'.")

    @classmethod
    def _replaced(cls, args: TrainingArguments) -> dict[str, Any]:
        # The weight decay stays constant.
        return {"weight_decay_end": args.weight_decay, "learning_rate_end": min(1e-6, args.learning_rate)}

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """
        Number of warmup updates.

        A share is rounded to the nearest update rather than up as in the base class: 40/300 of 187,500 updates is
        25,000, not 25,001.

        Args:
            num_training_steps (`int`): updates of the whole run.

        Returns:
            `int`: updates of the warmup.
        """
        return _as_updates(self.warmup_steps, num_training_steps)

    def get_clip_start(self, num_training_steps: int) -> int:
        """
        0-based index of the first update that `max_grad_norm` applies to.

        Args:
            num_training_steps (`int`): updates of the whole run.

        Returns:
            `int`: updates before it.
        """
        return _as_updates(self.clip_after_steps, num_training_steps)


def _as_updates(value: float, num_training_steps: int) -> int:
    return int(value) if value >= 1 else round(num_training_steps * value)


def lars(args: JepaTrainingArguments) -> tuple[type, dict[str, Any]]:
    """timm's LARS with momentum 0.9, and its options, as VICReg and Rectified LpJEPA are trained with."""
    try:
        from timm.optim import Lars
    except ImportError as error:
        raise ValueError("`lars_trust_coefficient` needs timm, which has LARS: `pip install timm`.") from error
    options = {"trust_coeff": args.lars_trust_coefficient, "trust_clip": args.lars_clip}
    return Lars, {"lr": args.learning_rate, "momentum": 0.9, **options}
