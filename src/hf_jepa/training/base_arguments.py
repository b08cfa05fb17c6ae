"""What the arguments of all trainers here share."""

from dataclasses import dataclass, field, fields
from typing import Any, Self

from transformers import TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

# What the trainers cannot work without; an ordinary `TrainingArguments` is switched to these, and says so.
_REQUIRED_VALUES = {"remove_unused_columns": False, "logging_nan_inf_filter": False}


@dataclass
class CommonTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] with the defaults and the fields that every trainer here has: `report_to`
    `"none"`, `remove_unused_columns` and `logging_nan_inf_filter` `False` (must stay so), `ddp_find_unused_parameters`
    `False`, `accelerator_config` `{"dispatch_batches": False}`, EMA momenta, and `allow_changed_settings`.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: what the models need would be dropped."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Must stay False: True hides a NaN loss."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Trackers; none unless asked for."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every trainable parameter is used in every step."}
    )
    accelerator_config: dict | str | None = field(
        default_factory=lambda: {"dispatch_batches": False},
        metadata={"help": "Accelerator settings; each rank reads its own data."},
    )
    ema_momentum: float = field(default=0.996, metadata={"help": "Target momentum of the first update, in [0, 1]."})
    ema_momentum_end: float = field(default=1.0, metadata={"help": "Target momentum at the end, in [0, 1]."})
    allow_changed_settings: bool = field(
        default=False, metadata={"help": "Resume although settings differ from those of the checkpoint."}
    )

    def __post_init__(self) -> None:
        for name in ("ema_momentum", "ema_momentum_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; an EMA momentum lies in [0, 1].")
        for name, value in _REQUIRED_VALUES.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, which JEPA training cannot use; leave it {value}."
                )
        super().__post_init__()

    @classmethod
    def from_plain(cls, args: TrainingArguments) -> Self:
        """
        Reads an ordinary [`~transformers.TrainingArguments`] as these: every field keeps its value, but for what JEPA
        training cannot use, which is switched with a warning.

        Args:
            args (`TrainingArguments`): the arguments that the user gave.

        Returns:
            The same object if it already is one of these, else a converted copy.
        """
        if isinstance(args, cls):
            return args
        values = {f.name: getattr(args, f.name) for f in fields(args) if f.init}
        changed = {name: value for name, value in _REQUIRED_VALUES.items() if values[name] != value}
        values["report_to"] = values["report_to"] or "none"
        values["accelerator_config"] = {**values["accelerator_config"].to_dict(), "dispatch_batches": False}
        if values["ddp_find_unused_parameters"] is None:
            values["ddp_find_unused_parameters"] = False
        if changed:
            settings = ", ".join(f"{name}={value}" for name, value in changed.items())
            logger.warning(f"JEPA training needs {settings}: set so. Use `{cls.__name__}` to avoid this message.")
        return cls(**{**values, **changed, **cls._replaced(args)})

    @classmethod
    def _replaced(cls, args: TrainingArguments) -> dict[str, Any]:
        """Fields that get another value than their default where ordinary arguments are read."""
        return {}
