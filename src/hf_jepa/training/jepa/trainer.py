"""The trainer of the mask-predicting and the joint-embedding JEPAs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ...data import MixedVideoDataset, SeededStream
from ...data.dataset import SeededDataset
from ...data.defaults import default_collator, has_defaults, labelled_samples, training_samples
from ...hub.processors import default_processor
from ...hub.release import note_trained_size, save_release
from .. import checkpoints
from ..base_trainer import BaseTrainer
from ..callbacks import (
    ContextLossCallback,
    GuardCallback,
    WeightDecayCallback,
    context_loss_weight_at,
    momentum_at,
    weight_decay_at,
)
from ..draws import DrawCountedStream
from ..interruption import shelter_workers
from ..refusals import refuse_half_precision, refuse_random_teacher
from ..stream_places import PlacedCollator, Places, load_places, note_place, save_places
from .arguments import JepaTrainingArguments, lars
from .batch_norm import synchronize_batch_norm
from .metrics import StepMetrics
from .optimization import (
    check_full_precision,
    clip_parts,
    keep_untrained_rows,
    learning_rate_schedule,
    parameter_groups,
)
from .probes import probe_metrics

logger = logging.get_logger(__name__)


class JepaTrainer(BaseTrainer):
    r"""
    [`~transformers.Trainer`] with what a JEPA needs around it: the originals' parameter groups and schedules, an EMA
    target that moves once per optimizer step, per-term logs, feature probes as evaluation, guards against NaN and
    collapse, and checkpoints that are either restored whole or refused.

    An optimizer step sees the same draws (image, augmentation, masks) for every split of its batch over processes,
    per-device batch and accumulation, and in a resumed run: draws are counted over the run, and each seeds itself.
    With several processes, batch norms take their statistics over all of them. Losses that compare images with each
    other (SIGReg, RDMReg, VICReg) and batch norm see the joint batch of all processes, but one micro-batch at a time:
    with gradient accumulation they are another objective than one large batch.

    Logged besides `loss`, `grad_norm` and `learning_rate`: the terms of the loss, `ema_momentum`, `weight_decay`,
    `context_loss_weight` (V-JEPA 2.1), `target_std` and `target_rankme` (of the target encoder's tokens of recent
    whole images or clips of all processes, in eval mode, as a release computes them: dropout does not pass for spread,
    and the running statistics of batch norms, which are read, stay as they are), `prediction_token_std` and
    `target_token_std` (of what the loss compares), `projector_std` (of a joint-embedding model's projections over the
    batch of all processes), `images_per_second` (clips, of a video model; over all processes, probes and saving left
    out). Means are over the updates since the last log, and over processes.
    Evaluation fits probes on the target encoder's pooled features of `probe_train_dataset` and scores them on
    `eval_dataset`: `eval_knn_accuracy`, `eval_ridge_accuracy` (shares in [0, 1]), and the time it took.

    Args:
        model ([`~hf_jepa.modeling_jepa.JepaPreTrainedModel`]): in float32.
        args ([`JepaTrainingArguments`]): an ordinary `TrainingArguments` works too, with a constant weight decay.
        data_collator (`Callable`, *optional*): such as [`~hf_jepa.data.MaskCollator`]; its `draws_per_step` is set
            here. By default the method's own, with the settings of its published recipe, for the model's grid.
        train_dataset (`Dataset` or `IterableDataset`): rows of `datasets` with a column of images or videos, streamed
            or not, which become samples of the method's default transform (crops, views, clips); or samples:
            [`~hf_jepa.data.SeededImageDataset`], [`~hf_jepa.data.SeededImageStream`],
            [`~hf_jepa.data.SeededVideoDataset`], [`~hf_jepa.data.SeededVideoStream`],
            [`~hf_jepa.data.MixedVideoDataset`], any dataset of dicts with `pixel_values` `(C, H, W)` or
            `pixel_values_videos` `(F, C, H, W)`, float32.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): labelled images that the probes are scored on;
            rows of `datasets` are seen through the processor.
        probe_train_dataset (`Dataset`, *optional*): labelled images that the probes are fitted on; likewise.
        kwargs: everything else that `Trainer` takes (`callbacks`, `optimizers`, ...). `processing_class`, which is
            released with the encoder, is by default for the model's size, with ImageNet's statistics.

    Raises:
        ValueError: for weights below float32, a missing probe dataset, rows without images or videos, a dataset
            smaller than one step, `DataParallel`, or DeepSpeed ZeRO-3.
    """

    throughput = "images_per_second"
    # The loss is a mean over the micro-batch: the Trainer has to divide it by the accumulation steps.
    loss_is_scaled_for_ga = False
    seeded_datasets = (SeededDataset, MixedVideoDataset)
    _size_noted = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        probe_train_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        args = JepaTrainingArguments.from_plain(args)
        seed = args.seed if args.data_seed is None else args.data_seed
        processor = kwargs.setdefault("processing_class", None)
        if processor is None and has_defaults(model):
            processor = kwargs["processing_class"] = default_processor(model)
        data_collator = data_collator or default_collator(model, seed)
        train_dataset = training_samples(model, train_dataset, processor, seed)
        eval_dataset = labelled_samples(model, eval_dataset, processor)
        probe_train_dataset = labelled_samples(model, probe_train_dataset, processor)
        if args.eval_strategy != "no" and (probe_train_dataset is None or eval_dataset is None):
            raise ValueError(
                "Evaluation fits probes on labelled images: pass `probe_train_dataset` and `eval_dataset`, or leave "
                '`eval_strategy="no"` and `probe_every_steps=None`.'
            )
        self.has_target = getattr(model, "target_encoder", None) is not None
        refuse_half_precision(model)
        refuse_random_teacher(model)
        if self.has_target:
            check_full_precision(model)
        if args.world_size > 1:
            synchronize_batch_norm(model, args.device.type)
        self.probe_train_dataset = probe_train_dataset
        self._stream_places: Places = {}
        self.guard = GuardCallback(self._describe_step)
        method_callbacks: list[TrainerCallback] = [WeightDecayCallback()]
        self.has_context_loss = bool(getattr(model.config, "context_loss_weight", 0.0))
        if self.has_context_loss:
            method_callbacks.append(ContextLossCallback())
        if getattr(model, "reads_by_batch", False):
            args.ddp_find_unused_parameters = True
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            method_callbacks=method_callbacks,
            **kwargs,
        )
        if self.is_deepspeed_enabled and (args.clip_separately or args.clip_after_steps):
            raise ValueError("DeepSpeed clips by itself, from the first update on and all parameters together.")
        if args.start_from_checkpoint and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError("`start_from_checkpoint` reads whole parameters, which DeepSpeed and FSDP cut up.")

    def _new_metrics(self, args: JepaTrainingArguments) -> StepMetrics:
        return StepMetrics()

    # ---- Data ----

    def get_train_dataloader(self) -> DataLoader:
        """
        The training loader: samples are drawn in one global order, of which each process takes its share.

        Raises:
            ValueError: without a training dataset, or for one smaller than an optimizer step.
        """
        if hasattr(self.data_collator, "draws_per_step"):
            self.data_collator.draws_per_step = self.global_batch_size
        data = self.train_dataset
        if data is not None and (isinstance(data, IterableDataset) or not hasattr(data, "__len__")):
            return self._stream_dataloader()
        return super().get_train_dataloader()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        self._stream_places = {}
        return super().train(resume_from_checkpoint, **kwargs)

    def _stream_dataloader(self) -> DataLoader:
        args = self.args
        stream = DrawCountedStream(
            self.train_dataset,
            batch_size=self._train_batch_size,
            seed=self._data_seed,
            rank=args.process_index,
            world_size=args.world_size,
            num_workers=args.dataloader_num_workers,
            places=self._stream_places,
        )
        # Not prepared by accelerate, which would split the ranks a second time.
        loader = DataLoader(
            stream,
            batch_size=self._train_batch_size,
            collate_fn=PlacedCollator(self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        return shelter_workers(loader)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        note_place(self._stream_places, inputs)
        return super()._prepare_inputs(inputs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        save_places(self._stream_places, Path(output_dir), self.args.process_index)

    def _checkpoint_to_resume(self, wanted: str | bool) -> str:
        folder = super()._checkpoint_to_resume(wanted)
        self._stream_places = load_places(Path(folder), self.args.process_index)
        return folder

    def _run_description(self) -> dict[str, Any]:
        described = super()._run_description()
        if isinstance(self.train_dataset, SeededStream):
            # Who reads a shard counts its samples.
            described["stream_parts"] = self.args.world_size * max(self.args.dataloader_num_workers, 1)
        return described

    def _describe_step(self, step: int) -> dict[str, Any]:
        described = super()._describe_step(step)
        first = described["draws"][0]
        if self.train_sampler is not None:
            sampler = self.train_sampler
            before, epoch = sampler.epoch, first // len(sampler)
            sampler.set_epoch(epoch)
            offset = first - epoch * len(sampler)
            described["dataset_indices"] = [index for index, _ in list(sampler)[offset : offset + sampler.batch_size]]
            sampler.set_epoch(before)
        return described

    # ---- Optimization ----

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """
        Builds the optimizer over the original's four groups: decayed encoder and rest, undecayed encoder and rest.
        Biases and vectors do not decay (unless `decay_vectors`); everything else does, the mask token
        `(1, 1, width)` included.
        """
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = parameter_groups(model, self.args.weight_decay, self.args.decay_vectors, self.args.fix_pred_lr)
            if self.args.lars_trust_coefficient is not None:
                optimizer_class, options = lars(self.args)
            elif self.optimizer_cls_and_kwargs is not None:
                optimizer_class, options = self.optimizer_cls_and_kwargs
            else:
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **options)
            for name, parameter in model.named_parameters():
                if name.endswith("mask_tokens") and parameter.requires_grad:
                    keep_untrained_rows(self.optimizer, parameter)
        return self.optimizer

    def check_warmup(self, num_training_steps: int) -> None:
        """
        Args:
            num_training_steps (`int`): updates of the whole run.

        Raises:
            ValueError: for a warmup longer than the run.
        """
        warmup_steps = self.args.get_warmup_steps(num_training_steps)
        if warmup_steps > num_training_steps:
            raise ValueError(
                f"`warmup_steps` is {warmup_steps}, but the run has {num_training_steps} updates; lower it or give a "
                "share below 1, such as 0.1."
            )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """
        The originals' learning rate (see [`learning_rate_schedule`]), or with another `lr_scheduler_type`
        transformers' own.

        Args:
            num_training_steps (`int`): updates of the whole run.
            optimizer (`torch.optim.Optimizer`, *optional*): defaults to the trainer's.

        Raises:
            ValueError: for a warmup longer than the run.
        """
        args = self.args
        self.check_warmup(num_training_steps)
        if self.lr_scheduler is None and args.lr_scheduler_type == "cosine":
            rate = learning_rate_schedule(args, num_training_steps)
            # LambdaLR multiplies the base rate; it is read before the update it belongs to, as in the original.
            scale = 1.0 / args.learning_rate if args.learning_rate else 0.0
            optimizer = self.optimizer if optimizer is None else optimizer
            lambdas = [
                (lambda step: 1.0) if group.get("fixed") else (lambda step: rate(step) * scale)
                for group in optimizer.param_groups
            ]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambdas)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """
        The model's own loss; its terms and feature statistics are noted without waiting for the device.

        Args:
            model (`nn.Module`): the (wrapped) model.
            inputs (`dict`): a batch of the collator.
            return_outputs (`bool`): return the model's output too.
            num_items_in_batch: unused; the loss is a mean over the micro-batch.
        """
        pixels = inputs.get(self.model.main_input_name)
        if not self._size_noted and pixels is not None:
            note_trained_size(self.model, pixels, self.processing_class)
            self._size_noted = True
        outputs = model(**inputs)
        if self.model.training:
            # World models also train on latents that were encoded before.
            self.metrics.update(outputs, pixels, self.state.global_step)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor | None:
        if self.state.global_step < self.args.get_clip_start(self.state.max_steps):
            return None
        if self.args.clip_separately:
            return clip_parts(self.model, self.args.max_grad_norm, self.accelerator)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        # The stock trainer walks over all gradients in every step to get a number that it only logs.
        if grad_norm is None and self.args.logging_strategy == "steps":
            next_step = self.state.global_step + 1
            is_first = next_step == 1 and self.args.logging_first_step
            if not is_first and self.state.logging_steps and next_step % self.state.logging_steps:
                return None
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.args.start_from_checkpoint and resume_from_checkpoint is None:
            names = checkpoints.optimized_names(self.model, self.optimizer)
            folder = Path(self.args.start_from_checkpoint)
            checkpoints.load_optimizer(self.optimizer, names, folder, keep_settings=True)
        if self.is_fsdp_enabled:
            # Features are read outside forward; FSDP has to gather the root's shards there too.
            for name in {"get_features", "get_pooled_features"} & set(dir(self.model)):
                torch.distributed.fsdp.register_fsdp_forward_method(self.model, name)
        return prepared

    # ---- Logs, probes and guards ----

    def _gathered(self) -> dict[str, float]:
        step = max(self.state.global_step - 1, 0)
        logs = self.metrics.drain(self.accelerator, self._recent_features())
        logs["weight_decay"] = weight_decay_at(step, self.args, self.state.max_steps)
        if self.has_target:
            logs["ema_momentum"] = momentum_at(step, self.args, self.state.max_steps)
        if self.has_context_loss:
            weight = self.model.config.context_loss_weight
            logs["context_loss_weight"] = context_loss_weight_at(step, self.args, weight)
        return logs

    @torch.no_grad()
    def _recent_features(self) -> torch.Tensor | None:
        pixels = self.metrics.last_pixels
        if pixels is None:
            return None
        from ...evaluation.features import eval_mode

        # In training mode the running statistics of batch norms, and with them the release, would depend on how often
        # a run logs; and dropout would make a collapsed encoder's features differ.
        with eval_mode(self.model), self.accelerator.autocast():
            return self.model.get_features(pixels)

    def _score(self, dataset: Any) -> dict[str, float]:
        if self.probe_train_dataset is None:
            raise ValueError("Probes are fitted on labelled images: give JepaTrainer `probe_train_dataset`.")
        return probe_metrics(self.model, self.probe_train_dataset, dataset, self.args, self.accelerator)

    def _prepare_run(self, resume_from_checkpoint: str | bool | None) -> None:
        self._size_noted = False
        if self.args.start_from_checkpoint and not resume_from_checkpoint:
            folder = Path(self.args.start_from_checkpoint)
            reason = checkpoints.incompleteness(folder)
            if reason is not None:
                raise ValueError(f"Cannot start from {folder}: {reason}. Name a complete training checkpoint.")
            checkpoints.load_model_strictly(self.model, folder)
        if hasattr(self.model, "batch_warning"):
            warning = self.model.batch_warning(self._train_batch_size * self.args.world_size)
            if warning is not None:
                logger.warning(warning)

    # ---- Publishing ----

    def _save_release(self, model: PreTrainedModel, folder: Path, results: Any, recipe: Any, pictures: Any) -> None:
        processor = self.processing_class
        save_release(model, folder, results=results, processor=processor, recipe=recipe, pictures=pictures)

    def _reported(self, rows: Any) -> list[dict[str, Any]]:
        features = f"mean-pooled {'target ' * self.has_target}encoder tokens"
        if hasattr(self.model, "get_pooled_features"):
            features = f"pooled {'target ' * self.has_target}encoder output"
        return [
            {"name": f"{task}_accuracy", "task": task, "metric": "accuracy", "features": features}
            for task in ("knn", "ridge")
        ]
