"""The collator of text pairs: who carries JEPA tokens, semantic tubes, the released rows."""

import pytest
import torch

from hf_jepa.data import TextPairCollator


def example(text: int, response: int, draw: int, code: bool = True) -> dict:
    ids = list(range(10, 10 + text + response))
    labels = [-100] * text + ids[text:]
    code_ids = [5, *ids[text:]] if code else None
    row = {"input_ids": ids, "labels": labels, "text_length": text, "text_ids": None, "code_ids": code_ids}
    return {**row, "spans": [(1, text), (text + 1, text + response)], "draw": draw}


EXAMPLES = [example(4 + index % 3, 3 + index % 2, draw=index) for index in range(64)]


def test_dropout_takes_the_same_examples_in_every_split_of_a_batch():
    collator = TextPairCollator(1, jepa_dropout=0.75, seed=3)
    whole = collator(EXAMPLES)
    kept = set(whole["code_index"][:, 0].tolist())
    assert 8 <= len(kept) <= 24
    halves = [collator(EXAMPLES[:40]), collator(EXAMPLES[40:])]
    assert kept == set(halves[0]["code_index"][:, 0].tolist()) | {
        40 + row for row in halves[1]["code_index"][:, 0].tolist()
    }
    sizes = (whole["document"] >= 0).sum(dim=1)
    for row, item in enumerate(EXAMPLES):
        extra = 1 + len(item["code_ids"]) if row in kept else 0
        assert sizes[row] == len(item["input_ids"]) + extra
    assert set(TextPairCollator(1, jepa_dropout=0.75, seed=4)(EXAMPLES)["code_index"][:, 0].tolist()) != kept


def test_without_pairs_a_batch_is_plain_fine_tuning():
    batch = TextPairCollator(0, "packed", "none")(EXAMPLES[:4])
    assert len(batch["code_index"]) == 0
    assert (batch["document"] >= 0).sum() == sum(len(item["input_ids"]) for item in EXAMPLES[:4])


@pytest.mark.parametrize("variant", ["paper", "random_span", "inner_span"])
def test_tubes_depend_on_the_draw_alone(variant):
    collator = TextPairCollator(0, "packed", "tube", tube_variant=variant, tube_times=2)
    whole = collator(EXAMPLES[:6])["displacement_index"]
    assert len(whole) == 12
    part = collator(EXAMPLES[3:6])["displacement_index"]
    for pair, same in zip(whole[6:], part, strict=True):
        moved = same.clone()
        moved[..., 0] += 3
        # Segments that go nowhere only fill up.
        found = [{tuple(segment) for segment in side if segment[1] != segment[2]} for side in pair.tolist()]
        assert found == [{tuple(segment) for segment in side if segment[1] != segment[2]} for side in moved.tolist()]


def test_a_cut_pair_trains_the_next_token_only_and_a_batch_of_them_is_refused():
    cut = example(4, 3, draw=0, code=False)
    batch = TextPairCollator(1)([cut, EXAMPLES[1]])
    assert batch["code_index"][:, 0].tolist() == [1]
    with pytest.raises(ValueError, match="No example of this batch has a whole pair"):
        TextPairCollator(1)([cut])


def test_bad_arguments_are_named():
    for options, message in (
        ({"objective": "jepa"}, "'pairs', 'tube' or 'none'"),
        ({"jepa_dropout": 1.0}, r"\[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            TextPairCollator(**options)
    undrawn = {name: value for name, value in EXAMPLES[0].items() if name != "draw"}
    with pytest.raises(ValueError, match="no `draw`"):
        TextPairCollator(1, jepa_dropout=0.5)([undrawn])
    assert torch.is_tensor(TextPairCollator(1)([undrawn])["labels"])
