"""LLM-JEPA: a causal language model whose states of Text predict its states of Code (arXiv 2509.14252)."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ... import adapters
from ...masking.attention import Tokens, attention_masks, is_varlen, visible_from
from ...masking.text import Layout, resolve_layout
from ...modeling_jepa import JepaPreTrainedModel
from ...objectives.inputs import at_least_float32
from ...parts import build_part, load_auto, refuse_unknown_fields
from ...regularized import build_regularizer
from .configuration_llm_jepa import LLMJepaConfig
from .decoder_checks import check_decoder, check_ids
from .objective_llm_jepa import LLMJepaOutput, jepa_terms, pair_distances
from .predictor_tokens import add_predictor_tokens, check_vocabulary, mean_token_vectors, predictor_token_ids


class LLMJepaForCausalLM(JepaPreTrainedModel):
    """
    LLM-JEPA around any causal language model. `decoder` stays the ordinary model that it is, also where it is wrapped
    by peft; [`export_decoder`] gives it back for plain `transformers`. Batches come from
    [`~hf_jepa.masking.pack_examples`].

    Example:

    ```python
    >>> from hf_jepa import LLMJepaForCausalLM
    >>> from hf_jepa.masking import pack_examples
    >>> model = LLMJepaForCausalLM.from_decoder("HuggingFaceTB/SmolLM2-135M", num_predictor_tokens=1)
    >>> example = {"input_ids": [1, 5, 6, 7, 8, 2], "labels": [-100, -100, -100, 7, 8, 2], "text_length": 3,
    ...            "code_ids": [1, 7, 8]}
    >>> loss = model(**pack_examples([example], 1, model.resolve_layout())).loss
    ```
    """

    config: LLMJepaConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    # The states are taken by a hook between backbone and head.
    _can_compile_fullgraph = False
    # The loss is normalised by `num_items_in_batch` and `num_pairs_in_batch`, not by the trainer.
    accepts_loss_kwargs = True

    def __init__(self, config: LLMJepaConfig, decoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if decoder is None:
            decoder = build_part(config.decoder_config, AutoModelForCausalLM)
            if config.decoder_adapter is not None:
                decoder = adapters.with_adapter(decoder, config.decoder_adapter)
        else:
            for module in decoder.modules():
                module._is_hf_initialized = True
        self._set_adapter(decoder)
        config.decoder_config = self.causal_lm.config
        width = self.get_input_embeddings().weight.shape[1]
        soft = config.num_predictor_tokens if config.predictor_mode == "soft" else 0
        self.predictor_tokens = nn.Parameter(torch.empty(soft, width)) if soft else None
        self.predictor_head = nn.Linear(width, width, bias=False) if config.predictor_head == "linear" else None
        self.regularizer = build_regularizer(config)
        check_decoder(self.causal_lm, self.encoder)
        check_vocabulary(self.causal_lm, config.predictor_token_ids or ())
        if config.target == "ema":
            self.target_encoder = copy.deepcopy(self.encoder)
        self.post_init()
        self.apply_requires_grad()

    def frozen(self) -> Iterator[nn.Module | nn.Parameter]:
        yield from super().frozen()
        if self.config.decoder_adapter is not None:
            named = self.decoder.named_parameters()
            yield from (parameter for name, parameter in named if name not in self._trained_by_adapter)
        if self.config.jepa_lambda == 0:
            yield from (part for part in (self.predictor_tokens, self.predictor_head) if part is not None)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        adapters.restore_original_rows(self.decoder)

    def add_decoder_adapter(self, peft_config: Any) -> None:
        """
        Puts an adapter (a `peft.PeftConfig`, such as LoRA or DoRA) into the decoder and freezes the rest of it;
        predictor vectors and heads stay trainable. `decoder_adapter` of the config says so, so that checkpoints load
        as they are.

        Raises:
            `ValueError`: with an EMA target, over another adapter, and for prompt learning.
        """
        if self.config.target == "ema":
            raise ValueError(
                "An EMA target copies the decoder before adapters are put into it, so it could not follow them; use "
                'target="stop_gradient" or "shared" with an adapter.'
            )
        if self.config.decoder_adapter is not None:
            raise ValueError("The decoder has an adapter; merge it first (`export_decoder()`).")
        self._set_adapter(adapters.with_adapter(self.decoder, adapters.plain_adapter_config(peft_config)))
        self.all_tied_weights_keys = self.tied_names()

    def _set_adapter(self, decoder: nn.Module) -> None:
        self.decoder = decoder
        # As peft has completed it: with the layers that it found.
        self.config.decoder_adapter = adapters.adapter_of(decoder)
        self._trained_by_adapter = adapters.trained_names(decoder)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self and self.predictor_tokens is not None:
            vectors = mean_token_vectors(self.get_input_embeddings(), len(self.predictor_tokens))
            init.copy_(self.predictor_tokens, vectors)
        elif module is self.predictor_head:
            init.xavier_uniform_(module.weight)

    @classmethod
    def from_decoder(
        cls,
        decoder: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str | None = None,
        **config_kwargs: Any,
    ) -> "LLMJepaForCausalLM":
        """
        Wraps a pretrained causal language model.

        Args:
            decoder (`str` or `PreTrainedModel`): a model id, a folder, or a loaded model, which is used as it is; it
                may be wrapped by peft.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): for `predictor_mode="vocab"`; gets the predictor tokens.
            dtype (`torch.dtype`), attn_implementation (`str`, *optional*): for loading.
            config_kwargs: fields of [`LLMJepaConfig`].

        Raises:
            `ValueError`: for `"vocab"` mode without a tokenizer or ids, and what [`LLMJepaConfig`] refuses.
        """
        if isinstance(decoder, str):
            options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
            decoder = load_auto(AutoModelForCausalLM, decoder, dtype=dtype, **options)
        plain = _causal_lm(decoder)
        if config_kwargs.get("predictor_mode") == "vocab":
            number = config_kwargs.get("num_predictor_tokens", LLMJepaConfig.num_predictor_tokens)
            position = config_kwargs.get("predictor_position", "end")
            config_kwargs.setdefault("original_vocab_size", plain.get_input_embeddings().weight.shape[0])
            if tokenizer is not None and "predictor_token_ids" not in config_kwargs:
                add_predictor_tokens(plain, tokenizer, number)
                config_kwargs["predictor_token_ids"] = predictor_token_ids(tokenizer, number, position)
        refuse_unknown_fields(cls.config_class, config_kwargs, {"decoder_config": plain.config})
        config = cls.config_class(decoder_config=copy.deepcopy(plain.config), **config_kwargs)
        config._attn_implementation = plain.config._attn_implementation
        with plain.device:
            return cls(config, decoder=decoder)

    from_encoder = from_decoder

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The decoder without what peft puts around it; adapters within stay."""
        return _causal_lm(self.decoder)

    @property
    def encoder(self) -> PreTrainedModel:
        """The decoder's backbone, up to its final norm."""
        # The heads of some families (OPT) read the states of a module within the base model.
        return self.causal_lm.base_model.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        return self.causal_lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.causal_lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.causal_lm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.causal_lm.set_output_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resizes the decoder's embedding and head."""
        return self.causal_lm.resize_token_embeddings(*args, **kwargs)

    def resolve_layout(self, layout: Layout = "auto") -> Layout:
        """[`~hf_jepa.masking.resolve_layout`] for this model."""
        return resolve_layout(layout, self.causal_lm.config._attn_implementation, self.config.num_predictor_tokens)

    def export_decoder(self, merge_adapter: bool = True, keep_predictor_tokens: bool = True) -> PreTrainedModel:
        """
        A copy of the decoder for plain `transformers`, in eval mode.

        Args:
            merge_adapter (`bool`): merge a peft adapter into the weights; `False` returns the peft model, whose
                `save_pretrained` writes the adapter alone.
            keep_predictor_tokens (`bool`): `False` cuts off vocabulary rows that `from_decoder` added. Ids in rows
                that a padded vocabulary already had stay. What stays is never generated.

        Raises:
            `ValueError`: for an adapter that trains rows which are to be cut off.
        """
        decoder = copy.deepcopy(self.decoder)
        if merge_adapter and decoder is not _causal_lm(decoder):
            decoder = adapters.merge_adapter(decoder)
        size, plain = self.config.original_vocab_size, _causal_lm(decoder)
        if not keep_predictor_tokens and size is not None and plain.get_input_embeddings().weight.shape[0] > size:
            if not isinstance(plain.get_input_embeddings(), nn.Embedding):
                raise ValueError(
                    "The adapter trains predictor tokens (`trainable_token_indices`) in rows that its base model "
                    "lacks; export with merge_adapter=True, or with keep_predictor_tokens=True for a resized base."
                )
            plain.resize_token_embeddings(size)
        rows = plain.get_input_embeddings().weight.shape[0]
        if stay := sorted({token for token in self.config.predictor_token_ids or () if token < rows}):
            # The rows of a tied embedding are rows of the head, too.
            plain.generation_config.suppress_tokens = stay
        return decoder.eval()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        document: torch.LongTensor,
        position_ids: torch.LongTensor,
        branch: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        label_index: torch.LongTensor | None = None,
        text_index: torch.LongTensor | None = None,
        predictor_index: torch.LongTensor | None = None,
        code_index: torch.LongTensor | None = None,
        displacement_index: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_pairs_in_batch: torch.Tensor | int | None = None,
        jepa_lambda: torch.Tensor | float | None = None,
        return_logits: bool = False,
    ) -> LLMJepaOutput:
        r"""
        The arguments up to `displacement_index` are what [`~hf_jepa.masking.pack_examples`] returns.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): ids -1 .. -k are the soft predictor vectors.
            document (the same shape): tokens see their own document only; -1: padding, -2: sees nothing.
            position_ids (the same shape): from 0 in each document.
            branch (the same shape, *optional*): tokens see branch 0 and their own. Not for FlashAttention.
            labels (the same shape, *optional*): unshifted, -100 for none and for every document's first token.
            label_index (`torch.LongTensor` of shape `(n, 2)`, *optional*): [row, column] of the states that predict a
                label. Found out when missing, for which an accelerator has to wait.
            text_index, predictor_index, code_index (`torch.LongTensor` of shape `(pairs, 2)`): [row, column] of the
                states read. No pairs is fine (JEPA dropout); no index is not, unless lambda is 0.
            displacement_index (`torch.LongTensor` of shape `(triples, 2, segments, 3)`): [row, start, end], of the
                predicting and the target displacement; for `objective="stp"`.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*): labels of the whole optimizer step, which the
                summed cross-entropy is divided by; by default this batch's.
            num_pairs_in_batch (`int` or `torch.Tensor`, *optional*): pairs (triples) of the whole optimizer step.
            jepa_lambda (`float` or `torch.Tensor`, *optional*): instead of the config's, for schedules.
            return_logits (`bool`): keep the labelled tokens' logits.

        Returns:
            [`LLMJepaOutput`].

        Raises:
            `ValueError`: for tensors of other shapes or types, lambda without pairs, a vocabulary resized without its
                head, branches under FlashAttention.
        """
        shape = input_ids.shape
        given = {"document": document, "position_ids": position_ids, "branch": branch, "labels": labels}
        for name, tensor in {"input_ids": input_ids, **given}.items():
            if tensor is not None and (tensor.shape != shape or tensor.ndim != 2 or tensor.dtype != torch.int64):
                raise ValueError(
                    f"`{name}` must be int64 of shape (rows, length) = {tuple(shape)}, got {tensor.dtype} of shape "
                    f"{tuple(tensor.shape)}."
                )
        config, length = self.config, shape[1]
        check_vocabulary(self.causal_lm, config.predictor_token_ids or ())
        indices = {"text_index": text_index, "predictor_index": predictor_index, "code_index": code_index}
        if config.objective == "stp":
            indices = {"displacement_index": displacement_index}
        missing = [name for name, index in indices.items() if index is None]
        weight = config.jepa_lambda if jepa_lambda is None else jepa_lambda
        if missing and (isinstance(weight, torch.Tensor) or weight != 0):
            raise ValueError(
                f"jepa_lambda is {weight}, but the batch has no {', '.join(missing)}; pass the indices that "
                "`pack_examples` returns (empty ones where dropout left no pairs), or jepa_lambda=0."
            )

        shift_labels, selected = None, input_ids.new_empty(0)
        if labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100).flatten()
            if label_index is None:
                label_index = (labels[:, 1:] != -100).nonzero()
            selected = _flat(label_index, length)
            shift_labels = shift_labels[selected]
        tokens = Tokens(document, branch, position_ids)
        states, output = self._run_decoder(input_ids, tokens, selected)

        loss = states.new_zeros((), dtype=torch.promote_types(states.dtype, torch.float32))
        components, embeddings = {}, {}
        if labels is not None:
            lm_loss = self._language_model_loss(output, shift_labels, num_items_in_batch)
            loss = loss + config.jepa_gamma * lm_loss
            components["lm_loss"] = lm_loss.detach()
        if not missing:
            if config.objective == "stp":
                embeddings = self._displacements(states, displacement_index, length)
            else:
                embeddings = self._embeddings(states, input_ids, tokens, **indices)
            jepa_loss, regularizer, terms = jepa_terms(
                embeddings["predicted_embeddings"],
                embeddings["target_embeddings"],
                [embeddings[name] for name in ("text_embeddings", "code_embeddings") if name in embeddings],
                config,
                self.regularizer,
                _on(num_pairs_in_batch, loss.device),
            )
            loss = loss + weight * jepa_loss
            if regularizer is not None:
                loss = loss + regularizer
            components |= terms
        return LLMJepaOutput(
            loss=loss,
            loss_components=components,
            logits=output.logits[0] if return_logits and labels is not None else None,
            shift_labels=shift_labels if return_logits else None,
            **embeddings,
        )

    def _run_decoder(
        self, input_ids: torch.Tensor, tokens: Tokens, selected: torch.Tensor
    ) -> tuple[torch.Tensor, ModelOutput]:
        """All states, `(rows * length, width)`, and the decoder's output with logits for the selected states only."""
        inputs = self._inputs(input_ids, tokens)
        states = None

        def select(module: nn.Module, args: Any, output: ModelOutput) -> ModelOutput:
            # Between backbone and head, so that each model's own head, scaling and soft-capping make the logits.
            nonlocal states
            states = output.last_hidden_state.flatten(0, 1)
            output.last_hidden_state = states[selected][None]
            return output

        hook = self.encoder.register_forward_hook(select)
        try:
            output = self.decoder(**inputs, use_cache=False, return_dict=True)
        finally:
            hook.remove()
        return states, output

    def _inputs(self, input_ids: torch.Tensor, tokens: Tokens, soft: bool = True) -> dict[str, Any]:
        check_ids(self.encoder, input_ids, tokens.position_ids)
        embedding = self.get_input_embeddings()
        backend, config = self.causal_lm.config._attn_implementation, self.causal_lm.config
        inputs = {"input_ids": input_ids.clamp(min=0), "position_ids": tokens.position_ids}
        if soft and self.predictor_tokens is not None:
            vectors = F.embedding((-1 - input_ids).clamp(min=0), self.predictor_tokens)
            # Gemma scales inside its embedding module; the vectors are kept at the scale of its rows.
            vectors = vectors * getattr(embedding, "embed_scale", 1.0)
            words = embedding(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = torch.where((input_ids < 0)[..., None], vectors.to(words.dtype), words)
        if is_varlen(backend):
            if tokens.branch is not None:
                raise ValueError(
                    f"{backend} cannot keep branches apart; pack with layout='packed' (k = 0) or 'replicated'."
                )
            # In one row, documents are told apart by positions that start again.
            return {name: tensor.flatten(0, 1)[None] for name, tensor in inputs.items()}
        return {**inputs, "attention_mask": attention_masks(*tokens, config, embedding.weight.dtype)}

    def _language_model_loss(
        self, output: ModelOutput, shift_labels: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        logits = at_least_float32(output.logits[0])
        count = (shift_labels != -100).sum()
        items = count.clamp(min=1) if num_items is None else _on(num_items, logits.device)
        loss = F.cross_entropy(logits, shift_labels, reduction="sum") / items
        if getattr(output, "aux_loss", None) is not None:
            # Routers of mixtures of experts, with this batch's share of the labels.
            loss = loss + self.causal_lm.config.router_aux_loss_coef * output.aux_loss * (count / items)
        return loss

    def _embeddings(
        self,
        states: torch.Tensor,
        input_ids: torch.Tensor,
        tokens: Tokens,
        text_index: torch.Tensor,
        predictor_index: torch.Tensor,
        code_index: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        config = self.config

        def read(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            if config.pooling == "last":
                return states[_flat(index, input_ids.shape[1])]
            weights = visible_from(index, tokens).float()
            return (weights / weights.sum(dim=1, keepdim=True)).to(states.dtype) @ states

        found = {"text": read(states, text_index), "code": read(states, code_index)}
        predicted = read(states, predictor_index)
        to_code = config.direction == "text2code"
        target = found["code" if to_code else "text"]
        if config.target == "ema":
            with torch.no_grad():
                inputs = self._inputs(input_ids, tokens, soft=False)
                output = self.target_encoder(**inputs, use_cache=False, return_dict=True)
                target = read(output.last_hidden_state.flatten(0, 1), code_index if to_code else text_index)
        return {
            "text_embeddings": found["text"],
            "predicted_embeddings": self._predict(predicted),
            "code_embeddings": found["code"],
            "target_embeddings": target if config.target == "shared" else target.detach(),
        }

    def _predict(self, states: torch.Tensor) -> torch.Tensor:
        head = self.predictor_head
        # The head is in float32 also where the decoder was loaded in half precision.
        return states if head is None else head(states.to(head.weight.dtype))

    def _displacements(self, states: torch.Tensor, index: torch.Tensor, length: int) -> dict[str, torch.Tensor]:
        row, start, end = index.unbind(-1)
        # Differences of half-precision states lose what they are about.
        states = at_least_float32(states)
        displacements = (states[row * length + end] - states[row * length + start]).sum(dim=2)
        predicted, target = displacements.unbind(1)
        return {
            "predicted_embeddings": self._predict(predicted),
            "target_embeddings": target if self.config.target == "shared" else target.detach(),
        }

    @torch.no_grad()
    def energy(self, **batch: Any) -> torch.FloatTensor:
        """
        How far each pair's prediction lies from its target, by the config's distance (cosine for InfoNCE).

        Args:
            batch: as in [`forward`]; labels are not needed.

        Returns:
            `torch.FloatTensor` of shape `(pairs,)`.
        """
        output = self(**{**batch, "labels": None})
        distance = "cosine" if self.config.distance == "infonce" else self.config.distance
        return pair_distances(output.predicted_embeddings, output.target_embeddings, distance)

    @torch.no_grad()
    def get_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None, which: str = "context"
    ) -> torch.FloatTensor:
        """
        Enc of whole texts: the state at each text's last token.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`).
            attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 for padding, on either side.
            which (`str`): `"context"`, the decoder, or `"target"`, its moving average where there is one.

        Returns:
            `torch.FloatTensor` of shape `(batch, width)`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        encoder = self._encoder(which)
        states = encoder(input_ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
        return states[torch.arange(len(states), device=last.device), last]


def _flat(index: torch.Tensor, length: int) -> torch.Tensor:
    return index[:, 0] * length + index[:, 1]


def _on(number: torch.Tensor | int | None, device: torch.device) -> torch.Tensor | int | None:
    return number.to(device) if isinstance(number, torch.Tensor) else number


def _causal_lm(decoder: nn.Module) -> PreTrainedModel:
    return decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
