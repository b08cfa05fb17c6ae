"""What a run itself has measured, in the form of `results.json`. Nothing is filled in that was not measured."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub.environment import environment_info

if TYPE_CHECKING:
    from .base_trainer import SafeCheckpointTrainer


def last_entry(trainer: "SafeCheckpointTrainer", name: str) -> dict[str, float]:
    """The newest log entry that has `name`; empty if none has."""
    return next((entry for entry in reversed(trainer.state.log_history) if name in entry), {})


def evaluation_entry(trainer: "SafeCheckpointTrainer", task: str, metric: str, value: float, **known: Any) -> dict:
    """One entry of `results["evaluations"]`, scored on the trainer's `eval_dataset`."""
    rows = trainer.eval_dataset
    entry = {
        "task": task,
        "dataset": "eval_dataset",
        "split": "eval",
        "num_examples": len(rows) if hasattr(rows, "__len__") else None,
        "metric": metric,
        "value": value,
        "features": None,
        "seed": trainer.args.seed,
        "command": None,
    }
    return entry | known


def run_results(
    trainer: "SafeCheckpointTrainer", rate: str, evaluations: Iterable[dict[str, Any]], **training: Any
) -> dict[str, Any]:
    """
    The sections `model`, `data`, `training`, `environment` and `evaluations` of a trainer's run.

    Args:
        trainer ([`~transformers.Trainer`]): after or during training.
        rate (`str`): the logged throughput, whose median over the run is kept.
        evaluations (`Iterable[dict]`): see [`evaluation_entry`].
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
