"""What a training program is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer


@dataclass
class RunArguments:
    dry_run: bool = field(
        default=False, metadata={"help": "Build everything, run one forward pass on the CPU, print what would be run."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the checkpoints and the release of an earlier run in output_dir."}
    )
    name: str | None = field(default=None, metadata={"help": "Of the model, for the card."})


def nothing(*_: Any) -> None:
    """Where a program has nothing to do."""


@dataclass(frozen=True)
class Program:
    """
    One training program. Its functions get the parts of a recipe, one instance of each of `argument_types`.

    Args:
        argument_types (`tuple[type, ...]`): what a recipe may say; the trainer's arguments come last.
        load_rows (`Callable`): `(*parts)` -> the data.
        stand_in_rows (`Callable`): `(*parts)` -> a few made-up rows in its place, for a dry run without the data.
        build_model (`Callable`): `(*parts, rows)` -> model.
        build_trainer (`Callable`): `(*parts, rows, model)` -> trainer.
        describe (`Callable`): `(*parts)` -> the sections `licence` and `data` of the results, and `scored`: dataset
            and split of the evaluations. Refuses what has to be known before any work.
        prepare (`Callable`): `(trainer, *parts)` -> what `score` needs from before training.
        finish (`Callable`): `(trainer, *parts)` -> whether weights changed after training.
        score (`Callable`): `(trainer, prepared, *parts)` -> baselines; on every process.
        answer (`Callable`): `(trainer, *parts)` -> further evaluations, on the main process, with a whole model.
        count (`Callable`): `(trainer, batch size per process, *parts)` -> what else a dry run can say.
        draw (`Callable`): `(trainer, folder, *parts)` -> pictures with their captions.
    """

    argument_types: tuple[type, ...]
    load_rows: Callable[..., Any]
    stand_in_rows: Callable[..., Any]
    build_model: Callable[..., PreTrainedModel]
    build_trainer: Callable[..., Trainer]
    describe: Callable[..., dict[str, Any]]
    prepare: Callable[..., Any] = nothing
    finish: Callable[..., bool | None] = nothing
    score: Callable[..., list[dict[str, Any]] | None] = nothing
    answer: Callable[..., list[dict[str, Any]] | None] = nothing
    count: Callable[..., dict[str, Any] | None] = nothing
    draw: Callable[..., dict[Path, str] | None] = nothing
