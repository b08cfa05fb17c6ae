"""What a run itself has measured, in the form of `results.json`. Nothing is filled in that was not measured."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import Trainer

from ..hub.environment import environment_info


def last_entry(trainer: Trainer, name: str) -> dict[str, float]:
    """The newest log entry that has `name`; empty if none has."""
    return next((entry for entry in reversed(trainer.state.log_history) if name in entry), {})


def reported_evaluations(trainer: Trainer, reported: Callable[[Any], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """
    The entries of `results["evaluations"]`: the newest scores of the trainer's `eval_dataset`, or of each of a dict.

    Args:
        trainer ([`~transformers.Trainer`]): after or during training.
        reported (`Callable`): says of a dataset which scores go on a card; a dict for each, with the `name` of the
            score in the log without prefix, and fields of an entry.
    """
    datasets = trainer.eval_dataset
    named = isinstance(datasets, dict)
    entries = []
    for dataset, rows in datasets.items() if named else [("eval_dataset", datasets)]:
        known = {
            "dataset": dataset,
            "split": "eval",
            "num_examples": len(rows) if hasattr(rows, "__len__") else None,
            "features": None,
            "seed": trainer.args.seed,
            "command": None,
        }
        for score in reported(rows):
            name = f"eval_{dataset}_{score['name']}" if named else f"eval_{score['name']}"
            found = last_entry(trainer, name)
            if found:
                fields = {key: value for key, value in score.items() if key != "name"}
                entries.append(known | fields | {"value": found[name]})
    return entries


def run_results(trainer: Trainer, rate: str, evaluations: Iterable[dict[str, Any]], **training: Any) -> dict[str, Any]:
    """
    The sections `model`, `data`, `training`, `environment` and `evaluations` of a trainer's run.

    Args:
        trainer ([`~transformers.Trainer`]): after or during training.
        rate (`str`): the logged throughput, whose median over the run is kept.
        evaluations (`Iterable[dict]`): see [`reported_evaluations`].
        training: further facts of the section `training`.
    """
    args, history = trainer.args, trainer.state.log_history
    rates = sorted(entry[rate] for entry in history if rate in entry)
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    return {
        "model": {"name": Path(trainer.hub_model_id or args.hub_model_id or args.output_dir).name},
        "data": {"num_examples": rows},
        "training": {
            "steps": trainer.state.global_step,
            "batch_size": trainer.global_batch_size,
            **training,
            "seconds": last_entry(trainer, "train_runtime").get("train_runtime"),
            rate: rates[len(rates) // 2] if rates else None,
        },
        "environment": environment_info(),
        "evaluations": list(evaluations),
        "licence": "unknown",
    }
