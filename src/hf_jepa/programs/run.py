"""What every program does: recipe -> data, model, trainer -> release -> scores and pictures -> card -> push."""

import gc
import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from ..hub.staging import update_release
from ..training.base_trainer import RELEASE_FOLDER
from .dry_run import dry_run
from .launch import COMMAND
from .own_data import load_rows
from .program import Program, RunArguments
from .recipes import given_values, parse_recipe, resolved, without_folders

logger = logging.get_logger(__name__)


def run(program: Program, argv: list[str]) -> None:
    """Trains from a recipe, releases, scores, draws and, if asked, pushes."""
    if given_values((*program.argument_types, RunArguments), argv).get("dry_run"):
        dry_run(program, argv)
        return
    *parts, options = parse_recipe((*program.argument_types, RunArguments), argv)
    args: TrainingArguments = parts[-1]
    described = program.describe(*parts)
    # As a flag, `true` is text: the newest complete checkpoint.
    resume = {"true": True, "false": None}.get(str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint)
    check_output_dir(args, bool(resume), options.overwrite_output_dir)
    rows = load_rows(program, parts, argv)
    recipe = resolved(*parts)
    trainer = program.build_trainer(*parts, rows, program.build_model(*parts, rows))
    called = os.environ.get(COMMAND) or shlex.join(["hf-jepa", "train", *argv])
    trainer.resume_command = f"{called} --resume_from_checkpoint true"
    prepared = program.prepare(trainer, *parts)
    started = time.process_time()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.process_time() - started

    # What was trained is on disk before anything that may fail.
    results = run_results(trainer, described, options.name, seconds)
    folder = trainer.write_release(results, recipe)
    if trainer.is_world_process_zero():
        print(f"The release is in {folder}; its card is {folder / 'README.md'}.")
    if program.finish(trainer, *parts):
        trainer.write_release(results, recipe)
    baselines = program.score(trainer, prepared, *parts) or []
    if not trainer.is_world_process_zero():
        leave_the_group(trainer)
        return
    results = run_results(trainer, described, options.name, seconds)
    results["evaluations"] += whole_model(trainer, "answers were not scored", program.answer, trainer, *parts) or []
    # A card does not tell of this machine's folders.
    command = shlex.join(["hf-jepa", "train", *map(without_folders, argv)])
    for entry in [*results["evaluations"], *baselines]:
        entry |= {**described["scored"], "command": command}
    results["baselines"] = baselines
    draw, drawn_in = best_effort(program.draw), Path(args.output_dir) / "pictures"
    pictures = whole_model(trainer, "pictures were not drawn", draw, trainer, drawn_in, *parts)
    results["pictures"] = [{"file": picture.name, "caption": caption} for picture, caption in (pictures or {}).items()]
    update_release(folder, results, list(pictures or {}))
    print_scores(results)
    if args.push_to_hub:
        print(trainer.push_folder(folder, "Trained with hf_jepa"))
    leave_the_group(trainer)


def leave_the_group(trainer: Trainer) -> None:
    """
    Ends this process's part of its group: one that exits with the group open may abort (pytorch issue 190489), and its
    launcher would then end the main process while that draws or pushes.
    """
    # What DDP made of the model holds the group.
    trainer.accelerator.free_memory()
    trainer.model_wrapped = trainer.model
    gc.collect()
    trainer.accelerator.end_training()


def check_output_dir(args: TrainingArguments, resumes: bool, overwrite: bool) -> None:
    """
    Keeps one run from mixing with another in a folder.

    Raises:
        ValueError: for a folder with checkpoints or a release, unless they are resumed or to be deleted; for a file.
    """
    folder = Path(args.output_dir)
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise ValueError(f"`output_dir` is {str(folder)!r}, but {str(file)!r} is a file; give a folder: --output_dir.")
    used = [path for path in (*folder.glob("checkpoint-*"), folder / RELEASE_FOLDER) if path.is_dir()]
    if not used or resumes:
        return
    if not overwrite:
        raise ValueError(
            f"{folder} holds an earlier run ({', '.join(sorted(path.name for path in used))}). Go on with it: "
            "--resume_from_checkpoint true; start over and delete that: --overwrite_output_dir; or give another "
            "--output_dir."
        )
    if args.process_index == 0:
        for path in used:
            shutil.rmtree(path)


def run_results(trainer: Trainer, described: dict[str, Any], name: str | None, seconds: float) -> dict[str, Any]:
    """What the trainer has measured, with what the program knows of licence and data."""
    results = trainer.measured_results()
    results["model"]["name"] = name or results["model"]["name"]
    results["licence"] = described["licence"]
    results["data"] |= described["data"]
    results["training"]["recipe"] = "`recipe.yaml`"
    results["compute"] = {"cpu_seconds": seconds} if trainer.args.device.type == "cpu" else {}
    return results


def whole_model(trainer: Trainer, otherwise: str, work: Callable, *arguments: Any) -> Any:
    """Runs work of the main process alone, unless the model is in pieces on several."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        logger.warning(f"The model is sharded: {otherwise}. `hf-jepa evaluate` and `visualize` work on the release.")
        return None
    return work(*arguments)


def best_effort(draw: Callable) -> Callable:
    """Pictures whose failure is one warning: the run and its release are whole without them."""

    def attempt(*arguments: Any) -> Any:
        try:
            return draw(*arguments)
        except Exception as error:
            logger.warning(f"The pictures could not be drawn ({type(error).__name__}: {error}); the release is whole.")
            return None

    return attempt


def print_scores(results: dict[str, Any]) -> None:
    """One line for each number."""
    for entry in [*results["evaluations"], *results["baselines"]]:
        value = "no number" if entry["value"] is None else f"{entry['value']:.4f}"
        name = f" ({entry['name']})" if "name" in entry else ""
        print(f"{entry['task']}  {entry['metric']}{name}: {value} on {entry['num_examples']} rows")
