"""Where Text and Code lie in a chat: spans found by rendering the tokenizer's own template around markers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]

# Private-use characters: no template treats them specially, and no text holds them.
_MARKERS = ("\ue0f0", "\ue0f1")


@dataclass(frozen=True)
class TokenizedChat:
    """
    A rendered chat as tokens. Spans are `(first, last + 1)` token indices of contents without surrounding spaces;
    `header` is where the last turn's header starts.
    """

    input_ids: list[int]
    spans: tuple[tuple[int, int], ...]
    header: int
    is_special: list[bool]

    def end_of_turn(self, index: int) -> int | None:
        """Index of the first special token at or after `index`, or None."""
        return next((place for place in range(index, len(self.input_ids)) if self.is_special[place]), None)


def pair_option(**options: Any) -> str:
    """How options of the pair format are set, for messages."""
    code = ", ".join(f"{name}={value!r}" for name, value in options.items())
    recipe = ", ".join(f"`{name}: {value}`" for name, value in options.items())
    return f"`pair_format=PairFormat({code})`, in a recipe {recipe}"


def as_messages(
    row: dict[str, Any],
    messages_column: str = "messages",
    text_column: str = "text",
    code_column: str = "code",
    system_prompt: str | None = None,
) -> Messages:
    """
    Reads a row of a dataset as a conversation that ends with the assistant.

    Args:
        row (`dict`): has `messages_column`, or `text_column` and `code_column`.
        messages_column (`str`): list of `{"role", "content"}`; the pair is its last user and its last assistant turn.
        text_column (`str`): the user's content.
        code_column (`str`): the assistant's content.
        system_prompt (`str`, *optional*): put before two columns.

    Returns:
        `list[dict]`: with non-empty string contents.

    Raises:
        ValueError: for missing columns, empty contents, and roles in an order that makes no pair.
    """
    if row.get(messages_column):
        if missing := [turn for turn in row[messages_column] if not {"role", "content"} <= set(turn)]:
            raise ValueError(
                f"A turn of {messages_column!r} has {', '.join(map(repr, missing[0]))}; it needs 'role' and "
                "'content'. Rename them with `dataset.map`."
            )
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in row[messages_column]]
    elif text_column in row and code_column in row:
        messages = [{"role": "user", "content": row[text_column]}, {"role": "assistant", "content": row[code_column]}]
        if system_prompt is not None:
            messages.insert(0, {"role": "system", "content": system_prompt})
    else:
        raise ValueError(
            f"A row has the columns {', '.join(map(repr, row))}; a text pair needs {messages_column!r}, or "
            f"{text_column!r} and {code_column!r}. Name yours: "
            f"{pair_option(text_column='question', code_column='answer')}."
        )
    for turn in messages:
        if not isinstance(turn["content"], str):
            raise ValueError(f"The {turn['role']}'s content is {type(turn['content']).__name__}; it must be text.")
    if [turn["role"] for turn in messages[-2:]] != ["user", "assistant"]:
        roles = ", ".join(turn["role"] for turn in messages)
        raise ValueError(f"A text pair ends with a user's and an assistant's turn, got the roles {roles}.")
    for turn, name in zip(messages[-2:], ("Text", "Code"), strict=True):
        if not turn["content"].strip():
            raise ValueError(f"The {name} view (the {turn['role']}'s content) is empty; drop such rows.")
    return messages


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, chat_template: str | None = None, **options: Any
) -> str:
    """
    The chat as text. A template that refuses a system turn (Gemma) gets it in front of the first user's content, after
    a blank line; one that refuses a leading assistant turn gets it as a user's.

    Raises:
        ValueError: if there is no template, or it cannot render the turns.
    """
    if chat_template is None and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has no chat template; give one, for example the "
            "plain one: `pair_format=PairFormat(chat_template=plain_chat_template())`."
        )
    attempts = [messages]
    if messages[0]["role"] == "system" and len(messages) > 1:
        merged = {"role": messages[1]["role"], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        attempts.append([merged, *messages[2:]])
    if messages[0]["role"] == "assistant":
        attempts.append([{"role": "user", "content": messages[0]["content"]}, *messages[1:]])
    refusal: Exception | None = None
    for attempt in attempts:
        try:
            return tokenizer.apply_chat_template(attempt, chat_template=chat_template, tokenize=False, **options)
        except TemplateError as error:
            refusal = error
    roles = ", ".join(turn["role"] for turn in messages)
    raise ValueError(f"The chat template cannot render the roles {roles}: {refusal}") from refusal


def tokenize_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    num_marked: int = 2,
    chat_template: str | None = None,
    **options: Any,
) -> TokenizedChat:
    """
    Tokenizes a chat once and finds the contents of its last turns in it, whatever the template puts around them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a fast one, for character offsets.
        messages (`list[dict]`): the conversation.
        num_marked (`int`): how many of the last turns to find, 1 or 2.
        chat_template (`str`, *optional*): instead of the tokenizer's.
        options: for the template, such as `enable_thinking=False`.

    Returns:
        [`TokenizedChat`]: its spans in the turns' order.

    Raises:
        ValueError: for a slow tokenizer, a template that changes contents, or contents that share a token.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer and gives no character offsets, which finding the views "
            "needs; load the fast one."
        )
    rendered = render(tokenizer, messages, chat_template, **options)
    marked = [dict(turn) for turn in messages]
    for turn, marker in zip(marked[-num_marked:], _MARKERS, strict=False):
        turn["content"] = marker
    pieces = _split(render(tokenizer, marked, chat_template, **options), num_marked)
    contents = [turn["content"] for turn in messages[-num_marked:]]
    characters = _content_spans(rendered, pieces, contents)

    encoding = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]
    spans = tuple((_tokens_at(offsets, first)[0], _tokens_at(offsets, last)[-1] + 1) for first, last in characters)
    for (_, before), (after, _) in zip(spans, spans[1:], strict=False):
        if before > after:
            raise ValueError(
                "The Text and Code views overlap: one token holds the end of one and the start of the other. The "
                "template must put a token of its own between them."
            )
    header = _header(tokenizer, messages, rendered[: characters[-1][0]], chat_template, options)
    header_start = characters[-1][0] - len(header)
    special = set(tokenizer.all_special_ids)
    return TokenizedChat(
        input_ids=list(encoding["input_ids"]),
        spans=spans,
        header=next(i for i, (first, _) in enumerate(offsets) if first >= header_start or i == spans[-1][0]),
        is_special=[token in special for token in encoding["input_ids"]],
    )


def plain_chat_template(separator: str = "<|perception|>", end: str = "<|eot_id|>") -> str:
    """
    A template without headers: the first turns' contents, `separator`, the assistant's content, `end`; a lone turn is
    its content and `end` (LLM-JEPA's `--plain`).

    Args:
        separator (`str`): between Text and Code, a token of its own.
        end (`str`): a special token that ends the turn.

    Returns:
        `str`: for `chat_template`.
    """
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.first %}" + separator + "{% endif %}"
        "{{ m['content'] }}{% if loop.last and not add_generation_prompt %}" + end + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + separator + "{% endif %}"
    )


def official_views(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    predictor_tokens: Sequence[str] = (),
    max_length: int = 512,
    chat_template: str | None = None,
    predictor_position: Literal["end", "front"] = "end",
    direction: Literal["text2code", "code2text"] = "text2code",
    view_contents: tuple[str, str] | None = None,
    **template_options: Any,
) -> dict[str, list[int]]:
    """
    One conversation exactly as the released code of LLM-JEPA tokenizes it: the whole chat, the user's turn alone with
    the predictor tokens glued to its content, the assistant's turn alone, each padded on the right.

    `labels_dataset` marks the assistant's content, and its end of turn not; `labels_collated` is what the released
    code trains on, since its collator overwrites the former: every token but padding, end of turn too where it is the
    pad.

    Args:
        messages (`list[dict]`): ends with a user's and an assistant's turn.
        tokenizer (`PreTrainedTokenizerBase`): a fast one with a pad token.
        predictor_tokens (`Sequence[str]`): in the order in which they stand: the released code's descend, `k` to 1,
            and ascend in front.
        max_length (`int`): tokens of each row; more are cut off on the right.
        chat_template (`str`, *optional*): instead of the tokenizer's.
        predictor_position (`str`): behind the content or, the released `front_pred`, before it.
        direction (`str`): glued to the user's content or, the released `reverse_pred`, to the assistant's.
        view_contents (`tuple[str, str]`, *optional*): of the views, instead of the user's and the assistant's
            (HellaSwag: context and correct ending).
        template_options: for the template, such as `enable_thinking=False`.

    Returns:
        `dict[str, list[int]]`: `full_input_ids`, `full_attention_mask`, the same of `text` and `code`,
        `labels_dataset` and `labels_collated`, each of `max_length`.

    Raises:
        ValueError: without a pad token, or as [`tokenize_chat`].
    """
    pad = tokenizer.pad_token_id
    if pad is None:
        raise ValueError("The tokenizer has no pad token; the released code sets `tokenizer.pad_token = eos_token`.")
    full = tokenize_chat(tokenizer, messages, 2, chat_template, **template_options)
    contents = list(view_contents or (turn["content"] for turn in messages[-2:]))
    predicting, glued = int(direction == "code2text"), "".join(predictor_tokens)
    front = predictor_position == "front"
    contents[predicting] = glued + contents[predicting] if front else contents[predicting] + glued
    rows = {"full": full.input_ids}
    for name, role, content in zip(("text", "code"), ("user", "assistant"), contents, strict=True):
        rendered = render(tokenizer, [{"role": role, "content": content}], chat_template, **template_options)
        rows[name] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    views: dict[str, list[int]] = {}
    for name, ids in rows.items():
        kept = ids[:max_length]
        views[f"{name}_input_ids"] = kept + [pad] * (max_length - len(kept))
        views[f"{name}_attention_mask"] = [1] * len(kept) + [0] * (max_length - len(kept))
    first, last = full.spans[1]
    # The released code searches for the whole content and labels nothing when it has been cut.
    inside = range(first, last) if last <= max_length else ()
    views["labels_dataset"] = [views["full_input_ids"][i] if i in inside else -100 for i in range(max_length)]
    views["labels_collated"] = [-100 if token == pad else token for token in views["full_input_ids"]]
    return views


def _split(skeleton: str, num_marked: int) -> list[str]:
    pieces = [skeleton]
    for marker in _MARKERS[:num_marked]:
        if pieces[-1].count(marker) != 1:
            raise ValueError(
                "The chat template does not show each content exactly once, so the views cannot be told apart in it; "
                "give another: `pair_format=PairFormat(chat_template=...)`."
            )
        pieces[-1:] = pieces[-1].split(marker)
    return pieces


def _content_spans(rendered: str, pieces: list[str], contents: list[str]) -> list[tuple[int, int]]:
    """First and last character of each content, spaces at its ends left out."""
    for shorten in (str, str.strip, str.rstrip, str.lstrip):
        parts = [shorten(content) for content in contents]
        whole = pieces[0] + "".join(part + piece for part, piece in zip(parts, pieces[1:], strict=True))
        if whole != rendered:
            continue
        spans, place = [], len(pieces[0])
        for part, piece in zip(parts, pieces[1:], strict=True):
            first = place + len(part) - len(part.lstrip())
            spans.append((first, place + len(part.rstrip()) - 1))
            place += len(part) + len(piece)
        return spans
    raise ValueError(
        "The chat template changes the contents it is given (beyond stripping spaces), so the views cannot be found "
        "in what it renders; give another: `pair_format=PairFormat(chat_template=...)`."
    )


def _tokens_at(offsets: list[tuple[int, int]], character: int) -> list[int]:
    # Several tokens can share one character (byte-level BPE).
    covering = [index for index, (first, end) in enumerate(offsets) if first <= character < end]
    if not covering:
        raise ValueError("The tokenizer drops the first or last character of a content, so its token cannot be found.")
    return covering


def _header(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    before_content: str,
    chat_template: str | None,
    options: dict[str, Any],
) -> str:
    """What the template puts right before the last turn's content, if generation would be started with it."""
    if len(messages) < 2:
        return ""
    base = render(tokenizer, messages[:-1], chat_template, **options)
    prompt = render(tokenizer, messages[:-1], chat_template, **{**options, "add_generation_prompt": True})
    header = prompt[len(base) :] if prompt.startswith(base) else ""
    # What follows it (Qwen's empty thoughts) is the template's too.
    place = before_content.rfind(header) if header else -1
    return before_content[place:] if place >= 0 else ""
