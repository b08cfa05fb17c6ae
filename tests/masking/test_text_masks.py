"""Packing for LLM-JEPA: layouts, who sees whom, reads, rows, and faults."""

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig

from hf_jepa.masking import draw_displacements, pack_examples, resolve_layout
from hf_jepa.masking.attention import Tokens, attention_masks, attention_windows, visible_from, visible_tokens

EXAMPLE = {"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6], "text_length": 2, "code_ids": [7, 8]}


def picture(batch: dict, window: int | None = None) -> list[str]:
    seen = visible_tokens(Tokens(batch["document"], batch.get("branch"), batch["position_ids"]), window)
    return ["".join(".x"[value] for value in row) for row in seen[0, 0].int().tolist()]


def test_shared_layout():
    batch = pack_examples([EXAMPLE], 2, "shared", pad_to_multiple_of=9)
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6, -1, -2, 7, 8, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 0, 1, 0]]
    # Of the first token no state knows anything.
    assert batch["labels"].tolist() == [[-100, 4, 5, 6, -100, -100, -100, -100, -100]]
    assert batch["label_index"].tolist() == [[0, 0], [0, 1], [0, 2]]
    reads = [batch[f"{name}_index"].tolist() for name in ("text", "predictor", "code")]
    assert reads == [[[0, 1]], [[0, 5]], [[0, 7]]]
    assert picture(batch) == [
        "x........",
        "xx.......",
        "xxx......",
        "xxxx.....",
        "xx..x....",
        "xx..xx...",
        "......x..",
        "......xx.",
        "........x",
    ]
    # By position: the first predictor token stands right behind its Text.
    assert picture(batch, window=2) == [
        "x........",
        "xx.......",
        ".xx......",
        "..xx.....",
        ".x..x....",
        "....xx...",
        "......x..",
        "......xx.",
        "........x",
    ]
    tokens = Tokens(batch["document"], batch["branch"], batch["position_ids"])
    rows = visible_from(torch.tensor([[0, 5], [0, 7]]), tokens)
    assert torch.equal(rows, visible_tokens(tokens)[0, 0, [5, 7]])


def test_packed_and_replicated_layouts_are_ordinary_packing():
    packed = pack_examples([EXAMPLE, {"input_ids": [9, 9]}], 0, "packed", row_length=8)
    assert packed["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8, 9, 9]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1]]
    assert packed["document"].tolist() == [[0, 0, 0, 0, 2, 2, 3, 3]]
    assert torch.equal(packed["predictor_index"], packed["text_index"])
    replicated = pack_examples([EXAMPLE], 1, "replicated")
    assert replicated["input_ids"].tolist() == [[3, 4, 5, 6, 3, 4, -1, 7, 8]]
    assert replicated["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert replicated["predictor_index"].tolist() == [[0, 6]]
    assert "branch" not in packed
    assert "branch" not in replicated


def test_rows_are_filled_and_pairs_keep_the_order_of_examples():
    sizes = (3, 9, 2, 5, 4)
    examples = [{"input_ids": [10 + n] * size, "text_length": 1, "code_ids": [n + 1]} for n, size in enumerate(sizes)]
    batch = pack_examples(examples, 0, "packed", row_length=10)
    # 28 tokens do not fit into fewer rows.
    assert batch["input_ids"].shape == (3, 10)
    for name, expected in (("code", [1, 2, 3, 4, 5]), ("text", [10, 11, 12, 13, 14])):
        row, column = batch[f"{name}_index"].unbind(1)
        assert batch["input_ids"][row, column].tolist() == expected
    assert len({*batch["document"].flatten().tolist()} - {-1}) == 10
    assert batch["label_index"].shape == (0, 2)
    # 8 + 8 + 7 and 7 tokens would fit into two rows; 8 + 7 twice are padded less.
    mixed = [{"input_ids": [1] * size} for size in (8, 7, 8, 7)]
    assert pack_examples(mixed, 0, "packed", row_length=24)["input_ids"].shape == (2, 15)
    # Four rows need as little padding as two, and are shorter.
    alike = [{"input_ids": [1] * 5} for _ in range(8)]
    assert pack_examples(alike, 0, "packed", row_length=20)["input_ids"].shape == (4, 10)
    assert pack_examples(alike, 0, "packed", row_length=20, pad_to_multiple_of=20)["input_ids"].shape == (2, 20)
    apart = pack_examples(examples, 0, "packed")
    assert apart["input_ids"].shape == (5, 10)
    assert (apart["position_ids"][apart["document"] == -1] == 0).all()


def test_masks_for_each_backend():
    batch = pack_examples([EXAMPLE], 1, "shared")
    tokens = (batch["document"], batch["branch"], batch["position_ids"])
    config = LlamaConfig(attn_implementation="sdpa")
    expected = visible_tokens(Tokens(*tokens))
    found = attention_masks(*tokens, config)
    assert found.dtype == torch.bool
    assert torch.equal(found, expected)
    config._attn_implementation = "eager"
    additive = attention_masks(*tokens, config, torch.bfloat16)
    assert additive.dtype == torch.bfloat16
    assert torch.equal(additive == 0, expected)
    assert additive.min() == torch.finfo(torch.bfloat16).min
    config._attn_implementation = "flash_attention_2"
    assert attention_masks(*tokens, config) is None
    config._attn_implementation = "flex_attention"
    block = attention_masks(*tokens, config)
    row, key = torch.arange(7)[:, None], torch.arange(7)[None]
    assert torch.equal(block.mask_mod(torch.tensor(0), torch.tensor(0), row, key), expected[0, 0])
    assert block.shape == (1, 1, 7, 7)

    mixed = Gemma3TextConfig(
        num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=2
    )
    mixed._attn_implementation = "sdpa"
    masks = attention_masks(*tokens, mixed)
    assert torch.equal(masks["full_attention"], expected)
    assert torch.equal(masks["sliding_attention"], visible_tokens(Tokens(*tokens), window=2))
    assert attention_windows(MistralConfig(sliding_window=7)) == {"sliding_attention": 7}
    assert attention_windows(MistralConfig(sliding_window=None)) == {"full_attention": None}


def test_blanks_see_nothing_but_under_eager_attention():
    tokens = Tokens(torch.tensor([[0, -2, -1]]), None, torch.arange(3)[None])
    config = LlamaConfig(attn_implementation="sdpa")
    assert attention_masks(*tokens, config)[0, 0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    config._attn_implementation = "eager"
    assert (attention_masks(*tokens, config)[0, 0] == 0).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_layouts_by_backend():
    assert resolve_layout("auto", "sdpa", 2) == "shared"
    assert resolve_layout("auto", "flex_attention", 0) == "packed"
    assert resolve_layout("auto", "flash_attention_2", 2) == "replicated"
    assert resolve_layout("replicated", "eager", 2) == "replicated"
    for layout in ("shared", "official"):
        with pytest.raises(ValueError, match="'sdpa', 'flex_attention' or 'eager'"):
            resolve_layout(layout, "flash_attention_2", 2)
    with pytest.raises(ValueError, match="no place for the 2 predictor tokens"):
        resolve_layout("packed", "sdpa", 2)
    with pytest.raises(ValueError, match="got 'dense'"):
        resolve_layout("dense", "sdpa", 2)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"code_ids": []}, {}, "empty Code view"),
        ({"text_ids": []}, {}, "empty Text view"),
        ({"text_length": 0}, {}, "text_length=0 in a conversation of 4 tokens: the Text view is empty, or was trunc"),
        ({"text_length": 5}, {}, "text_length=5"),
        ({"text_length": None}, {}, "text_length=None"),
        ({"input_ids": []}, {}, "Example 1 has no tokens"),
        ({"labels": [1]}, {}, "4 tokens but 1 labels"),
        ({"code_ids": [-1]}, {}, "token id -1"),
        ({"displacements": [([(0, 1)], [(1, 4)])]}, {}, "displacements outside its 4 tokens"),
        ({}, {"row_length": 6}, "takes 7 tokens, more than row_length=6"),
        ({}, {"predictor_token_ids": [1, 2]}, "need 1 `predictor_token_ids`, got 2"),
        ({}, {"layout": "packed"}, "no place for the 1 predictor tokens"),
        ({}, {"layout": "auto"}, "see `resolve_layout`"),
        ({}, {"direction": "both"}, "got 'end' and 'both'"),
    ],
)
def test_faults_of_packing(change, options, message):
    with pytest.raises(ValueError, match=message):
        pack_examples([EXAMPLE, {**EXAMPLE, **change}], 1, **{"layout": "shared", **options})


def test_no_examples():
    with pytest.raises(ValueError, match="no examples"):
        pack_examples([], 1)


def test_models_whose_layers_take_no_mask_are_refused():
    config = LlamaConfig(attn_implementation="sdpa")
    config._attn_implementation = "paged|sdpa"
    with pytest.raises(ValueError, match="one of sdpa, flex_attention, eager"):
        attention_masks(*torch.zeros(3, 1, 2, dtype=torch.int64), config)
    mixed = Gemma3TextConfig(num_hidden_layers=1, layer_types=["full_attention"])
    mixed.layer_types = ["linear_attention"]
    with pytest.raises(ValueError, match="has linear_attention layers"):
        attention_windows(mixed)


def test_displacements_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    drawn = draw_displacements([(2, 9)], generator, times=200)
    starts = set()
    for [(s, r)], [(r_again, t)] in drawn:
        assert 2 <= s < r == r_again < t < 9
        starts.add(s)
    assert starts == {2, 3, 4, 5, 6}
    assert drawn == draw_displacements([(2, 9)], torch.Generator().manual_seed(0), times=200)


def test_displacements_of_the_released_code_step_into_every_token_of_the_content():
    spans = [(2, 5), (8, 12)]
    into = [(1, 2), (2, 3), (3, 4), (7, 8), (8, 9), (9, 10), (10, 11)]
    drawn = draw_displacements(spans, torch.Generator().manual_seed(0), "random_span", times=4000)
    found = []
    for around, span in drawn:
        steps = [(a, a + 1) for start, end in span for a in range(start, end)]
        rest = [(a, a + 1) for start, end in around for a in range(start, end)]
        # Together they step into every token of the content once; the jump from one span to the next counts in none.
        assert sorted(steps + rest) == into
        assert rest
        first = into.index(steps[0])
        assert steps == into[first : first + len(steps)]
        found.append((first, len(steps)))
    # The start is uniform and the end uniform in what follows; a span of everything is drawn again.
    count = len(into)
    for first in range(count):
        for length in range(1, count - first + 1):
            expected = 0 if length == count else 1 / (count - first) / (count - 1 / count)
            share = found.count((first, length)) / len(found)
            assert abs(share - expected) < 4 * (expected / len(found)) ** 0.5 + 1e-9, (first, length)
    # Contiguous steps are one difference of states.
    assert all(len(span) <= 2 for _, span in drawn)


def test_a_span_that_opens_a_conversation_has_no_token_before_it():
    for around, span in draw_displacements([(0, 3)], torch.Generator().manual_seed(0), "random_span", times=20):
        assert sorted(around + span) == [(0, 1), (1, 2)]


def test_inner_spans_leave_the_template_out():
    spans = [(2, 5), (8, 12)]
    inside = {2, 3, 4, 8, 9, 10, 11}
    crossed = 0
    for around, span in draw_displacements(spans, torch.Generator().manual_seed(0), "inner_span", times=200):
        steps = [(a, a + 1) for start, end in around + span for a in range(start, end)]
        # Together they walk through every step of the content once, and never over the template.
        assert sorted(steps) == [(2, 3), (3, 4), (8, 9), (9, 10), (10, 11)]
        assert {column for step in steps for column in step} <= inside
        assert around
        assert span
        crossed += len(span) == 2
    assert crossed


def test_packed_displacements_point_into_their_rows():
    examples = [
        {"input_ids": [1] * 5, "displacements": [([(0, 1)], [(1, 4)])]},
        {"input_ids": [2] * 6, "displacements": [([(0, 1), (4, 5)], [(1, 2)])]},
    ]
    index = pack_examples(examples, 0, "packed", row_length=11)["displacement_index"]
    # The longer example comes first; a lone segment is filled up with one of length 0.
    assert index.tolist() == [
        [[[0, 6, 7], [0, 6, 6]], [[0, 7, 10], [0, 7, 7]]],
        [[[0, 0, 1], [0, 4, 5]], [[0, 1, 2], [0, 1, 1]]],
    ]


@pytest.mark.parametrize(
    ("spans", "variant", "message"),
    [
        ([(0, 2)], "paper", "at least 3 tokens, got 2"),
        ([(0, 3), (2, 5)], "paper", "overlap"),
        ([(3, 3)], "paper", "empty"),
        ([(0, 9)], "curvature", "got 'curvature'"),
        ([(0, 2), (5, 6)], "inner_span", "No span of"),
    ],
)
def test_faults_of_displacements(spans, variant, message):
    with pytest.raises(ValueError, match=message):
        draw_displacements(spans, torch.Generator(), variant)
