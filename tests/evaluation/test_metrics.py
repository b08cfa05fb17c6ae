"""Our scores as modules of the evaluate library, without a network."""

import pytest
import torch

from hf_jepa.evaluation import retrieval_report
from hf_jepa.evaluation.metrics import AnswerMatch, EmbeddingRetrieval


def test_answers_in_batches_are_the_share_of_all():
    metric = AnswerMatch(keep_in_memory=True)
    metric.add_batch(predictions=["a", " b "], references=["a", "b"])
    metric.add_batch(predictions=["c"], references=["d"])
    assert metric.compute() == {"exact_match": pytest.approx(2 / 3)}
    assert AnswerMatch("startswith", keep_in_memory=True).compute(predictions=["ab"], references=["a"]) == {
        "startswith": 1.0
    }


def test_an_unknown_scorer_is_named():
    with pytest.raises(ValueError, match="no scorer 'bleu'; choose exact-match"):
        AnswerMatch("bleu")


def test_retrieval_is_the_report_with_and_without_groups():
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 12, 8)
    target[1], groups = target[0], [0, 0, *range(2, 12)]
    for chosen in (None, groups):
        found = EmbeddingRetrieval(keep_in_memory=True).compute(
            predictions=predicted.numpy(), references=target.numpy(), **({"groups": chosen} if chosen else {})
        )
        assert found == retrieval_report(predicted, target, None if chosen is None else torch.tensor(chosen))


def test_embeddings_of_two_widths_are_refused():
    with pytest.raises(ValueError, match="matrices of one shape"):
        EmbeddingRetrieval(keep_in_memory=True).compute(predictions=[[1.0, 2.0]] * 3, references=[[1.0]] * 3)
