"""The trainer of LLM-JEPA: any causal language model, fine-tuned or trained from scratch on pairs of Text and Code."""

import math
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..data import PairFormat, TextPairCollator, TextPairDataset
from ..data.pair_collator import OfficialPairCollator
from .callbacks import GuardCallback, SamplerEpochCallback, StepSeedCallback, TargetEMACallback
from .draws import DrawSeededDataset
from .llm_arguments import LLMJepaTrainingArguments, as_llm_jepa_arguments
from .llm_evaluation import evaluation_answers, evaluation_losses, pair_index
from .pair_metrics import PairMetrics
from .publishing import push_folder
from .safe_checkpoint_trainer import SafeCheckpointTrainer

logger = logging.get_logger(__name__)


class LLMJepaTrainer(SafeCheckpointTrainer):
    r"""
    [`~transformers.Trainer`] for [`~hf_jepa.LLMJepaForCausalLM`]. In the `clean` regime an optimizer step has the loss
    and gradient of its whole batch, `gamma * sum(cross-entropy) / labels + lambda * sum(distance) / pairs`, whatever
    its split over processes and accumulation (InfoNCE and regularizers, which compare pairs with each other, see one
    micro-batch at a time). Order, JEPA dropout and semantic tubes depend on the seed and the draw alone.

    Logged besides `loss`, `grad_norm` and `learning_rate`: `lm_loss`, `jepa_loss`, `tokens_per_second` and, of recent
    pairs, `cos_paired`, `cos_unpaired`, `margin`, `retrieval_at_1`, `rankme_text`, `rankme_code` and
    `displacement_rank` ([`~hf_jepa.evaluation.pair_report`]): a small JEPA loss with no margin is a collapsed pairing.

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

    # Losses are divided by the counts of the whole step, or (official) added up over accumulation as released.
    loss_is_scaled_for_ga = True

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
        callbacks: list[TrainerCallback | type[TrainerCallback]] | None = None,
        **kwargs: Any,
    ) -> None:
        args = as_llm_jepa_arguments(args)
        if processing_class is None:
            raise ValueError("LLMJepaTrainer needs the tokenizer as `processing_class`.")
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process, which would use DataParallel; start the program with "
                "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
            )
        if peft_config is not None:
            _add_adapters(model, peft_config)
        if args.regime == "clean":
            _check_full_precision(model)
        _align_special_tokens(model, processing_class)
        config = model.config
        if config.jepa_lambda == 0:
            _freeze_unused(model)
        self.pair_format = pair_format or PairFormat()
        self.metrics = PairMetrics(args.pair_metrics_rows)
        self._num_pairs: torch.Tensor | int | None = None
        self._steps_logged = 0
        self.guard = PairingGuardCallback(self._describe_step)
        own = [StepSeedCallback(), SamplerEpochCallback(lambda: self.train_sampler), self.guard]
        if config.target == "ema":
            own.insert(0, TargetEMACallback())
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
            callbacks=[*own, *(callbacks or [])],
            **kwargs,
        )
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO-3 gathers parameters module by module, which reading the decoder's states "
                "between backbone and head does not survive; use ZeRO-2, or FSDP2."
            )
        if self.is_fsdp_enabled and args.generate_examples:
            raise ValueError(
                "Under FSDP no process holds the whole model, and answers of different lengths would wait for each "
                "other; set generate_examples=0, and score a checkpoint with `hf-jepa evaluate --task exact-match`."
            )

    # ---- Data ----

    def _encoded(self, rows: Any, tokenizer: Any) -> Any:
        if rows is None or self.reads_rows or isinstance(rows, TextPairDataset):
            return rows
        return TextPairDataset(rows, tokenizer, self.pair_format)

    def get_train_dataloader(self) -> DataLoader:
        """
        The training loader: pairs are drawn in one global order, of which each process takes its share.

        Raises:
            ValueError: without a training dataset, or for one smaller than an optimizer step.
        """
        if self.train_dataset is None:
            raise ValueError("Training needs a `train_dataset`; give one to LLMJepaTrainer.")
        dataset = self.train_dataset
        if not isinstance(dataset, TextPairDataset):
            dataset = DrawSeededDataset(dataset, self._data_seed)
        return self._get_dataloader(
            dataset=dataset,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _describe_step(self, step: int) -> dict[str, Any]:
        first = step * self.global_batch_size
        return {"draws": [first, first + self.global_batch_size]}

    def _run_description(self) -> dict[str, Any]:
        args = self.args
        described = {"regime": args.regime, "jepa_dropout": args.jepa_dropout, "warmup": args.lambda_warmup_steps}
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Logs, adding to a training log what the steps since the last one have gathered.

        Args:
            logs (`dict[str, float]`): the values to log.
            start_time (`float`, *optional*): start of training.
        """
        if "loss" in logs:
            steps, self._steps_logged = self.state.global_step - self._steps_logged, self.state.global_step
            logs.update(self.metrics.drain(self.accelerator, steps, self.args.regime == "clean"))
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Losses and pair diagnostics over a dataset and, with `generate_examples`, answers by generation.

        Args:
            eval_dataset (*optional*): defaults to the trainer's.
            ignore_keys (`list[str]`, *optional*): unused.
            metric_key_prefix (`str`): prefix of the metrics' names.

        Returns:
            `dict[str, float]`: `eval_lm_loss` (per labelled token), `eval_jepa_loss` (per pair), `eval_loss`
            (weighted), what [`~hf_jepa.evaluation.pair_report`] says of the first 1024 pairs and, if asked for,
            `eval_exact_match` and `eval_startswith` (shares in [0, 1]).

        Raises:
            ValueError: without a dataset.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Evaluation needs an `eval_dataset`; give one to LLMJepaTrainer.")
        if isinstance(dataset, dict):
            results = [self.evaluate(part, None, f"{metric_key_prefix}_{name}") for name, part in dataset.items()]
            return {name: value for result in results for name, value in result.items()}
        dataset = self._encoded(dataset, self.processing_class)
        was_training = self.model.training
        self.model.eval()
        try:
            found = evaluation_losses(self, dataset)
            if self.args.generate_examples:
                found |= evaluation_answers(self, dataset)
        finally:
            self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- Guards ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """
        Trains.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint, or `True` for the newest complete one
                in `output_dir`.
            kwargs: as for `Trainer.train`.

        Raises:
            ValueError: if the checkpoint is incomplete, does not fit the model, or is of a run with other settings.
            NonFiniteLossError: if the loss becomes NaN or infinite.
        """
        self.metrics = PairMetrics(self.args.pair_metrics_rows)
        self._steps_logged = 0
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self._raise_if_non_finite()
        return output

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._raise_if_non_finite()
        super()._save_checkpoint(model, trial)

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
        Writes what is worth publishing to `output_dir/release`: a causal LM (or adapter) that plain transformers (and
        peft) loads, its tokenizer, results and card.

        Args:
            results (`dict`, *optional*): the content of `results.json`; defaults to what this trainer has measured.
            recipe (`dict`, *optional*): the resolved recipe.
            pictures (`list[Path]`, *optional*): files shown in the card.
            merge_adapter (`bool`): a whole model where the decoder has an adapter.
            keep_predictor_tokens (`bool`): keep the predictor tokens of the vocabulary, if they are there.

        Returns:
            `Path`: the folder.

        Raises:
            ValueError: under FSDP, whose processes hold pieces of the weights.
        """
        from ..hub.text_release import measured_text_results, save_text_release

        if self.is_fsdp_enabled:
            raise ValueError("Under FSDP no process holds the whole model; load the last checkpoint in one process.")
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        folder = Path(self.args.output_dir) / "release"
        results = measured_text_results(self) if results is None else results
        return save_text_release(
            model,
            folder,
            self.processing_class,
            results,
            recipe,
            pictures or [],
            merge_adapter,
            keep_predictor_tokens,
        )

    def push_to_hub(
        self, commit_message: str | None = "End of training", *, license: str | None = None, **options: Any
    ) -> str | None:
        """
        Publishes [`~LLMJepaTrainer.write_release`]'s folder.

        Args:
            commit_message (`str`, *optional*): of the commit.
            license (`str`, *optional*): of the weights, as the Hub spells it; without it the card says "unknown".
            options: `token`, `revision` and `private`; each defaults to the trainer's argument.

        Returns:
            `str`: the address of the commit, on the main process.

        Raises:
            PushError: if the upload failed; it names the command that finishes it.
        """
        from ..hub.text_release import measured_text_results

        if not self.is_world_process_zero():
            return None
        results = measured_text_results(self) | ({"licence": license} if license else {})
        folder = self.write_release(results)
        # The stock trainer calls with `blocking`, too; an upload that fails has to be seen, so it always is.
        known = {name: value for name, value in options.items() if name != "blocking"}
        return push_folder(self, folder, commit_message or "End of training", **known)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_strategy == "end" or not self.is_world_process_zero():
            return
        try:
            self.push_to_hub(f"Training in progress, step {self.state.global_step}")
        except RuntimeError as error:
            # A failed upload must not end a run.
            logger.error(str(error))


class PairingGuardCallback(GuardCallback):
    """Stops at a NaN or infinite loss; warns once when paired and unpaired cosines have become alike."""

    def _check_collapse(
        self, args: LLMJepaTrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float]
    ) -> None:
        if "margin" not in logs or not args.collapse_margin:
            return
        self.hits = self.hits + 1 if logs["margin"] < args.collapse_margin else 0
        if self.hits == 10 and math.isfinite(logs["margin"]):
            logger.warning(
                f"At step {state.global_step} the paired cosine is {logs['cos_paired']:.3f} and the unpaired "
                f"{logs['cos_unpaired']:.3f}: every Text predicts every Code alike, whatever the JEPA loss says. "
                'Usual cures: `target="stop_gradient"` or `"ema"`, `regularizer="sigreg"` or `"vicreg"`, '
                '`distance="infonce"`, a lower `jepa_lambda`.'
            )


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
    from peft import get_peft_model

    if model.config.target == "ema":
        raise ValueError(
            "An EMA target copies the decoder before adapters are put into it, so it could not follow them; use "
            'target="stop_gradient" or "shared" with `peft_config`.'
        )
    model.decoder = get_peft_model(model.decoder, peft_config)
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


def _freeze_unused(model: PreTrainedModel) -> None:
    # DDP waits for gradients that lambda = 0 never gives.
    for name, parameter in model.named_parameters():
        if name.startswith("predictor_"):
            parameter.requires_grad_(False)


def _check_full_precision(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"`{name}` is trained in {parameter.dtype}, where most updates at the usual learning rates are "
                "rounded away. Load the model with `dtype=torch.float32` and pass `bf16=True`, or set "
                '`regime="official"`, which trains in bfloat16 as the released code does.'
            )
