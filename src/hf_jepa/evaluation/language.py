"""Evaluation of any causal language model on a dataset of questions and answers, by generation."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.chat_views import as_messages
from ..data.loading import open_texts
from ..data.train_and_test import SplitChoice
from ..parts import load_auto
from .generation import SCORERS, generate_responses, sqlite_match

logger = logging.get_logger(__name__)

ANSWER_TASKS = (*SCORERS, "sqlite-match")


def evaluate_language_model(
    repo_or_path: str | Path,
    dataset: str | Path,
    task: str = "exact-match",
    split: str | None = None,
    text_column: str = "text",
    code_column: str = "code",
    messages_column: str = "messages",
    system_prompt: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    bf16: bool = False,
    revision: str | None = None,
    subfolder: str = "",
    progress: bool = True,
    command: str | None = None,
    database: str | Path | None = None,
    template_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Answers questions greedily with a causal LM, or an adapter of one, and scores the answers.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder, of a model or of a peft adapter.
        dataset (`str` or `Path`): what [`~hf_jepa.data.load_text_dataset`] takes.
        task (`str`): a name in `SCORERS`: `"exact-match"`, `"startswith"`, `"contains"`, `"final-answer"`; or
            `"sqlite-match"`: queries by what they return ([`~hf_jepa.evaluation.sqlite_match`]).
        split (`str`, *optional*): of the dataset, slices included; by default `"test"`, or the only one there is.
        text_column, code_column, messages_column (`str`): of questions, of answers, or of chats that hold both.
        system_prompt (`str`, *optional*): put before two-column rows.
        max_new_tokens (`int`): the longest answer.
        batch_size (`int`): questions at a time.
        limit (`int`, *optional*): use this many rows, drawn with `seed`.
        seed (`int`): of the draw.
        device (`str`, *optional*): the GPU if there is one by default.
        bf16 (`bool`): load the weights in bfloat16.
        revision (`str`, *optional*): of the repository.
        subfolder (`str`): folder of the model inside the repository.
        progress (`bool`): show a progress bar.
        command (`str`, *optional*): the command line, to be recorded.
        database (`str` or `Path`, *optional*): for `"sqlite-match"`: the SQLite file, or Spider's folder of them
            (`NAME/NAME.sqlite`), where a row's column `db_id`, or `db_id:[NAME]` in its question, says which.
        template_options (`dict`, *optional*): for the chat template, such as `{"enable_thinking": False}`.

    Returns:
        `dict`: `model`, `data`, `evaluations` (one entry) as in `results.json`, and `answers`, one dict of `question`,
        `answer`, `reference` and `correct` per row.

    Raises:
        ValueError: for an unknown task, a dataset without the columns, databases that are not there, or a model that
            cannot be loaded.
    """
    if task not in ANSWER_TASKS:
        raise ValueError(f"task must be one of {', '.join(ANSWER_TASKS)}, got {task!r}.")
    if (task == "sqlite-match") != (database is not None):
        raise ValueError("`database` and the task sqlite-match need each other.")
    choice = SplitChoice(dataset, test_split=split, max_test=limit, seed=seed)
    chosen = choice.rows(open_texts, text_column, None, fits=False)
    rows, split = chosen.test, chosen.split
    chats = [as_messages(row, messages_column, text_column, code_column, system_prompt) for row in rows]
    questions = [chat[-2]["content"] for chat in chats]
    scorers = [_scorer(task, row, question, database) for row, question in zip(rows, questions, strict=True)]
    model, tokenizer = load_language_model(repo_or_path, revision, subfolder, bf16)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    references = [chat[-1]["content"] for chat in chats]
    answers = generate_responses(
        model,
        tokenizer,
        [chat[:-1] for chat in chats],
        max_new_tokens,
        batch_size,
        progress=progress,
        **(template_options or {}),
    )
    correct = [scorer(*pair) for scorer, *pair in zip(scorers, answers, references, strict=True)]
    entry = {
        "task": "generation",
        "dataset": str(dataset),
        "split": split,
        "num_examples": len(rows),
        "metric": task,
        "value": sum(correct) / len(correct),
        "features": None,
        "seed": seed,
        "command": command,
    }
    model_facts = {"model_type": model.config.model_type, "num_parameters": model.num_parameters()}
    return {
        "model": {"name": str(repo_or_path), **model_facts},
        "data": {"name": str(dataset), "split": split, "num_examples": len(rows)},
        "evaluations": [entry],
        "answers": [
            {"question": question, "answer": answer, "reference": reference, "correct": right}
            for question, answer, reference, right in zip(questions, answers, references, correct, strict=True)
        ],
    }


def _scorer(task: str, row: dict[str, Any], question: str, database: str | Path | None) -> Callable[[str, str], bool]:
    if database is None:
        return SCORERS[task]
    path = Path(database)
    if path.is_dir():
        named = re.search(r"db_id:\s*\[?([\w-]+)", question)
        name = row.get("db_id") or (named and named[1])
        if not name:
            raise ValueError(
                f"No `db_id` column and no `db_id:[NAME]` says which database {question[:80]!r} is about."
            )
        path = path / name / f"{name}.sqlite"
    return sqlite_match(path)


def load_language_model(
    repo_or_path: str | Path, revision: str | None = None, subfolder: str = "", bf16: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a causal LM (an adapter with its base, through peft) and its tokenizer, in eval mode.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder.
        revision (`str`, *optional*): of the repository.
        subfolder (`str`): folder inside it.
        bf16 (`bool`): bfloat16 weights instead of float32.

    Returns:
        `tuple`: model and tokenizer.

    Raises:
        ValueError: if either cannot be loaded, or weights are missing from the checkpoint.
    """
    place = {"revision": revision, "subfolder": subfolder}
    try:
        tokenizer = load_auto(AutoTokenizer, repo_or_path, **place)
        model, info = load_auto(
            AutoModelForCausalLM,
            repo_or_path,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            output_loading_info=True,
            **place,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot load a language model from {str(repo_or_path)!r}: {error}") from error
    if missing := sorted(map(str, info["missing_keys"])):
        raise ValueError(f"{repo_or_path} lacks weights of {type(model).__name__}: {', '.join(missing[:5])} ...")
    return model.eval(), tokenizer
