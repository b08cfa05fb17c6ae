"""Text pairs: the released code's tokens to the bit, views and labels in the templates of the families, faults."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_jepa.data import (
    OfficialPairCollator,
    PairFormat,
    TextPairDataset,
    encode_pair,
    official_views,
    paraphrase_rows,
    plain_chat_template,
)

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last and messages | length > 1 %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# SmolLM2's begin-of-text token is what opens every turn; without a system turn it brings its own.
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# OLMo-2 ends the last turn alone, and its role names are no special tokens.
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}"
)
SPECIAL = [
    "<unk>", "<bos>", "<pad>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>",
    "<start_of_turn>", "<end_of_turn>", "<|perception|>",
]  # fmt: skip


def byte_tokenizer(
    chat_template: str | None, eos_token: str, pad_token: str | None = "<pad>", bos_token: str = "<bos>"
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, so that tokens straddle words and characters of several bytes are split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = ["lines with the string dog before a vowel", "(dog).*([AEIOUaeiou]).*", "assistant\n\n", "user\n\n"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.chat_template = chat_template
    return fast


def word_tokenizer(
    words: list[str], special: dict[str, str], extra: list[str], template: str
) -> PreTrainedTokenizerFast:
    """One token per word; spaces are dropped."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)
    fast.add_special_tokens({"additional_special_tokens": extra})
    fast.chat_template = template
    return fast


CHAT = [
    {"role": "system", "content": "Convert."},
    {"role": "user", "content": "lines with the string dog"},
    {"role": "assistant", "content": "(dog).*"},
]
# template, end of turn, begin of text
FAMILIES = {
    "llama3": (LLAMA3, "<|eot_id|>", "<bos>"),
    "qwen3": (QWEN3, "<|im_end|>", "<bos>"),
    "gemma": (GEMMA, "<end_of_turn>", "<bos>"),
    "smollm2": (SMOLLM2, "<|im_end|>", "<|im_start|>"),
    "olmo2": (OLMO2, "<|eot_id|>", "<bos>"),
}


@pytest.mark.parametrize("k", [0, 1, 3])
def test_official_views_match_the_released_code(golden_dir, k):
    config = json.loads((golden_dir / "llm_jepa_data.json").read_text())["config"]
    expected = load_file(golden_dir / "llm_jepa_data.safetensors")
    words = config["vocabulary"]
    template = (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ m['content'] }}"
        "<|eot_id|>{% endfor %}"
    )
    names = {"bos_token": config["bos"], "eos_token": config["eos"], "pad_token": config["eos"]}
    tokenizer = word_tokenizer(words, names, [word for word in words if word.startswith("<|")], template)
    predictors = [f"<|predictor_{number}|>" for number in range(k, 0, -1)]
    views = [
        official_views(chat["messages"], tokenizer, predictors, config["max_length"])
        for chat in config["conversations"]
    ]
    names = {name.split("/")[1] for name in expected if name.startswith(f"k{k}/")}
    assert names == set(views[0])
    for name in names:
        assert torch.equal(torch.tensor([view[name] for view in views]), expected[f"k{k}/{name}"]), name
    # The same to the last label when the conversation is cut inside the assistant's content.
    cut = official_views(config["conversations"][0]["messages"], tokenizer, predictors, 20)
    assert cut["full_input_ids"] == views[0]["full_input_ids"][:20]
    assert set(cut["labels_dataset"]) == {-100}


@pytest.mark.parametrize("form", ["one_pass", "multi_pass"])
@pytest.mark.parametrize("direction", ["text2code", "code2text"])
@pytest.mark.parametrize("position", ["end", "front"])
def test_official_rows_in_every_direction(form, direction, position):
    tokenizer = byte_tokenizer(LLAMA3, "<|eot_id|>")
    names = ("<|predictor_1|>", "<|predictor_2|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)}, replace_extra_special_tokens=False)
    row = {"talk": CHAT, "context": "the context", "ending": [{"role": "assistant", "content": "the ending"}]}
    columns = {"messages_column": "talk", "text_view_column": "context", "code_view_column": "ending"}
    fmt = PairFormat.official(**columns, max_length=96)
    tokens = names if position == "front" else names[::-1]
    collator = OfficialPairCollator(tokenizer, tokens, fmt, -2, form, position, direction)
    batch = collator([row, {**row, "context": "a longer context"}])
    whole = tokenizer.decode(batch["input_ids"][0])
    assert "lines with the string dog" in whole
    glued = ("<|predictor_1|><|predictor_2|>{}" if position == "front" else "{}<|predictor_2|><|predictor_1|>").format
    contents = {"text": ["the context", "a longer context"], "code": ["the ending"] * 2}
    predicting = "text" if direction == "text2code" else "code"
    for name, expected in contents.items():
        for number, content in enumerate(expected):
            row, column = batch[f"{name}_index"][number].tolist()
            # Documents start again, also within a row.
            start = (batch["document"][row] == batch["document"][row, column]).nonzero()[0].item()
            seen = tokenizer.decode(batch["input_ids"][row, start : column + 1])
            # Without its own predictor tokens behind it, a view is read where its content ends.
            assert seen.endswith(glued(content) if name == predicting and position == "front" else content)
            row, read = batch["predictor_index"][number].tolist()
            if name == predicting:
                assert tokenizer.decode(batch["input_ids"][row, start : read + 1]).endswith(glued(content))


@pytest.mark.parametrize("family", FAMILIES)
def test_views_and_labels_of_each_family(family):
    template, end, begin = FAMILIES[family]
    tokenizer = byte_tokenizer(template, end, bos_token=begin)
    pair = encode_pair({"messages": CHAT}, tokenizer)
    text = tokenizer.decode(pair["input_ids"][: pair["text_length"]])
    assert text.endswith("lines with the string dog")
    assert "Convert." in text
    labelled = [token for token in pair["labels"] if token != -100]
    assert tokenizer.decode(labelled) == f"(dog).*{end}"
    # Each label is the token that stands there.
    assert all(label in (-100, token) for label, token in zip(pair["labels"], pair["input_ids"], strict=True))
    code = tokenizer.decode(pair["code_ids"])
    assert code.endswith("(dog).*")
    assert "string" not in code
    assert "assistant" in code or "model" in code
    assert code.count("<bos>") == code.startswith("<bos>") == (begin == "<bos>" and family != "qwen3")
    assert code.count("<|im_start|>") == (family in ("qwen3", "smollm2"))
    assert [tokenizer.decode(pair["input_ids"][a:b]).strip() for a, b in pair["spans"]] == [
        "lines with the string dog", "(dog).*",
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_what_generation_is_given(family):
    from hf_jepa.data.chat_views import render

    template, end, begin = FAMILIES[family]
    tokenizer = byte_tokenizer(template, end, bos_token=begin)
    options = {"enable_thinking": False}
    pair = encode_pair({"messages": CHAT}, tokenizer, PairFormat(template_options=options))
    prompt = render(tokenizer, CHAT[:-1], add_generation_prompt=True, **options)
    first = next(place for place, label in enumerate(pair["labels"]) if label != -100)
    assert tokenizer.decode(pair["input_ids"][:first]) == prompt


def test_official_format_keeps_the_pad_token_unlabelled():
    tokenizer = byte_tokenizer(LLAMA3, "<|eot_id|>", pad_token="<|eot_id|>")
    pair = encode_pair({"messages": CHAT}, tokenizer, PairFormat.official())
    expected = [-100 if token == tokenizer.eos_token_id else token for token in pair["input_ids"]]
    assert pair["labels"][1:] == expected[1:]
    assert tokenizer.decode(pair["text_ids"]) == (
        "<bos><|start_header_id|>user<|end_header_id|>\n\nlines with the string dog"
    )
    assert tokenizer.decode(pair["code_ids"]) == "<bos><|start_header_id|>assistant<|end_header_id|>\n\n(dog).*"
    # The clean labels with the same tokenizer do end the turn.
    clean = encode_pair({"messages": CHAT}, tokenizer)
    assert clean["labels"][-1] == tokenizer.eos_token_id
    assert encode_pair({"chat": CHAT}, tokenizer, PairFormat(messages_column="chat")) == clean


def test_options_of_views():
    tokenizer = byte_tokenizer(LLAMA3, "<|eot_id|>")
    decode = tokenizer.decode
    row = {"question": " lines é ", "answer": "(dog)\n"}
    columns = {"text_column": "question", "code_column": "answer"}
    shared = encode_pair(row, tokenizer, PairFormat(read_at="end_of_turn", system_prompt="Convert.", **columns))
    assert decode(shared["input_ids"][: shared["text_length"]]).endswith("lines é<|eot_id|>")
    assert decode(shared["code_ids"]).endswith("(dog)<|eot_id|>")
    plain = encode_pair(row, tokenizer, PairFormat(code_view="plain", **columns))
    assert decode(plain["code_ids"]) == "<bos>(dog)"
    everything = encode_pair(row, tokenizer, PairFormat(train_on="all", **columns))
    assert everything["labels"][0] == -100
    assert everything["labels"][1:] == everything["input_ids"][1:]
    bare = encode_pair(row, tokenizer, PairFormat(text_view="plain", code_view="plain", **columns))
    assert (decode(bare["text_ids"]), decode(bare["code_ids"])) == ("<bos>lines é", "<bos>(dog)")
    views = PairFormat(text_view="isolated", code_view="chat", text_view_column="t", code_view_column="c", **columns)
    given = encode_pair({**row, "t": "context", "c": [{"content": "ending"}]}, tokenizer, views)
    assert decode(given["text_ids"]).endswith("context")
    assert decode(given["code_ids"]).endswith("ending")
    # The next token is learnt of the conversation all the same.
    assert decode([token for token in given["labels"] if token != -100]) == "(dog)<|eot_id|>"
    for change, message in (
        ({}, "column 'c' holds None"),
        ({"c": " "}, "column 'c' holds ' '"),
        ({"c": []}, "one chat"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_pair({**row, "t": "context", **change}, tokenizer, views)


def test_paraphrases_for_pretraining():
    rows = paraphrase_rows([["a b", "b a", "ab"]])
    assert rows == [{"text": "a b", "code": "b a"}, {"text": "b a", "code": "ab"}]
    fmt = PairFormat(train_on="text", chat_template=plain_chat_template(), code_view="chat")
    tokenizer = byte_tokenizer(None, "<|eot_id|>")
    pair = encode_pair(rows[0], tokenizer, fmt)
    assert tokenizer.decode(pair["input_ids"]) == "a b<|eot_id|>"
    assert tokenizer.decode(pair["input_ids"][: pair["text_length"]]) == "a b"
    assert tokenizer.decode(pair["code_ids"]) == "b a"
    with pytest.raises(ValueError, match="1 paraphrase"):
        paraphrase_rows([["alone"]])


def test_truncation_drops_the_pair_and_then_refuses():
    tokenizer = byte_tokenizer(LLAMA3, "<|eot_id|>")
    whole = encode_pair({"messages": CHAT}, tokenizer)
    size = len(whole["input_ids"])
    end_only = encode_pair({"messages": CHAT}, tokenizer, PairFormat(max_length=size - 1))
    assert end_only["code_ids"] == whole["code_ids"]
    cut = encode_pair({"messages": CHAT}, tokenizer, PairFormat(max_length=size - 2))
    assert cut["code_ids"] is None
    assert len(cut["input_ids"]) == size - 2
    with pytest.raises(ValueError, match="Nothing is left to train on"):
        TextPairDataset([{"messages": CHAT}], tokenizer, PairFormat(max_length=whole["text_length"]))[0]


@pytest.mark.parametrize(
    ("row", "fmt", "message"),
    [
        ({"text": " ", "code": "x"}, {}, "Text view .* is empty"),
        ({"text": "x", "code": ""}, {}, "Code view .* is empty"),
        ({"question": "x"}, {}, "needs 'messages', or 'text' and 'code'"),
        (
            {"messages": [{"from": "user", "value": "x"}]},
            {},
            "A turn of 'messages' has 'from', 'value'; it needs 'role' and 'content'",
        ),
        ({"messages": CHAT[:2]}, {}, "ends with a user's and an assistant's turn"),
        ({"text": "x", "code": "y"}, {"chat_template": "{{ messages[0]['content'] | upper }}"}, "exactly once"),
        (
            {"text": "x", "code": "y"},
            {"chat_template": "{% for m in messages %}{{ m['content'] | upper }}<|eot_id|>{% endfor %}"},
            "changes the contents",
        ),
        (
            {"text": "ab", "code": "cd"},
            {"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
            "No special token follows",
        ),
        (
            {"text": "the stri", "code": "ng"},
            {"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}<|eot_id|>"},
            "overlap",
        ),
    ],
)
def test_bad_rows_are_named(row, fmt, message):
    tokenizer = byte_tokenizer(LLAMA3, "<|eot_id|>")
    with pytest.raises(ValueError, match=f"Row 0: .*{message}"):
        TextPairDataset([row], tokenizer, PairFormat(**fmt))[0]


def test_a_tokenizer_without_pad_or_template_is_refused():
    with pytest.raises(ValueError, match="no pad token"):
        OfficialPairCollator(byte_tokenizer(LLAMA3, "<|eot_id|>", pad_token=None))
    with pytest.raises(ValueError, match="no chat template"):
        encode_pair({"text": "a", "code": "b"}, byte_tokenizer(None, "<|eot_id|>"))


def test_bad_formats_are_refused():
    for options, message in (
        ({"train_on": "code"}, "choose 'response'"),
        ({"max_length": 2}, "max_length"),
        ({"text_view_column": "a"}, "both"),
        ({"text_view_column": "a", "code_view_column": "b"}, "isolated"),
    ):
        with pytest.raises(ValueError, match=message):
            PairFormat(**options)
    with pytest.raises(ValueError, match="generator is a stream"):
        TextPairDataset((row for row in ()), byte_tokenizer(LLAMA3, "<|eot_id|>"))
    with pytest.raises(ValueError, match="empty"):
        TextPairDataset([], byte_tokenizer(LLAMA3, "<|eot_id|>"))


def test_a_large_dataset_does_not_fill_the_memory(monkeypatch):
    tokenizer = byte_tokenizer(LLAMA3, "<|eot_id|>")
    rows = [{"messages": [{**turn, "content": f"{turn['content']} {n}"} for turn in CHAT]} for n in range(40)]
    pairs = TextPairDataset(rows, tokenizer)
    size = 2 * len(pairs[0]["input_ids"]) + len(pairs[0]["code_ids"])
    monkeypatch.setattr("hf_jepa.data.text_pairs.MAX_KEPT_TOKENS", 10 * size)
    for _ in range(2):
        encoded = [pairs[index] for index in range(40)]
    kept = sum(len(row[name]) for row in pairs._encoded.values() for name in ("input_ids", "labels", "code_ids"))
    assert 8 * size < kept <= 10 * size
    # What is kept is what is made anew.
    assert pairs[0] is encoded[0]
    assert encoded[39] == TextPairDataset(rows, tokenizer)[39]
    assert "draw" not in pairs[0]
    assert pairs[0, 7]["draw"] == 7


def test_messages_say_where_the_options_go():
    tokenizer = byte_tokenizer(LLAMA3, "<|eot_id|>")
    with pytest.raises(
        ValueError, match="pair_format=PairFormat.text_column='question', code_column='answer'.`, in a"
    ):
        TextPairDataset([{"q": "a", "a": "b"}], tokenizer)[0]
    whole = len(encode_pair({"messages": CHAT}, tokenizer)["input_ids"])
    with pytest.raises(ValueError, match=rf"PairFormat\(max_length={whole}\)`, in a recipe `max_length: {whole}`"):
        TextPairDataset([{"messages": CHAT}], tokenizer, PairFormat(max_length=4))[0]
