"""From encoded text pairs to the batches that `LLMJepaForCausalLM` reads in one pass."""

from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from ..masking.semantic_tube import draw_displacements
from ..masking.text import pack_examples
from ..masking.text_official import pack_official
from .chat_views import as_messages, official_views, pair_option
from .seeding import mix_seed
from .text_pairs import PairFormat, view_contents

# Keep what is drawn for one purpose apart from other draws of the same seed.
_DROPOUT, _TUBE = 0x4A45, 0x5354


class TextPairCollator:
    r"""
    Packs encoded pairs ([`~hf_jepa.data.encode_pair`]) with [`~hf_jepa.masking.pack_examples`], after deciding which
    examples carry JEPA tokens and, for semantic tube prediction, which displacements are compared. Everything random
    is a function of `(seed, draw)` of the example, so alike for every split of a batch over processes and
    accumulation.

    Args:
        num_predictor_tokens (`int`): k, 0 or more.
        layout (`str`): `"shared"`, `"packed"` or `"replicated"`, of [`~hf_jepa.masking.resolve_layout`].
        objective (`str`): `"pairs"`: LLM-JEPA. `"tube"`: semantic tube prediction. `"none"`: plain fine-tuning.
        jepa_dropout (`float`): share of examples, in [0, 1), that carry no JEPA tokens (or displacements).
        seed (`int`): of dropout and displacements.
        tube_variant (`str`): `"paper"` draws from the whole conversation, `"random_span"`, the released code's, and
            `"inner_span"` from the contents; see [`~hf_jepa.masking.draw_displacements`].
        tube_times (`int`): displacement pairs per example.
        require_pairs (`bool`): refuse a batch of which no example has a whole pair.
        pack_options: of [`~hf_jepa.masking.pack_examples`]: `predictor_token_ids`, `predictor_position`, `direction`,
            `row_length`, `pad_to_multiple_of`, `pad_token_id`.

    Raises:
        ValueError: for arguments out of range; when called, for a batch in which no example has a pair although none
            was dropped, or for randomness without draws.
    """

    def __init__(
        self,
        num_predictor_tokens: int = 1,
        layout: Literal["shared", "packed", "replicated"] = "shared",
        objective: Literal["pairs", "tube", "none"] = "pairs",
        jepa_dropout: float = 0.0,
        seed: int = 0,
        tube_variant: Literal["paper", "random_span", "inner_span"] = "paper",
        tube_times: int = 1,
        require_pairs: bool = True,
        **pack_options: Any,
    ) -> None:
        if objective not in ("pairs", "tube", "none"):
            raise ValueError(f"`objective` is {objective!r}; choose 'pairs', 'tube' or 'none'.")
        if not 0.0 <= jepa_dropout < 1.0:
            raise ValueError(
                f"`jepa_dropout` is {jepa_dropout}; it lies in [0, 1). To train without: objective='none'."
            )
        self.num_predictor_tokens = num_predictor_tokens
        self.layout = layout
        self.objective = objective
        self.jepa_dropout = jepa_dropout
        self.seed = seed
        self.tube_variant = tube_variant
        self.tube_times = tube_times
        self.require_pairs = require_pairs
        self.pack_options = pack_options

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        wanted = self.objective == "pairs" and self.require_pairs
        if wanted and all(example["code_ids"] is None for example in examples):
            raise ValueError(
                "No example of this batch has a whole pair, so there is nothing for the JEPA loss: train with a "
                f"JEPA weight of 0, or keep longer rows: {pair_option(max_length=1024)}."
            )
        prepared = [self._prepare(example) for example in examples]
        batch = pack_examples(prepared, self.num_predictor_tokens, self.layout, **self.pack_options)
        if self.objective == "tube":
            # Dropout may have left none.
            batch.setdefault("displacement_index", torch.zeros((0, 2, 1, 3), dtype=torch.int64))
        return batch

    def _prepare(self, example: dict[str, Any]) -> dict[str, Any]:
        dropped = self.jepa_dropout and self._number(example, _DROPOUT) < self.jepa_dropout * 2**32
        if self.objective != "pairs" or dropped:
            example = {**example, "text_ids": None, "code_ids": None}
        if self.objective != "tube" or dropped:
            return example
        whole = [(0, len(example["input_ids"]))]
        spans = whole if self.tube_variant == "paper" else example["spans"]
        generator = torch.Generator().manual_seed(self._number(example, _TUBE))
        drawn = draw_displacements(spans, generator, self.tube_variant, self.tube_times)
        return {**example, "displacements": drawn}

    def _number(self, example: dict[str, Any], purpose: int) -> int:
        if "draw" not in example:
            raise ValueError(
                "An example has no `draw`, from which its randomness is seeded; index TextPairDataset with "
                "(index, draw), as LLMJepaTrainer does."
            )
        return mix_seed(self.seed, purpose, example["draw"])


class OfficialPairCollator:
    """
    The released code's rows, to the bit: every view of a conversation padded to `max_length`, in one pass of 2 B rows
    or in 3 B rows ([`~hf_jepa.masking.pack_official`]). For parity; several times slower than [`TextPairCollator`].

    Args:
        tokenizer (`PreTrainedTokenizerBase`): a fast one with a pad token.
        predictor_tokens (`Sequence[str]`): in the order in which they stand: the released code's descend, and ascend
            in front.
        pair_format ([`~hf_jepa.data.PairFormat`], *optional*): names the columns, `max_length` and the template; what
            labels and views are is the released code's.
        last_token (`int`): the token that is read, from the end of each view.
        form (`str`): `"one_pass"` or `"multi_pass"`.
        predictor_position, direction (`str`): as in [`~hf_jepa.data.official_views`].

    Returns (when called on rows of the dataset) as [`~hf_jepa.masking.pack_official`].

    Raises:
        ValueError: for predictor tokens that the tokenizer lacks, or no pad token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        predictor_tokens: tuple[str, ...] = (),
        pair_format: PairFormat | None = None,
        last_token: int = -2,
        form: Literal["one_pass", "multi_pass"] = "one_pass",
        predictor_position: Literal["end", "front"] = "end",
        direction: Literal["text2code", "code2text"] = "text2code",
    ) -> None:
        unknown = [token for token in predictor_tokens if token not in tokenizer.get_vocab()]
        if unknown:
            raise ValueError(
                f"The tokenizer has no token {', '.join(unknown)}; add them with `add_special_tokens` and resize the "
                "model's embeddings."
            )
        if tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no pad token; the released code sets `pad_token = eos_token`.")
        self.tokenizer = tokenizer
        self.predictor_tokens = tuple(predictor_tokens)
        self.pair_format = pair_format or PairFormat.official()
        self.last_token = last_token
        self.form = form
        self.options: dict[str, Any] = {"predictor_position": predictor_position, "direction": direction}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        views = [self._views(row) for row in rows]
        stacked = {name: torch.tensor([view[name] for view in views]) for name in views[0]}
        inputs = {
            f"{view}_{kind}": stacked[f"{view}_{kind}"]
            for view in ("full", "text", "code")
            for kind in ("input_ids", "attention_mask")
        }
        return pack_official(
            **inputs,
            full_labels=stacked["labels_collated"],
            num_predictor_tokens=len(self.predictor_tokens),
            last_token=self.last_token,
            form=self.form,
            **self.options,
        )

    def _views(self, row: dict[str, Any]) -> dict[str, list[int]]:
        fmt = self.pair_format
        return official_views(
            as_messages(row, fmt.messages_column, fmt.text_column, fmt.code_column, fmt.system_prompt),
            self.tokenizer,
            self.predictor_tokens,
            fmt.max_length,
            fmt.chat_template,
            view_contents=view_contents(row, fmt),
            **self.options,
            **fmt.template_options,
        )
