"""A recipe's settings beside data that its author did not have."""

from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..data.dataset import MissingLabelsError
from ..data.splits import MissingSplitError
from .program import Program, RunArguments
from .recipes import given_flags

logger = logging.get_logger(__name__)

_SCORED = ("probe_split", "probe_train_split", "eval_split")


def load_rows(program: Program, parts: list[Any], argv: list[str]) -> Any:
    """
    The program's data. Where a flag names another `dataset` than the recipe's, scores that only the recipe asks for,
    on a split or with labels that this dataset has not, are left out of `parts`, with a warning.

    Raises:
        MissingSplitError, MissingLabelsError: where flags ask for them.
    """
    flags = given_flags((*program.argument_types, RunArguments), argv)
    try:
        return program.load_rows(*parts)
    except (MissingSplitError, MissingLabelsError) as error:
        asked = {name: getattr(part, name) for part in parts for name in _SCORED if getattr(part, name, None)}
        split = getattr(error, "split", None)
        missing = next((name for name in asked if split in (None, asked[name])), None)
        own_probes = any(getattr(part, "probe_dataset", None) for part in parts)
        if missing is None or "dataset" not in flags or {*asked} & {*flags} or own_probes:
            raise
        logger.warning(
            f"{error} The recipe's `{missing}: {asked[missing]}` is left out, so this run gives no scores; choose "
            f"rows for them with --{missing}."
        )
    for part in parts:
        for name in _SCORED:
            if hasattr(part, name):
                setattr(part, name, None)
        if isinstance(part, TrainingArguments):
            part.eval_strategy = IntervalStrategy.NO
    return program.load_rows(*parts)
