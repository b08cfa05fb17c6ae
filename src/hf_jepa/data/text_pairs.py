"""Pairs of Text and Code as tokens and labels, ready to be packed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .chat_views import TokenizedChat, as_messages, pair_option, tokenize_chat

logger = logging.get_logger(__name__)

# In lists of numbers, each token takes some 40 bytes: 160 MB in each worker.
MAX_KEPT_TOKENS = 2**22


@dataclass(frozen=True)
class PairFormat:
    r"""
    How a conversation becomes tokens, labels and views. The defaults are the right labels and the cheapest views;
    [`PairFormat.official`] is what the released code of LLM-JEPA does.

    Args:
        max_length (`int`): tokens of a conversation; more are cut off on the right.
        train_on (`str`): what the next-token loss covers. `"response"`: the assistant's content and its end of turn.
            `"all"`: every token but the first. `"text"`: the user's turn alone, of which the conversation then
            consists, for pretraining on paraphrases (the released `--plain --train_all`).
        ignore_pad_labels (`bool`): labels equal to the pad token are ignored: with pad = end of turn, as in the
            released setup, no end of turn is ever trained.
        text_view (`str`): where Enc(Text) is read. `"shared"`: in the conversation, system prompt included, at no
            extra cost. `"isolated"`: in a copy of the user's turn alone, as the released code does. `"plain"`: in a
            copy of its content, without the template (the released `plain_jepa`, with `code_view="plain"`).
        code_view (`str`): tokens of the Code view. `"assistant_only"`: the assistant's header and content. `"plain"`:
            its content. `"chat"`: its turn rendered as a chat of its own, as the released code does. The first two
            start with the conversation's begin-of-text token, if it has one.
        read_at (`str`): `"content"`: at the last token of the content. `"end_of_turn"`: at the special token after it.
        chat_template (`str`, *optional*): instead of the tokenizer's.
        template_options (`dict`): for the template, such as `{"enable_thinking": False}`.
        system_prompt (`str`, *optional*): put before two-column rows.
        messages_column, text_column, code_column (`str`): names of the columns.
        text_view_column, code_view_column (`str`, *optional*): columns whose contents (texts, or lists of one chat
            message) are the views instead of the conversation's (HellaSwag: context and correct ending).
    """

    max_length: int = 512
    train_on: Literal["response", "all", "text"] = "response"
    ignore_pad_labels: bool = False
    text_view: Literal["shared", "isolated", "plain"] = "shared"
    code_view: Literal["assistant_only", "plain", "chat"] = "assistant_only"
    read_at: Literal["content", "end_of_turn"] = "content"
    chat_template: str | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    messages_column: str = "messages"
    text_column: str = "text"
    code_column: str = "code"
    text_view_column: str | None = None
    code_view_column: str | None = None

    def __post_init__(self) -> None:
        choices = {
            "train_on": ("response", "all", "text"),
            "text_view": ("shared", "isolated", "plain"),
            "code_view": ("assistant_only", "plain", "chat"),
            "read_at": ("content", "end_of_turn"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose {', '.join(map(repr, allowed))}.")
        if self.max_length < 4:
            raise ValueError(f"`max_length` is {self.max_length}; no conversation fits into fewer than 4 tokens.")
        if (self.text_view_column is None) != (self.code_view_column is None):
            raise ValueError("Give both `text_view_column` and `code_view_column`, or neither.")
        if self.text_view_column is not None and (self.text_view, self.code_view) != ("isolated", "chat"):
            raise ValueError(
                f"Views from columns of their own need {pair_option(text_view='isolated', code_view='chat')}."
            )

    @classmethod
    def official(cls, **options: Any) -> "PairFormat":
        """
        The released code's labels and views: labels over the whole chat but the pad token, views rendered as chats of
        their own. Read at the content, which is the released `last_token` of Llama-3 and Qwen; for the released rows
        to the bit, with any `last_token`, see [`~hf_jepa.data.OfficialPairCollator`].

        Args:
            options: any other field.

        Returns:
            [`PairFormat`].
        """
        fixed = {"train_on": "all", "ignore_pad_labels": True, "text_view": "isolated", "code_view": "chat"}
        return cls(**{**fixed, **options})


def encode_pair(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, pair_format: PairFormat | None = None
) -> dict[str, Any]:
    """
    One row as tokens, predictor tokens not among them: the collator puts them after the Text view.

    Args:
        row (`dict`): `messages`, or two columns.
        tokenizer (`PreTrainedTokenizerBase`): a fast one.
        pair_format ([`PairFormat`], *optional*): how.

    Returns:
        `dict`: what [`~hf_jepa.masking.pack_examples`] takes: `input_ids` and `labels` of the conversation (not
        shifted, -100 ignored), `text_length` (the shared Text view is `input_ids[:text_length]`), `text_ids` (a view
        of its own, or None) and `code_ids` (None where a view was cut off); and `spans`, where the contents lie in
        `input_ids`.

    Raises:
        ValueError: for views that are empty, overlap, or leave nothing to train on after truncation.
    """
    fmt = pair_format or PairFormat()
    messages = as_messages(row, fmt.messages_column, fmt.text_column, fmt.code_column, fmt.system_prompt)
    chat = tokenize_chat(tokenizer, messages, 2, fmt.chat_template, **fmt.template_options)
    text_span, code_span = chat.spans
    if fmt.train_on == "text":
        conversation = tokenize_chat(tokenizer, messages[:-1], 1, fmt.chat_template, **fmt.template_options)
        text_span = conversation.spans[0]
        code_in_chat = None
    else:
        conversation, code_in_chat = chat, code_span
    text_end = _place_read(conversation, text_span[1] - 1, fmt.read_at) + 1
    if code_in_chat is not None and text_end > code_in_chat[0]:
        raise ValueError("The Text view's end of turn lies inside the Code view; they overlap.")
    full, labels = conversation.input_ids, _labels(conversation, code_in_chat, tokenizer, fmt)
    kept = min(len(full), fmt.max_length)
    if all(label == -100 for label in labels[:kept]):
        raise ValueError(
            f"Nothing is left to train on: the conversation has {len(full)} tokens, of which the first "
            f"{fmt.max_length} hold no label. Drop such rows or raise the length: {pair_option(max_length=len(full))}."
        )
    contents = view_contents(row, fmt) or tuple(turn["content"] for turn in messages[-2:])
    text_ids = _text_view(contents[0], chat, tokenizer, fmt)
    code_ids = _code_view(contents[1], chat, tokenizer, fmt)
    whole = text_end <= kept and (code_in_chat is None or code_in_chat[1] <= kept)
    whole = whole and len(text_ids or ()) <= fmt.max_length and len(code_ids) <= fmt.max_length
    return {
        "input_ids": full[:kept],
        "labels": labels[:kept],
        "text_length": text_end,
        "text_ids": text_ids if whole else None,
        "code_ids": code_ids if whole else None,
        "spans": [(first, min(end, kept)) for first, end in filter(None, (text_span, code_in_chat)) if first < kept],
    }


class TextPairDataset:
    """
    A map-style dataset of encoded pairs, indexed with `index` or with the `(index, draw)` of
    [`~hf_jepa.data.CountedSampler`]. Rows are tokenized when asked for; the first few million tokens are kept:
    a small dataset is tokenized once, and a large one does not fill the memory of every worker.

    Args:
        rows (`Sequence[dict]` or `datasets.Dataset`): chats or two columns.
        tokenizer (`PreTrainedTokenizerBase`): a fast one.
        pair_format ([`PairFormat`], *optional*): how rows become tokens.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, pair_format: PairFormat | None = None
    ) -> None:
        if not hasattr(rows, "__len__"):
            raise ValueError(
                f"{type(rows).__name__} is a stream, but text pairs are drawn by index; give a list or a map-style "
                "dataset (`streaming=False`, or `Dataset.from_list(list(stream.take(n)))`)."
            )
        if len(rows) == 0:
            raise ValueError("The dataset of text pairs is empty.")
        self.rows = rows
        self.tokenizer = tokenizer
        self.pair_format = pair_format or PairFormat()
        self._encoded: dict[int, dict[str, Any]] = {}
        self._num_kept_tokens = 0
        self._warned = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = key if isinstance(key, tuple) else (key, None)
        encoded = self._encoded.get(index)
        if encoded is None:
            encoded = self._encode(index)
            num_tokens = sum(len(encoded[name] or ()) for name in ("input_ids", "labels", "text_ids", "code_ids"))
            if self._num_kept_tokens + num_tokens <= MAX_KEPT_TOKENS:
                self._encoded[index] = encoded
                self._num_kept_tokens += num_tokens
        return encoded if draw is None else {**encoded, "draw": draw}

    def _encode(self, index: int) -> dict[str, Any]:
        try:
            encoded = encode_pair(self.rows[index], self.tokenizer, self.pair_format)
        except ValueError as error:
            raise ValueError(f"Row {index}: {error}") from error
        if encoded["code_ids"] is None and not self._warned:
            self._warned = True
            logger.warning(
                f"Row {index} has a view cut off by max_length={self.pair_format.max_length}; such rows train the "
                "next-token loss only. Said once. For longer rows: "
                f"{pair_option(max_length=2 * self.pair_format.max_length)}."
            )
        return encoded


def paraphrase_rows(groups: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """
    Rows for pretraining on paraphrases (LLM-JEPA §4, `--plain --train_all`): in each group, the i-th is the Text and
    the next its Code. Use with `PairFormat(train_on="text", chat_template=plain_chat_template())`.

    Args:
        groups (`Sequence[Sequence[str]]`): at least two paraphrases each.

    Returns:
        `list[dict]`: `text` and `code`.

    Raises:
        ValueError: for a group of fewer than two.
    """
    for place, group in enumerate(groups):
        if len(group) < 2:
            raise ValueError(f"Group {place} has {len(group)} paraphrase; a pair needs two.")
    return [
        {"text": first, "code": second} for group in groups for first, second in zip(group, group[1:], strict=False)
    ]


def _place_read(chat: TokenizedChat, last: int, read_at: str) -> int:
    if read_at == "content":
        return last
    end = chat.end_of_turn(last + 1)
    if end is None:
        raise ValueError(
            'No special token ends the turn, so read_at="end_of_turn" has nothing to read; read at the content '
            f"({pair_option(read_at='content')}), or use a template whose end of turn is a special token."
        )
    return end


def _labels(
    chat: TokenizedChat, code: tuple[int, int] | None, tokenizer: PreTrainedTokenizerBase, fmt: PairFormat
) -> list[int]:
    ids = chat.input_ids
    if fmt.train_on == "response":
        end = chat.end_of_turn(code[1])
        if end is None:
            raise ValueError(
                "No special token follows the assistant's content, so the model could not learn to stop. Let the "
                "template end the turn with a token that the tokenizer knows as special (`additional_special_tokens`)."
            )
        labels = [token if code[0] <= place <= end else -100 for place, token in enumerate(ids)]
    else:
        labels = list(ids)
    # Nothing predicts the first token.
    labels[0] = -100
    if fmt.ignore_pad_labels:
        labels = [-100 if token == tokenizer.pad_token_id else token for token in labels]
    return labels


def view_contents(row: dict[str, Any], pair_format: PairFormat) -> tuple[str, str] | None:
    """
    The contents of views that have columns of their own, or None where the conversation's are the views.

    Raises:
        ValueError: for a column that is missing, or holds neither a text nor one chat message.
    """
    contents = []
    for column in filter(None, (pair_format.text_view_column, pair_format.code_view_column)):
        content = row.get(column)
        if isinstance(content, list) and len(content) == 1:
            content = content[0]["content"]
        if not isinstance(content, str) or not content.strip():
            raise ValueError(
                f"The view's column {column!r} holds {content!r}; it must be a text, or a list of one chat message. "
                f"The row has the columns {', '.join(map(repr, row))}."
            )
        contents.append(content)
    return tuple(contents) or None


def _text_view(
    content: str, chat: TokenizedChat, tokenizer: PreTrainedTokenizerBase, fmt: PairFormat
) -> list[int] | None:
    if fmt.text_view == "shared":
        return None
    if fmt.text_view == "isolated":
        return _alone("user", content, tokenizer, fmt)
    first, last = chat.spans[0]
    return _begin(chat, first, tokenizer) + chat.input_ids[first : _place_read(chat, last - 1, fmt.read_at) + 1]


def _code_view(content: str, chat: TokenizedChat, tokenizer: PreTrainedTokenizerBase, fmt: PairFormat) -> list[int]:
    if fmt.code_view == "chat":
        return _alone("assistant", content, tokenizer, fmt)
    first, last = chat.spans[1]
    start = chat.header if fmt.code_view == "assistant_only" else first
    return _begin(chat, start, tokenizer) + chat.input_ids[start : _place_read(chat, last - 1, fmt.read_at) + 1]


def _begin(chat: TokenizedChat, start: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin-of-text token for a view that starts at `start`, if the conversation has one and the view does not."""
    bos = tokenizer.bos_token_id
    return [bos] if chat.input_ids[0] == bos != chat.input_ids[start] else []


def _alone(role: str, content: str, tokenizer: PreTrainedTokenizerBase, fmt: PairFormat) -> list[int]:
    """One turn rendered as a chat of its own, up to where it is read."""
    turn = [{"role": role, "content": content}]
    chat = tokenize_chat(tokenizer, turn, 1, fmt.chat_template, **fmt.template_options)
    return chat.input_ids[: _place_read(chat, chat.spans[0][1] - 1, fmt.read_at) + 1]
