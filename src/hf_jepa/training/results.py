"""What a run itself has measured, in the form of `results.json`. Nothing is filled in that was not measured."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import Trainer

from ..hub.environment import environment_info
from .checkpoints import COMPLETE_MARKER


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


# Score of a log -> task and metric of a card.
_SCORES = {
    "knn_accuracy": ("knn", "accuracy"),
    "ridge_accuracy": ("ridge", "accuracy"),
    "linear_accuracy": ("linear", "accuracy"),
    "exact_match": ("generation", "exact match"),
    "startswith": ("generation", "startswith"),
    "lm_loss": ("language modelling", "loss per label"),
    **{f"retrieval_at_{k}": ("retrieval of texts by prediction", f"recall@{k}") for k in (1, 5, 10)},
    **{f"reverse_retrieval_at_{k}": ("retrieval of predictions by text", f"recall@{k}") for k in (1, 5, 10)},
}
_SCORE = re.compile(rf"eval_(?:(.+?)_)??({'|'.join(sorted(_SCORES, key=len, reverse=True))})")


def checkpoint_results(folder: Path) -> dict[str, Any]:
    """
    What a training checkpoint on disk knows of its run, in the form of `results.json`: steps, batch, throughput,
    number of examples, and the scores of exactly these weights.

    Args:
        folder (`Path`): with `trainer_state.json`; without one nothing is known.

    Returns:
        `dict[str, Any]`: sections `data`, `training` and `evaluations`, as far as they are known.
    """
    file = folder / "trainer_state.json"
    if not file.is_file():
        return {}
    state = json.loads(file.read_text(encoding="utf-8"))
    history, step = state["log_history"], state["global_step"]
    training = {"steps": step}
    for rate in ("images_per_second", "tokens_per_second", "pairs_per_second"):
        if rates := sorted(entry[rate] for entry in history if rate in entry):
            training[rate] = rates[len(rates) // 2]
    marker = folder / COMPLETE_MARKER
    run = json.loads(marker.read_text(encoding="utf-8"))["run"] if marker.is_file() else {}
    if "global_batch_size" in run:
        training["batch_size"] = run["global_batch_size"]
    logged = {name: value for entry in history if entry.get("step") == step for name, value in entry.items()}
    scores = {match: value for name, value in logged.items() if (match := _SCORE.fullmatch(name))}
    evaluations = [
        {
            "task": _SCORES[match[2]][0],
            "dataset": match[1] or "eval_dataset",
            "split": "eval",
            "metric": _SCORES[match[2]][1],
            "value": value,
            "num_examples": None,
            "features": None,
            "seed": None,
            "command": None,
        }
        for match, value in scores.items()
    ]
    return {"data": {"num_examples": run.get("num_examples")}, "training": training, "evaluations": evaluations}
