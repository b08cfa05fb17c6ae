"""The released LLM-JEPA code's batches, for parity: 2 B rows in one pass, or 3 B rows."""

from typing import Literal

import torch

from .text import BLANK, PAD


def pack_official(
    full_input_ids: torch.Tensor,
    full_attention_mask: torch.Tensor,
    full_labels: torch.Tensor,
    text_input_ids: torch.Tensor,
    text_attention_mask: torch.Tensor,
    code_input_ids: torch.Tensor,
    code_attention_mask: torch.Tensor,
    num_predictor_tokens: int,
    last_token: int = -2,
    form: Literal["one_pass", "multi_pass"] = "one_pass",
    predictor_position: Literal["end", "front"] = "end",
    direction: Literal["text2code", "code2text"] = "text2code",
) -> dict[str, torch.Tensor]:
    r"""
    `layout="official"`. `"one_pass"` is the released `--additive_mask`: B rows of whole conversations, and B rows of
    Text (with its predictor tokens) and Code, which do not see each other but share running positions. `"multi_pass"`
    is its default: B conversations, B Texts, B Codes.

    With `"one_pass"`, tokens behind `last_token` attend to nothing, those of the conversations included, whose labels
    are still learnt (with `last_token` -3 this changes the language-model loss).

    Args:
        full_input_ids, text_input_ids, code_input_ids (int64 tensors of shape `(batch, length)`): padded on the right;
            the predictor tokens stand in the view that predicts.
        full_attention_mask, text_attention_mask, code_attention_mask (the same): 1 for tokens, 0 for padding.
        full_labels (the same): unshifted, -100 for none.
        num_predictor_tokens (`int`): k.
        last_token (`int`): the token that is read, counted from the end of each view: -1 is the last.
        form (`str`).
        predictor_position, direction (`str`): as in [`pack_examples`].

    Returns:
        As [`pack_examples`]; `branch` with `"one_pass"` only.

    Raises:
        `ValueError`: for left padding, shapes that differ, a `last_token` outside a view, Text and Code that do not
            fit one row, an unknown form.
    """
    if form not in ("one_pass", "multi_pass"):
        raise ValueError(f'`form` must be "one_pass" or "multi_pass", got {form!r}.')
    shape = full_input_ids.shape
    lengths = {}
    for name, ids, mask in (
        ("full", full_input_ids, full_attention_mask),
        ("text", text_input_ids, text_attention_mask),
        ("code", code_input_ids, code_attention_mask),
    ):
        if ids.shape != shape or mask.shape != shape:
            raise ValueError(
                f"All inputs must have one shape, got {tuple(shape)} and, for {name}, {tuple(ids.shape)}."
            )
        lengths[name] = mask.sum(dim=1)
        if not torch.equal(mask.bool(), torch.arange(shape[1]) < lengths[name][:, None]):
            raise ValueError(f"`{name}_attention_mask` is padded on the left or inside; pad on the right.")
        least = num_predictor_tokens * (name == ("code" if direction == "code2text" else "text")) - last_token
        if last_token > -1 or lengths[name].min() < least:
            raise ValueError(
                f"last_token={last_token} with {num_predictor_tokens} predictor tokens does not lie in a {name} view "
                f"of {int(lengths[name].min())} tokens."
            )
    size, width = shape
    rows = torch.arange(size)
    column = torch.arange(width)
    kept = {name: length + last_token + 1 for name, length in lengths.items()}
    empty = torch.full_like(full_labels, -100)
    running = column.expand(size, width)
    if form == "multi_pass":
        batch = {
            "input_ids": torch.cat([full_input_ids, text_input_ids, code_input_ids]),
            "document": torch.cat([torch.where(column < lengths[name][:, None], 0, PAD) for name in lengths]),
            "position_ids": running.repeat(3, 1),
            "labels": torch.cat([full_labels, empty, empty]),
        }
        text = torch.stack([size + rows, kept["text"] - 1], dim=1)
        code = torch.stack([2 * size + rows, kept["code"] - 1], dim=1)
    else:
        end = kept["text"] + kept["code"]
        if end.max() > width:
            raise ValueError(
                f"Text and Code take {int(end.max())} tokens together, but rows hold {width}; raise the length."
            )
        offset = column - kept["text"][:, None]
        in_code = (offset >= 0) & (column < end[:, None])
        # Behind both views the released code leaves the Text row's tokens; nothing attends to them.
        pairs = torch.where(in_code, code_input_ids.gather(1, offset.clamp(0)), text_input_ids)
        views = torch.where(offset < 0, 0, torch.where(in_code, 1, BLANK))
        batch = {
            "input_ids": torch.cat([full_input_ids, pairs]),
            "document": torch.cat([torch.where(column < kept["full"][:, None], 0, BLANK), views]),
            "position_ids": running.repeat(2, 1),
            "labels": torch.cat([full_labels, empty]),
        }
        # Positions do not start again at the Code: FlashAttention, which goes by them, must refuse these rows.
        batch["branch"] = torch.zeros_like(batch["document"])
        text = torch.stack([size + rows, kept["text"] - 1], dim=1)
        code = torch.stack([size + rows, end - 1], dim=1)
    back = torch.tensor([0, num_predictor_tokens if predictor_position == "end" else 0])
    batch["label_index"] = (batch["labels"][:, 1:] != -100).nonzero()
    batch["predictor_index"] = code if direction == "code2text" else text
    batch["text_index"] = text if direction == "code2text" else text - back
    batch["code_index"] = code - back if direction == "code2text" else code
    return batch
