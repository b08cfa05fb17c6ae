"""The trainer of VL-JEPA: images and videos, queries and texts, and negatives from everywhere."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ...data import MixedVideoDataset, VisionTextCollator, VisionTextDataset
from ...evaluation.embedding_retrieval import retrieval_report
from ...hub.vl_release import save_vl_release
from ...objectives.distributed import gather_batch
from ..base_trainer import BaseTrainer
from ..callbacks import GuardCallback
from ..refusals import refuse_half_precision
from .arguments import VLJepaTrainingArguments
from .gradient_cache import gradient_cached_step
from .metrics import RetrievalMetrics

logger = logging.get_logger(__name__)


class VLJepaTrainer(BaseTrainer):
    r"""
    [`~transformers.Trainer`] for [`~hf_jepa.VLJepaModel`]: a learning rate of its own for the Y-encoder, negatives
    from all processes with their gradient, gradient caching for batches that do not fit, and checkpoints that are
    restored whole or refused. Order, choices and augmentations depend on the seed and the draw alone.

    Logged besides `loss`, `grad_norm` and `learning_rate`: `prediction_loss`, the regularizer by name, `temperature`,
    `duplicates` (examples of a batch, over all processes, whose target occurs more than once), `effective_negatives`
    (pairs in an average denominator), `pairs_per_second` and, of recent pairs, `retrieval_at_1`,
    `reverse_retrieval_at_1`, `pred_std`, `target_std`, `pred_rankme` and `target_rankme`.
    Evaluation gives `eval_loss`, the prediction loss over the whole dataset as one batch, and what
    [`~hf_jepa.evaluation.retrieval_report`] says; every process embeds a share. Select checkpoints by
    `eval_retrieval_at_1`: the loss may fall while retrieval declines.

    Args:
        model ([`~hf_jepa.VLJepaModel`]): what trains of it in float32 (with `bf16=True` for speed).
        args ([`VLJepaTrainingArguments`]): an ordinary `TrainingArguments` works too.
        train_dataset ([`~hf_jepa.data.VisionTextDataset`], or its rows, a [`~hf_jepa.data.MixedVideoDataset`] of such,
            or any dataset for a collator of yours).
        eval_dataset (the same, or a dict of them, *optional*): for losses and retrieval.
        processing_class ([`~hf_jepa.VLJepaProcessor`], *optional*): needed without a collator; saved with checkpoints.
        data_collator (`Callable`, *optional*): by default a [`~hf_jepa.data.VisionTextCollator`].
        peft_config (`peft.LoraConfig`, *optional*): train an adapter in place of the predictor's own weights.
        kwargs: everything else that `Trainer` takes (`callbacks`, `optimizers`, ...).

    Raises:
        ValueError: for weights below float32 that train, neither processor nor collator, `DataParallel`, ZeRO-3, or
            FSDP.
    """

    throughput = "pairs_per_second"
    # The loss is a mean over the micro-batch: the Trainer has to divide it by the accumulation steps.
    loss_is_scaled_for_ga = False
    seeded_datasets = (VisionTextDataset, MixedVideoDataset)

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = VLJepaTrainingArguments.from_plain(args)
        if processing_class is None and data_collator is None:
            raise ValueError("VLJepaTrainer needs a VLJepaProcessor as `processing_class`, or a `data_collator`.")
        if peft_config is not None:
            model.add_predictor_adapter(peft_config)
        refuse_half_precision(model)
        if processing_class is not None:
            # The stock trainer does so, but only once training starts, when a resumed run has been compared.
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if getattr(processing_class.tokenizer, name) is not None:
                    setattr(model.config, name, getattr(processing_class.tokenizer, name))
        self._wraps_rows = data_collator is None
        self.guard = EmbeddingGuardCallback(self._describe_step)
        super().__init__(
            model=model,
            args=args,
            data_collator=VisionTextCollator(processing_class) if data_collator is None else data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.is_fsdp_enabled:
            raise ValueError(
                "FSDP cuts no single numbers, as the temperature is, and lets processes wait for each other where one "
                "has images and another clips. Use DDP or DeepSpeed ZeRO-2 (`--accelerate_config ddp` or `zero2`); "
                "frozen parts need no more memory than their weights."
            )
        self.train_dataset = self._as_dataset(train_dataset)

    def _new_metrics(self, args: VLJepaTrainingArguments) -> RetrievalMetrics:
        return RetrievalMetrics()

    # ---- Data ----

    def _as_dataset(self, rows: Any) -> Any:
        if rows is None or isinstance(rows, Dataset) or not self._wraps_rows:
            return rows
        return VisionTextDataset(rows, num_frames=self.processing_class.num_frames, seed=self._data_seed)

    def _run_description(self) -> dict[str, Any]:
        names = ("y_encoder_lr_multiplier", "y_projection_lr_multiplier")
        return {**super()._run_description(), **{name: getattr(self.args, name) for name in names}}

    # ---- Optimization ----

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """
        Builds the optimizer over groups of their own learning rates: Y-encoder (with its dense heads), the map behind
        it, and the rest; each with and without weight decay. Biases, norms and the temperature do not decay.
        """
        if self.optimizer is None:
            model = self.model if model is None else model
            if self.optimizer_cls_and_kwargs is not None:
                optimizer_class, options = self.optimizer_cls_and_kwargs
            else:
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            decaying = set(self.get_decay_parameter_names(model))
            self.optimizer = optimizer_class(parameter_groups(model, self.args, decaying), **options)
        return self.optimizer

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """
        A forward and backward pass over a micro-batch; with `gradient_cache_micro_batch` part by part.

        Args:
            model (`nn.Module`): the (wrapped) model.
            inputs (`dict`): a batch of the collator.
            num_items_in_batch: unused; the loss is a mean over the micro-batch.

        Returns:
            `torch.Tensor` of shape `()`: the loss, over the accumulation steps.
        """
        if self.args.gradient_cache_micro_batch is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        scale = 1 / self.current_gradient_accumulation_steps
        outputs = gradient_cached_step(
            self.model,
            model,
            self._prepare_inputs(inputs),
            self.args.gradient_cache_micro_batch,
            self.accelerator.backward,
            scale,
            lambda: self.accelerator.no_sync(model),
            self.accelerator.autocast,
        )
        self.metrics.update(outputs, self.state.global_step)
        return outputs.loss * scale

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        The model's own loss; terms, counts and embeddings are noted without waiting for the device.

        Args:
            model (`nn.Module`): the (wrapped) model.
            inputs (`dict`): a batch of the collator.
            return_outputs (`bool`): return the model's output too.
            num_items_in_batch: unused; the loss is a mean over the micro-batch.
        """
        outputs = model(**inputs)
        if self.model.training:
            self.metrics.update(outputs, self.state.global_step)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    # ---- Logs and evaluation ----

    def _gathered(self) -> dict[str, float]:
        return self.metrics.drain(self.accelerator)

    def _score(self, dataset: Any) -> dict[str, float]:
        dataset = self._as_dataset(dataset)
        if len(dataset) < max(2, self.args.world_size):
            raise ValueError(f"Evaluation needs 2 rows and one per process, got {len(dataset)}.")
        own = self._embed(dataset)
        # InfoNCE gathers by itself.
        terms = self.model.compute_loss(*own[:2], target_hash=own[2])[1]
        predicted, target, hashes = (gather_batch(part) for part in own)
        share = terms["prediction_loss"] * len(own[0]) / len(predicted)
        return {"loss": self.accelerator.gather(share[None]).sum().item()} | retrieval_report(
            predicted, target, hashes
        )

    def _embed(self, dataset: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predicted and target embeddings, and target numbers, of this process's share of the rows."""
        args, parts = self.args, []
        share = range(args.process_index, len(dataset), args.world_size)
        loader = DataLoader(
            Subset(dataset, share),
            args.per_device_eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            # Of its own: it would otherwise draw a seed from the global one, and change training.
            generator=torch.Generator().manual_seed(0),
        )
        for inputs in loader:
            with self.accelerator.autocast():
                output = self.model(**self._prepare_inputs(inputs), return_loss=False)
            parts.append((output.pred_embeds.float(), output.target_embeds.float(), output.target_hash))
        predicted, target, hashes = zip(*parts, strict=True)
        # Without tokens every row's target counts as one of its own.
        hashes = torch.cat(hashes) if hashes[0] is not None else torch.tensor(share, device=args.device)
        return torch.cat(predicted), torch.cat(target), hashes

    # ---- Guards ----

    def _prepare_run(self, resume_from_checkpoint: str | bool | None) -> None:
        if self.model.config.loss == "infonce" and self._train_batch_size * self.args.world_size < 2:
            raise ValueError(
                "InfoNCE needs negatives, but all processes together see one pair at a time; raise "
                "`per_device_train_batch_size` (gradient accumulation adds no negatives), or take another `loss`."
            )

    # ---- Publishing ----

    def _save_release(self, model: PreTrainedModel, folder: Path, *content: Any) -> None:
        if self.processing_class is None:
            raise ValueError("A release needs the processor; give it to VLJepaTrainer as `processing_class`.")
        save_vl_release(model, folder, self.processing_class, *content)

    def _reported(self, rows: Any) -> list[dict[str, Any]]:
        directions = {"retrieval": "texts by prediction", "reverse_retrieval": "predictions by text"}
        return [
            {"name": f"{name}_at_{k}", "task": f"retrieval of {of}", "metric": f"recall@{k}"}
            for name, of in directions.items()
            for k in (1, 5, 10)
        ]

    def _training_facts(self) -> dict[str, Any]:
        return {"pairs_per_loss": self.args.per_device_train_batch_size * self.args.world_size}


class EmbeddingGuardCallback(GuardCallback):
    """Stops at a NaN or infinite loss; warns of, or stops at, predictions or targets that have become alike."""

    advice = (
        'Usual cures: `loss="infonce"` with more pairs per forward pass, a `regularizer`, `target="frozen"` with '
        'y_projection="none", a lower `y_encoder_lr_multiplier`.'
    )

    def _limits(self, args: VLJepaTrainingArguments) -> dict[str, float]:
        limits = {"std": args.collapse_std_threshold, "rankme": args.collapse_rank_threshold}
        return {f"{side}_{name}": limit for side in ("pred", "target") for name, limit in limits.items()}


def parameter_groups(
    model: torch.nn.Module, args: VLJepaTrainingArguments, decaying: set[str]
) -> list[dict[str, Any]]:
    """
    Parameters by learning rate and weight decay.

    Args:
        model ([`~hf_jepa.VLJepaModel`]).
        args ([`VLJepaTrainingArguments`]): names learning rate, multipliers and weight decay.
        decaying (`set[str]`): names of parameters that decay, if they are matrices.

    Returns:
        `list[dict]`: groups for a torch optimizer; the rest comes first, whose learning rate is logged, and those that
        would be empty are left out.
    """
    multipliers = {"": 1.0, "y_encoder.": args.y_encoder_lr_multiplier}
    multipliers["y_encoder.projection."] = args.y_projection_lr_multiplier
    members: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for prefix in multipliers:
        members |= {(prefix, True): [], (prefix, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefix = max((prefix for prefix in multipliers if name.startswith(prefix)), key=len)
            members[prefix, name in decaying and parameter.ndim > 1].append(parameter)
    return [
        {
            "params": parameters,
            "lr": args.learning_rate * multipliers[prefix],
            "weight_decay": args.weight_decay if decays else 0.0,
        }
        for (prefix, decays), parameters in members.items()
        if parameters
    ]
