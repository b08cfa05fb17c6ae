"""The trainer of LLM-JEPA: any causal language model, fine-tuned or trained from scratch on pairs of Text and Code."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ...data import PairFormat, TextPairCollator, TextPairDataset
from ...data.chat_views import as_messages
from ...data.pair_collator import OfficialPairCollator
from ...hub.text_release import save_text_release
from ..base_trainer import BaseTrainer
from ..callbacks import GuardCallback
from ..refusals import refuse_half_precision, refuse_several_splits
from .arguments import LLMJepaTrainingArguments
from .evaluation import evaluation_answers, evaluation_losses, pair_index
from .metrics import PairMetrics

logger = logging.get_logger(__name__)

# A pairing that has not begun to form after so many updates is worth a word.
_COLLAPSED_UPDATES = 100


class LLMJepaTrainer(BaseTrainer):
    r"""
    [`~transformers.Trainer`] for [`~hf_jepa.LLMJepaForCausalLM`]. In the `clean` regime an optimizer step has the loss
    and gradient of its whole batch, `gamma * sum(cross-entropy) / labels + lambda * sum(distance) / pairs`, whatever
    its split over processes and accumulation (InfoNCE and regularizers, which compare pairs with each other, see one
    micro-batch at a time). Order, JEPA dropout and semantic tubes depend on the seed and the draw alone.

    Logged besides `loss`, `grad_norm` and `learning_rate`: `lm_loss`, `jepa_loss`, `tokens_per_second` and, of recent
    pairs, `cos_paired`, `cos_unpaired`, `margin`, `retrieval_at_1`, `rankme_text`, `rankme_code` and
    `displacement_rank` ([`~hf_jepa.evaluation.pair_report`]): a small JEPA loss with no margin is a collapsed pairing.
    Evaluation gives `eval_lm_loss` (per labelled token), `eval_jepa_loss` (per pair), `eval_loss` (weighted), the pair
    report of the first 1024 pairs and, with `generate_examples`, of generated answers `eval_exact_match` and
    `eval_startswith` (shares in [0, 1]).

    Args:
        model ([`~hf_jepa.LLMJepaForCausalLM`]): in float32 for the `clean` regime (with `bf16=True` for speed).
        args ([`LLMJepaTrainingArguments`]): an ordinary `TrainingArguments` works too.
        train_dataset (`Sequence[dict]`, `datasets.Dataset` or [`~hf_jepa.data.TextPairDataset`]): chats (`messages`)
            or two columns.
        eval_dataset (the same, or a dict of them, *optional*): for losses, pair diagnostics and generation.
        processing_class (`PreTrainedTokenizerBase`): the tokenizer.
        pair_format ([`~hf_jepa.data.PairFormat`], *optional*): how rows become tokens, labels and views.
        data_collator (*optional*): by default a [`~hf_jepa.data.TextPairCollator`] for the model's configuration; an
            [`~hf_jepa.data.OfficialPairCollator`] gives the released code's rows.
        peft_config (`peft.PeftConfig`, *optional*): puts adapters (LoRA, DoRA) into the decoder and freezes the rest
            of it; predictor vectors and heads stay trainable.
        kwargs: everything else that `Trainer` takes (`callbacks`, `optimizers`, ...).

    Raises:
        ValueError: for weights below float32 in the `clean` regime, a missing tokenizer, `DataParallel`, adapters with
            an EMA target, ZeRO-3, or answers by generation under FSDP.
    """

    throughput = "tokens_per_second"
    # Losses are divided by the counts of the whole step, or (official) added up over accumulation as released.
    loss_is_scaled_for_ga = True
    seeded_datasets = (TextPairDataset,)

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        pair_format: PairFormat | None = None,
        data_collator: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = LLMJepaTrainingArguments.from_plain(args)
        refuse_several_splits(train_dataset)
        if processing_class is None:
            raise ValueError("LLMJepaTrainer needs the tokenizer as `processing_class`.")
        if peft_config is not None:
            _add_adapters(model, peft_config)
        if args.regime == "clean":
            refuse_half_precision(
                model, ', or set `regime="official"`, which trains in bfloat16 as the released code does'
            )
        _align_special_tokens(model, processing_class)
        model.apply_requires_grad()
        self.pair_format = pair_format or PairFormat()
        self._num_pairs: torch.Tensor | int | None = None
        self.guard = PairingGuardCallback(self._describe_step)
        if data_collator is None:
            data_collator = collator_for(model, args, processing_class)
        self.reads_rows = isinstance(data_collator, OfficialPairCollator)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._encoded(rows, processing_class) for name, rows in eval_dataset.items()}
        else:
            eval_dataset = self._encoded(eval_dataset, processing_class)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=self._encoded(train_dataset, processing_class),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.is_fsdp_enabled and args.generate_examples:
            raise ValueError(
                "Under FSDP no process holds the whole model, and answers of different lengths would wait for each "
                "other; set generate_examples=0, and score a checkpoint with `hf-jepa evaluate --task exact-match`."
            )

    def _new_metrics(self, args: LLMJepaTrainingArguments) -> PairMetrics:
        return PairMetrics()

    # ---- Data ----

    def _encoded(self, rows: Any, tokenizer: Any) -> Any:
        if rows is None or self.reads_rows or isinstance(rows, TextPairDataset):
            return rows
        return TextPairDataset(rows, tokenizer, self.pair_format)

    def _run_description(self) -> dict[str, Any]:
        args = self.args
        described = {"regime": args.regime, "jepa_dropout": args.jepa_dropout, "warmup": args.lambda_warmup_steps}
        if args.regime == "official":
            # Means over micro-batches, added up.
            described["gradient_accumulation_steps"] = args.gradient_accumulation_steps
        return {**super()._run_description(), **described}

    # ---- Loss ----

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        if self.args.regime == "official" or not batch_samples:
            self._num_pairs = None
            return None
        # Sizes, which the host knows: nothing waits for the device.
        items = sum(len(batch["label_index"]) for batch in batch_samples)
        pairs = sum(len(pair_index(batch)) for batch in batch_samples)
        if self.args.world_size == 1:
            self._num_pairs = max(pairs, 1)
            return max(items, 1)
        counts = torch.tensor([[items, pairs]], device=device)
        totals = self.accelerator.gather(counts).sum(dim=0).clamp_min(1)
        self._num_pairs = totals[1]
        return totals[0]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        The model's loss, as this process's share of the step's; its terms are noted without waiting for the device.

        Args:
            model (`nn.Module`): the (wrapped) model.
            inputs (`dict`): a batch of the collator.
            return_outputs (`bool`): return the model's output too.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*): labels of the whole step.
        """
        options = {"num_items_in_batch": num_items_in_batch, "num_pairs_in_batch": self._num_pairs}
        warmup = self.args.lambda_warmup_steps
        if warmup and self.state.global_step < warmup:
            options["jepa_lambda"] = self.model.config.jepa_lambda * (self.state.global_step + 1) / (warmup + 1)
        outputs = model(**inputs, **options)
        if self.model.training:
            self.metrics.update(outputs, inputs["document"], self.state.global_step)
        # DDP averages gradients; shares have to be added.
        loss = outputs.loss * (self.args.world_size if self.args.regime == "clean" else 1)
        return (loss, outputs) if return_outputs else loss

    # ---- Logs and evaluation ----

    def _gathered(self) -> dict[str, float]:
        return self.metrics.drain(self.accelerator, self.args.regime == "clean")

    def _score(self, dataset: Any) -> dict[str, float]:
        dataset = self._encoded(dataset, self.processing_class)
        found = evaluation_losses(self, dataset)
        return found | evaluation_answers(self, dataset) if self.args.generate_examples else found

    # ---- Publishing ----

    def write_release(
        self,
        results: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        pictures: list[Path] | None = None,
        merge_adapter: bool = False,
        keep_predictor_tokens: bool = False,
    ) -> Path:
        """
        As [`~hf_jepa.training.base_trainer.BaseTrainer.write_release`]: a causal LM (or adapter) that plain
        transformers (and peft) loads, its tokenizer, results and card.

        Args:
            results (`dict`, *optional*), recipe (`dict`, *optional*), pictures (`list[Path]`, *optional*): as there.
            merge_adapter (`bool`): a whole model where the decoder has an adapter.
            keep_predictor_tokens (`bool`): keep the predictor tokens of the vocabulary, if they are there.
        """
        options = {"merge_adapter": merge_adapter, "keep_predictor_tokens": keep_predictor_tokens}
        return super().write_release(results, recipe, pictures, **options)

    def _save_release(self, model: PreTrainedModel, folder: Path, *content: Any, **options: bool) -> None:
        save_text_release(model, folder, self.processing_class, *content, **options)

    def measured_results(self) -> dict[str, Any]:
        """As [`~hf_jepa.training.base_trainer.BaseTrainer.measured_results`], with a question of the data itself."""
        results, fmt = super().measured_results(), self.pair_format
        rows = getattr(self.train_dataset, "rows", self.train_dataset)
        if hasattr(rows, "__getitem__") and len(rows):
            columns = (fmt.messages_column, fmt.text_column, fmt.code_column, fmt.system_prompt)
            results["model"]["example"] = as_messages(rows[0], *columns)[:-1]
        return results

    def _reported(self, rows: Any) -> list[dict[str, Any]]:
        labelled = "answer token" if self.pair_format.train_on == "response" else "token"
        asked, count = self.args.generate_examples, len(rows) if hasattr(rows, "__len__") else None
        answered = count if asked < 0 or count is None else min(asked, count)
        return [
            {"name": "exact_match", "task": "generation", "metric": "exact match", "num_examples": answered},
            {"name": "startswith", "task": "generation", "metric": "startswith", "num_examples": answered},
            {"name": "lm_loss", "task": "language modelling", "metric": f"loss per {labelled}"},
        ]


class PairingGuardCallback(GuardCallback):
    """
    Stops at a NaN or infinite loss; warns once when paired and unpaired cosines have been alike for 100 updates, or
    are so at the end of the run.
    """

    advice = (
        'Usual cures: `target="stop_gradient"` or `"ema"`, `regularizer="sigreg"` or `"vicreg"`, '
        '`distance="infonce"`, a lower `jepa_lambda`.'
    )

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last_step, self._has_warned = state.global_step, False

    def _check_collapse(
        self, args: LLMJepaTrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float]
    ) -> None:
        updates, self._last_step = state.global_step - self._last_step, state.global_step
        if "margin" not in logs or not args.collapse_margin:
            return
        if not logs["margin"] < args.collapse_margin:
            self.hits, self.finding = 0, None
            return
        self.hits += updates
        self.finding = (
            f"At step {state.global_step} the paired cosine is {logs['cos_paired']:.3f} and the unpaired "
            f"{logs['cos_unpaired']:.3f}: every Text predicts every Code alike, whatever the JEPA loss says."
        )
        if self.hits >= _COLLAPSED_UPDATES:
            self._warn()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.finding is not None:
            self._warn()

    def _warn(self) -> None:
        if not self._has_warned:
            logger.warning(f"{self.finding} {self.advice}")
        self._has_warned = True


def collator_for(model: PreTrainedModel, args: LLMJepaTrainingArguments, tokenizer: Any) -> TextPairCollator:
    """
    The collator that a model's configuration and the arguments ask for.

    Args:
        model ([`~hf_jepa.LLMJepaForCausalLM`]): names predictors, direction, layout and objective.
        args ([`LLMJepaTrainingArguments`]): names dropout and packing.
        tokenizer (`PreTrainedTokenizerBase`): names the token that fills rows up.

    Returns:
        [`~hf_jepa.data.TextPairCollator`].
    """
    config = model.config
    objective = "tube" if config.objective == "stp" else "pairs"
    if config.jepa_lambda == 0:
        objective = "none"
    has_predictors = objective == "pairs"
    return TextPairCollator(
        config.num_predictor_tokens if has_predictors else 0,
        model.resolve_layout() if has_predictors else "packed",
        objective,
        jepa_dropout=args.jepa_dropout,
        seed=args.seed if args.data_seed is None else args.data_seed,
        tube_variant=args.tube_variant,
        tube_times=args.tube_times,
        predictor_token_ids=config.predictor_token_ids if has_predictors else None,
        predictor_position=config.predictor_position,
        direction=config.direction,
        row_length=args.max_row_tokens,
        pad_to_multiple_of=args.pad_to_multiple_of,
        pad_token_id=tokenizer.pad_token_id or 0,
    )


def _add_adapters(model: PreTrainedModel, peft_config: Any) -> None:
    model.add_decoder_adapter(peft_config)
    ids = sorted(set(model.config.predictor_token_ids or ()))
    embedding = model.get_input_embeddings()
    if ids and not any(parameter.requires_grad for parameter in embedding.parameters()):
        logger.warning(
            f"The predictor tokens' embeddings are not trained by these adapters, as in the released code; give "
            f"`LoraConfig(trainable_token_indices={ids})`, or use predictor_mode='soft', whose vectors always are."
        )


def _align_special_tokens(model: PreTrainedModel, tokenizer: Any) -> None:
    # The stock trainer does so for the wrapper, but only once training starts, when a resumed run has been compared.
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is not None:
            setattr(model.config, name, getattr(tokenizer, name))
    # The published model has to stop at the token that ended its turns in training.
    generation = model.causal_lm.generation_config
    known = generation.eos_token_id
    known = [] if known is None else known if isinstance(known, list) else [known]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in known:
        generation.eos_token_id = [*known, tokenizer.eos_token_id]
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
