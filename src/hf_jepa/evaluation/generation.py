"""Evaluation by generation: greedy answers of a causal LM, and scores that an empty or failing answer cannot win."""

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.chat_views import Messages, render

logger = logging.get_logger(__name__)

_FINAL_ANSWER = re.compile(r"####\s*(\S[^\n]*)")


def _awaits_an_answer(messages: Any) -> bool:
    if not isinstance(messages, Sequence) or not messages or not isinstance(messages[-1], Mapping):
        return False
    return messages[-1].get("role", "assistant") != "assistant"


@torch.no_grad()
def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    max_new_tokens: int = 128,
    batch_size: int = 16,
    chat_template: str | None = None,
    stop_token_ids: Sequence[int] = (),
    progress: bool = False,
    **template_options: Any,
) -> list[str]:
    """
    Greedy answers, batched with padding on the left. Sampling settings and repetition penalties that the checkpoint
    brings along are switched off.

    Args:
        model (`PreTrainedModel`): a causal LM with `generate`.
        tokenizer (`PreTrainedTokenizerBase`): with a chat template, or give one.
        conversations (`Sequence[list[dict]]`): each ends with a user's turn.
        max_new_tokens (`int`): the longest answer. GSM8K's solutions need 256 or more.
        batch_size (`int`): conversations at a time; similar lengths are put together.
        chat_template (`str`, *optional*): instead of the tokenizer's.
        stop_token_ids (`Sequence[int]`): end an answer, beside the end tokens of model and tokenizer.
        progress (`bool`): show a progress bar.
        template_options: for the template, such as `enable_thinking=False`.

    Returns:
        `list[str]`: in the conversations' order, special tokens left out and spaces at the ends stripped.

    Raises:
        ValueError: for a conversation that does not end with the user, or without any token that ends an answer.
    """
    from tqdm.auto import tqdm

    if not all(_awaits_an_answer(messages) for messages in conversations):
        raise ValueError(
            "Each conversation must be a list of turns, `{'role', 'content'}`, and end with a user's, which the model "
            "is to answer."
        )
    known = model.generation_config.eos_token_id
    ends = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id, *stop_token_ids} - {None}
    if not ends:
        raise ValueError("Neither model nor tokenizer has an end token; pass `stop_token_ids`.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    options = {**template_options, "add_generation_prompt": True}
    prompts = [
        tokenizer(render(tokenizer, messages, chat_template, **options), add_special_tokens=False)["input_ids"]
        for messages in conversations
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        for start in tqdm(range(0, len(order), batch_size), desc="generating", disable=not progress):
            members = order[start : start + batch_size]
            longest = max(len(prompts[index]) for index in members)
            ids = torch.full((len(members), longest), pad)
            mask = torch.zeros((len(members), longest), dtype=torch.int64)
            for row, index in enumerate(members):
                size = len(prompts[index])
                ids[row, longest - size :] = torch.tensor(prompts[index])
                mask[row, longest - size :] = 1
            generated = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                temperature=None,
                top_k=None,
                top_p=None,
                use_cache=True,
                eos_token_id=sorted(ends),
                pad_token_id=pad,
            )
            for index, tokens in zip(members, generated[:, longest:].tolist(), strict=True):
                # What follows the end is padding, whose token may be an ordinary one.
                stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
                answers[index] = tokenizer.decode(tokens[:stop], skip_special_tokens=True).strip()
    finally:
        model.train(was_training)
    return answers


def exact_match(prediction: str, reference: str) -> bool:
    """Whether both are the same text, spaces at the ends aside."""
    return prediction.strip() == reference.strip()


def starts_with(prediction: str, reference: str) -> bool:
    """Whether the prediction starts with the reference: for models that were never trained to stop."""
    return bool(reference.strip()) and prediction.strip().startswith(reference.strip())


def contains(prediction: str, reference: str) -> bool:
    """Whether the reference occurs in the prediction (the released scorer asks the reverse, which "" satisfies)."""
    return bool(reference.strip()) and reference.strip().lower() in prediction.lower()


def final_answer_match(prediction: str, reference: str) -> bool:
    """Whether the last `#### answer` of both agree, as numbers where they are (GSM8K)."""
    found = [_FINAL_ANSWER.findall(text) for text in (prediction, reference)]
    if not all(found):
        return False
    first, second = (answers[-1].strip().replace(",", "").removeprefix("$").rstrip(".") for answers in found)
    try:
        return float(first) == float(second)
    except ValueError:
        return first == second


SCORERS: dict[str, Callable[[str, str], bool]] = {
    "exact-match": exact_match,
    "startswith": starts_with,
    "contains": contains,
    "final-answer": final_answer_match,
}


def execution_match(execute: Callable[[str], Any]) -> Callable[[str, str], bool]:
    """
    A scorer that runs both texts and compares what they give. A prediction that fails to run is wrong, whatever the
    reference gives.

    Args:
        execute (`Callable[[str], Any]`): runs a text and returns what can be compared; raises where it fails.

    Returns:
        `Callable[[str, str], bool]`: raises ValueError for a reference that fails.
    """

    def score(prediction: str, reference: str) -> bool:
        try:
            expected = execute(reference)
        except Exception as error:
            raise ValueError(f"The reference {reference!r} cannot be executed: {error}") from error
        try:
            return execute(prediction) == expected
        except Exception:
            return False

    return score


def sqlite_match(database: str | Path, timeout: float = 10.0) -> Callable[[str, str], bool]:
    """
    A scorer of SQL queries by their rows, on a database that is opened read-only: as a multiset, and in their order
    where the reference has an ORDER BY.

    Args:
        database (`str` or `Path`): an SQLite file.
        timeout (`float`): seconds after which a query fails.

    Returns:
        `Callable[[str, str], bool]`.

    Raises:
        ValueError: if there is no such file.
    """
    path = Path(database).resolve()
    if not path.is_file():
        raise ValueError(f"There is no database {str(database)!r}.")

    def execute(query: str) -> list[tuple]:
        if not query.strip():
            raise ValueError("the query is empty")
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            deadline = time.monotonic() + timeout
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def score(prediction: str, reference: str) -> bool:
        ordered = re.search(r"\border\s+by\b", reference, re.IGNORECASE)
        return execution_match(execute if ordered else lambda query: Counter(execute(query)))(prediction, reference)

    return score


def score_responses(
    predictions: Sequence[str], references: Sequence[str], scorer: str | Callable[[str, str], bool] = "exact-match"
) -> float:
    """
    Share of predictions that a scorer accepts.

    Args:
        predictions (`Sequence[str]`): what the model said.
        references (`Sequence[str]`): what it should have said.
        scorer (`str` or `Callable`): a name in `SCORERS`, or a function of prediction and reference.

    Returns:
        `float`: in [0, 1].

    Raises:
        ValueError: for an unknown scorer, no predictions, or as many references as there are not predictions.
    """
    if isinstance(scorer, str):
        if scorer not in SCORERS:
            raise ValueError(f"There is no scorer {scorer!r}; choose {', '.join(SCORERS)}, or pass a function.")
        scorer = SCORERS[scorer]
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"Got {len(predictions)} predictions for {len(references)} references; give one each.")
    return sum(scorer(*pair) for pair in zip(predictions, references, strict=True)) / len(predictions)
