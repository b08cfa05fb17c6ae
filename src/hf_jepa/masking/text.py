"""One exact forward pass of LLM-JEPA: conversation, predictor tokens and isolated Code packed into rows."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Layout = Literal["auto", "shared", "packed", "replicated", "official"]

# What `document` holds where there is no document: padding attends to itself, a blank to nothing at all.
PAD, BLANK = -1, -2
_IGNORED = -100
_RESPONSE, _PREDICTOR = 1, 2


def resolve_layout(layout: Layout, attn_implementation: str, num_predictor_tokens: int) -> Layout:
    """
    The layout that an attention backend can compute exactly.

    Args:
        layout (`str`): `"auto"` chooses; any other is checked.
        attn_implementation (`str`): of the decoder, such as `"sdpa"`.
        num_predictor_tokens (`int`): k.

    Returns:
        `"packed"` for k = 0; else `"replicated"` under FlashAttention, which takes no masks, and `"shared"` elsewhere.

    Raises:
        `ValueError`: for a layout that the backend or k rules out.
    """
    layouts = ("auto", "shared", "packed", "replicated", "official")
    if layout not in layouts:
        raise ValueError(f"`layout` must be one of {', '.join(layouts)}, got {layout!r}.")
    flash = "flash" in attn_implementation
    if layout == "auto":
        return "packed" if num_predictor_tokens == 0 else "replicated" if flash else "shared"
    if layout == "packed" and num_predictor_tokens > 0:
        raise ValueError(
            f"layout='packed' has no place for the {num_predictor_tokens} predictor tokens; use 'shared' or, under "
            "FlashAttention, 'replicated'."
        )
    if layout in ("shared", "official") and flash:
        raise ValueError(
            f"layout={layout!r} needs an attention mask, which {attn_implementation!r} does not take; load the "
            "decoder with attn_implementation 'sdpa', 'flex_attention' or 'eager', or use layout='replicated'."
        )
    return layout


@dataclass
class _Example:
    """One example's tokens: equally long columns, and where its embeddings are read."""

    input_ids: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    # Columns of (text, predictor, code); None without the JEPA term.
    reads: tuple[int, int, int] | None = None

    def add(self, ids: Sequence[int], document: int, branch: int = 0, start: int = 0) -> int:
        """Appends a segment and returns its last column."""
        self.input_ids += ids
        self.document += [document] * len(ids)
        self.branch += [branch] * len(ids)
        self.position_ids += range(start, start + len(ids))
        self.labels += [_IGNORED] * len(ids)
        return len(self.input_ids) - 1


def _lay_out(
    example: Mapping[str, Any],
    name: str,
    layout: Layout,
    predictors: list[int],
    predictor_position: str,
    direction: str,
) -> _Example:
    ids, length = list(example["input_ids"]), example.get("text_length")
    labels = example.get("labels")
    code, text = example.get("code_ids"), example.get("text_ids")
    if not ids:
        raise ValueError(f"{name} has no tokens; drop it.")
    if labels is not None and len(labels) != len(ids):
        raise ValueError(f"{name} has {len(ids)} tokens but {len(labels)} labels; labels are not shifted.")
    for tokens in (ids, code, text):
        if tokens is not None and len(tokens) and min(tokens) < 0:
            raise ValueError(f"{name} has token id {min(tokens)}; ids below 0 stand for soft predictor vectors.")
    row = _Example()
    if code is None:
        row.add(ids, document=0)
    else:
        for view, tokens in (("Text", text), ("Code", code)):
            if tokens is not None and not len(tokens):
                raise ValueError(f"{name} has an empty {view} view; drop it, or leave `code_ids` out.")
        if length is None or not 1 <= length <= len(ids):
            raise ValueError(
                f"{name} has text_length={length} in a conversation of {len(ids)} tokens: the Text view is empty, or "
                "was truncated away; raise the maximal length, or leave `code_ids` out."
            )
        text_last = row.add(ids[:length], document=0)
        row.add(ids[length:], document=0, branch=_RESPONSE, start=length)
        view = ids[:length] if text is None else list(text)
        k, front = len(predictors), predictor_position == "front"

        def with_predictors(tokens: list[int], document: int) -> tuple[int, int]:
            """A document of tokens and predictors; the last columns of the tokens and of the predictors."""
            if front:
                row.add(predictors, document)
                last = row.add(tokens, document, start=k)
                return last, last
            last = row.add(tokens, document)
            return last, row.add(predictors, document, start=len(tokens)) if k else last

        if direction == "code2text":
            if text is not None:
                text_last = row.add(view, document=1)
            code_last, read = with_predictors(list(code), document=2)
        else:
            if text is not None or (k and (front or layout == "replicated")):
                copy_last, read = with_predictors(view, document=1)
                text_last = text_last if text is None else copy_last
            else:
                read = row.add(predictors, document=0, branch=_PREDICTOR, start=length) if k else text_last
            code_last = row.add(list(code), document=2)
        row.reads = (text_last, read, code_last)
    if labels is not None:
        # Nothing of the same document stands before the first token: in a packed row, a neighbour would predict it.
        row.labels[: len(ids)] = [_IGNORED, *labels[1:]]
    return row


def _fill_rows(lengths: list[int], row_length: int | None, multiple: int) -> list[tuple[int, int]]:
    """
    Row and first column of each example: a row each, or rows of at most `row_length` of such a number that padding up
    to the widest, and to a `multiple`, adds little.
    """
    if row_length is None:
        return [(row, 0) for row in range(len(lengths))]
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    # First-fit decreasing: nearly the fewest rows, but its last ones are short of tokens.
    places, used = [(0, 0)] * len(lengths), []
    for number in order:
        row = next((row for row, filled in enumerate(used) if filled + lengths[number] <= row_length), len(used))
        if row == len(used):
            used.append(0)
        places[number] = (row, used[row])
        used[row] += lengths[number]
    fewest = len(used)
    found = [(fewest * -(-max(used) // multiple), places)]
    # Longest first into the emptiest row.
    for num_rows in range(fewest, min(2 * fewest, len(lengths)) + 1):
        rows = [(0, row) for row in range(num_rows)]
        even = [(0, 0)] * len(lengths)
        for number in order:
            filled, row = rows[0]
            even[number] = (row, filled)
            heapq.heapreplace(rows, (filled + lengths[number], row))
        widest = max(rows)[0]
        if widest <= row_length:
            found.append((num_rows * -(-widest // multiple), even))
    # The most rows of hardly more padding: they are shorter, and attend to less.
    least = min(cost for cost, _ in found)
    return next(places for cost, places in reversed(found) if cost <= 1.03 * least)


def pack_examples(
    examples: Sequence[Mapping[str, Any]],
    num_predictor_tokens: int = 0,
    layout: Literal["shared", "packed", "replicated"] = "shared",
    *,
    predictor_token_ids: Sequence[int] | None = None,
    predictor_position: Literal["end", "front"] = "end",
    direction: Literal["text2code", "code2text"] = "text2code",
    row_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    pad_token_id: int = 0,
) -> dict[str, torch.Tensor]:
    r"""
    Lays examples out as rows whose single forward pass gives the next-token loss and all embeddings. With k predictor
    tokens P, an example with conversation T + R (the prompt up to the last Text token, the response) and Code C is

    - `"shared"`: `[T | R | P | C]`. P continues T, unseen by R; C sees nothing else. t + r + k + c tokens.
    - `"packed"`: `[T | R], [C]`, for k = 0: ordinary sequence packing.
    - `"replicated"`: `[T | R], [T | P], [C]`: ordinary packing for k > 0, at the cost of a second T.

    P's document is separate in every layout where it stands before the Text (`predictor_position="front"`), follows
    Code (`direction="code2text"`), or where the Text view has tokens of its own (`text_ids`).

    Args:
        examples (`Sequence` of mappings): each with
            `input_ids` (`list[int]`): the conversation;
            `labels` (`list[int]`, *optional*): of it, unshifted, -100 for none; without, nothing is learnt of it;
            `text_length` (`int`): T's tokens, the first of `input_ids`; needed with `code_ids`;
            `code_ids` (`list[int]`, *optional*): C; without, the example carries no JEPA tokens at all;
            `text_ids` (`list[int]`, *optional*): Text rendered on its own, instead of T;
            `displacements` (`list`, *optional*): of [`draw_displacements`], for semantic tube prediction.
        num_predictor_tokens (`int`): k.
        layout (`str`): of [`resolve_layout`].
        predictor_token_ids (`Sequence[int]`, *optional*): k ids of the vocabulary, in the order in which they stand.
            By default the ids -1 .. -k, which [`~hf_jepa.LLMJepaForCausalLM`] takes for its soft vectors.
        predictor_position (`str`): behind the view (`"end"`) or, the official `front_pred`, before it (`"front"`);
            then the prediction is read at the view's last token.
        direction (`str`): `"text2code"`, or, the official `reverse_pred`, `"code2text"`: Code predicts Text.
        row_length (`int`, *optional*): pack several examples in rows of so many tokens at most; by default each has a
            row of its own.
        pad_to_multiple_of (`int`, *optional*): of the rows' length; 128 suits FlexAttention.
        pad_token_id (`int`): fills rows up; no result depends on it.

    Returns:
        The arguments of [`~hf_jepa.LLMJepaForCausalLM.forward`], all int64: `input_ids`, `document` (-1: padding),
        `position_ids` (from 0 in each document), `labels` of shape `(rows, length)`, `branch` of the same shape in the
        shared layout only; `label_index` `(n, 2)`, the [row, column] of states that predict a label; `text_index`,
        `predictor_index`, `code_index` `(pairs, 2)` in the order of the examples; `displacement_index`
        `(triples, 2, segments, 3)`, [row, start, end], where examples have displacements.

    Raises:
        `ValueError`: for no examples, empty or truncated views, labels of another length, negative token ids, an
            example longer than a row, displacements outside the conversation, unknown or incompatible options.
    """
    k = num_predictor_tokens
    predictors = list(range(-1, -k - 1, -1)) if predictor_token_ids is None else list(predictor_token_ids)
    if layout not in ("shared", "packed", "replicated"):
        raise ValueError(f"`layout` must be shared, packed or replicated, got {layout!r}; see `resolve_layout`.")
    if resolve_layout(layout, "sdpa", k) and k != len(predictors):
        raise ValueError(f"{k} predictor tokens need {k} `predictor_token_ids`, got {len(predictors)}.")
    if predictor_position not in ("end", "front") or direction not in ("text2code", "code2text"):
        raise ValueError(
            '`predictor_position` must be "end" or "front" and `direction` "text2code" or "code2text", got '
            f"{predictor_position!r} and {direction!r}."
        )
    if not examples:
        raise ValueError("There are no examples to pack.")
    rows = [
        _lay_out(example, f"Example {number}", layout, predictors, predictor_position, direction)
        for number, example in enumerate(examples)
    ]
    lengths = [len(row.input_ids) for row in rows]
    if row_length is not None and max(lengths) > row_length:
        number = lengths.index(max(lengths))
        raise ValueError(
            f"Example {number} takes {max(lengths)} tokens, more than row_length={row_length}; truncate it, drop its "
            "Code view, or raise `row_length`."
        )
    multiple = pad_to_multiple_of or 1
    places = _fill_rows(lengths, row_length, multiple)
    num_rows = 1 + max(row for row, _ in places)
    width = max(start + length for (_, start), length in zip(places, lengths, strict=True))
    width = -(-width // multiple) * multiple
    fills = {"input_ids": pad_token_id, "document": PAD, "branch": 0, "position_ids": 0, "labels": _IGNORED}
    batch = {name: torch.full((num_rows, width), value) for name, value in fills.items()}
    reads, displacements = [], []
    for number, (row, (line, start)) in enumerate(zip(rows, places, strict=True)):
        columns = slice(start, start + len(row.input_ids))
        for name in batch:
            batch[name][line, columns] = torch.tensor(getattr(row, name))
        # Three documents at most per example.
        batch["document"][line, columns] += 3 * number
        if row.reads is not None:
            reads.append([[line, start + column] for column in row.reads])
        end = len(examples[number]["input_ids"])
        for pair in examples[number].get("displacements") or ():
            if not all(0 <= column < end for segments in pair for segment in segments for column in segment):
                raise ValueError(f"Example {number} has displacements outside its {end} tokens: {pair}.")
            displacements.append([[[line, start + a, start + b] for a, b in segments] for segments in pair])
    if layout != "shared":
        del batch["branch"]
    batch["label_index"] = (batch["labels"][:, 1:] != _IGNORED).nonzero()
    index = torch.tensor(reads, dtype=torch.int64).view(-1, 3, 2)
    batch["text_index"], batch["predictor_index"], batch["code_index"] = index.unbind(1)
    if displacements:
        batch["displacement_index"] = _stack_segments(displacements)
    return batch


def _stack_segments(displacements: list[list[list[list[int]]]]) -> torch.Tensor:
    """`(triples, 2, segments, 3)`; a segment that starts where it ends adds nothing."""
    most = max(len(segments) for pair in displacements for segments in pair)

    def nothing(segments: list[list[int]]) -> list[int]:
        row, start, _ = segments[0]
        return [row, start, start]

    return torch.tensor(
        [[segments + [nothing(segments)] * (most - len(segments)) for segments in pair] for pair in displacements]
    )
