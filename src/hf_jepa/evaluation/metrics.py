"""
Our scores as modules of the `evaluate` library: `add_batch`, `compute`, `combine` and its suites take them.

Import from here; the rest of the package does not pay for `evaluate`. Its own `evaluate.load("accuracy")` fetches a
script from the Hub, these are in the wheel.
"""

from typing import Any

import datasets
import evaluate
import torch

from .embedding_retrieval import retrieval_report
from .generation import SCORERS, score_responses


class AnswerMatch(evaluate.Metric):
    """
    Share of generated answers that a scorer accepts, [`~hf_jepa.evaluation.score_responses`].

    Args:
        config_name (`str`): The scorer: `"exact-match"`, `"startswith"`, `"contains"` or `"final-answer"`.

    Predictions and references are `str`; the result is `{"exact_match": share in [0, 1]}`, named after the scorer.
    Raises `ValueError` for an unknown scorer.
    """

    def __init__(self, config_name: str = "exact-match", **kwargs: Any) -> None:
        if config_name not in SCORERS:
            raise ValueError(f"There is no scorer {config_name!r}; choose {', '.join(SCORERS)}.")
        super().__init__(config_name=config_name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of generated answers that match.",
            citation="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {self.config_name.replace("-", "_"): score_responses(predictions, references, self.config_name)}


class EmbeddingRetrieval(evaluate.Metric):
    """
    Recall at 1, 5 and 10 and median ranks between paired embeddings, both ways,
    [`~hf_jepa.evaluation.retrieval_report`].

    Predictions and references are rows of `float`, shape `(n, width)` with n >= 2, pairs by row; `compute(...,
    groups=[...])` names pairs that share a target. Raises `ValueError` for shapes that differ.
    """

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Recall and median rank of targets among all, by cosine.",
            citation="",
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]], groups: list[int] | None = None
    ) -> dict[str, float]:
        return retrieval_report(
            torch.tensor(predictions),
            torch.tensor(references),
            None if groups is None else torch.tensor(groups),
        )
