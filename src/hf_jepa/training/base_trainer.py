"""A `Trainer` whose checkpoints hold no pickles and are either restored whole or refused."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput, rotate_checkpoints
from transformers.utils import logging

from ..data import CountedSampler
from . import checkpoints
from .draws import DrawSeededDataset

logger = logging.get_logger(__name__)


class SafeCheckpointTrainer(Trainer):
    """
    [`~transformers.Trainer`] with checkpoints that can be trusted: safetensors and JSON only, a completion marker
    written last, weights restored whole or refused, and changed settings noticed on resume. Samples come in one order
    counted over the run, for any split over processes. The base of the trainers here, which set `metrics` and `guard`
    and say what a dataset is scored on (`_score`); its arguments must have `allow_changed_settings`.
    """

    train_sampler: CountedSampler | None = None
    # Kinds of datasets that seed their samples themselves.
    seeded_datasets: tuple[type, ...] = ()

    @property
    def global_batch_size(self) -> int:
        """`int`: images of one optimizer step, over all processes and accumulation steps."""
        return self.get_total_train_batch_size(self.args)

    def _raise_if_non_finite(self) -> None:
        step = self.metrics.first_non_finite_step(self.accelerator)
        if step is not None:
            raise self.guard.report_non_finite(self.args, self.state, step, float("nan"), None)

    def get_train_dataloader(self) -> DataLoader:
        """
        The training loader: samples are drawn in one global order, of which each process takes its share.

        Raises:
            ValueError: without a training dataset, or for one smaller than an optimizer step.
        """
        if self.train_dataset is None:
            raise ValueError(f"Training needs a `train_dataset`; give one to {type(self).__name__}.")
        dataset = self.train_dataset
        if not isinstance(dataset, self.seeded_datasets):
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows = len(self.train_dataset if train_dataset is None else train_dataset)
        shuffle = self.args.train_sampling_strategy != "sequential"
        self.train_sampler = CountedSampler(
            rows, seed=self._data_seed, batch_size=self.global_batch_size, shuffle=shuffle
        )
        return self.train_sampler

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Scores the model on a dataset; the trainer's own description says with what.

        Args:
            eval_dataset (*optional*): defaults to the trainer's; a dict of datasets is scored one by one, with their
                names in the prefix.
            ignore_keys (`list[str]`, *optional*): unused.
            metric_key_prefix (`str`): prefix of the metrics' names.

        Returns:
            `dict[str, float]`.

        Raises:
            ValueError: without a dataset.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError(f"Evaluation needs an `eval_dataset`; give one to {type(self).__name__}.")
        if isinstance(dataset, dict):
            results = [self.evaluate(part, None, f"{metric_key_prefix}_{name}") for name, part in dataset.items()]
            return {name: value for result in results for name, value in result.items()}
        was_training = self.model.training
        self.model.eval()
        try:
            found = self._score(dataset)
        finally:
            self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """
        Trains.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint, or `True` for the newest complete one
                in `output_dir`.
            kwargs: as for `Trainer.train`.

        Raises:
            ValueError: if the checkpoint is incomplete, does not fit the model, or is of a run with other settings
                (unless `allow_changed_settings`).
            NonFiniteLossError: if the loss becomes NaN or infinite.
        """
        if resume_from_checkpoint:
            resume_from_checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        self._raise_if_non_finite()
        return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # The stock loop would make one update too many when a finished run is resumed.
            logger.info(f"All {self.state.max_steps} updates are done; nothing is left to train.")
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _checkpoint_to_resume(self, wanted: str | bool) -> str:
        if wanted is True:
            folder = checkpoints.newest_complete_checkpoint(Path(self.args.output_dir))
        else:
            folder = Path(wanted)
            reason = checkpoints.incompleteness(folder)
            if reason is not None:
                raise ValueError(
                    f"Cannot resume from {folder}: {reason}. Pass `resume_from_checkpoint=True` to take the newest "
                    "complete checkpoint of `output_dir`."
                )
        changes = checkpoints.changed_settings(folder, self.args.to_dict(), self._run_description(), self.model.config)
        if changes and not self.args.allow_changed_settings:
            raise ValueError(
                f"{folder} is from a run with other settings: {'; '.join(changes)}. Set them back, or pass "
                "`allow_changed_settings=True` to go on with the new ones."
            )
        if changes:
            logger.warning(f"Resuming {folder} with other settings: {'; '.join(changes)}.")
        logger.info(f"Resuming from {folder}.")
        return str(folder)

    def _run_description(self) -> dict[str, Any]:
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        return {"global_batch_size": self.global_batch_size, "num_examples": rows}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # The module's own key names: resuming loads them as they are, and from_pretrained reads either form. The stock
        # trainer writes in-tree encoders' old names, which its own resume then silently fails to load.
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        (folder / checkpoints.TRAINING_ARGS).write_text(self.args.to_json_string() + "\n")

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._raise_if_non_finite()
        args = self.args
        run_dir = self._get_output_dir(trial=trial)
        folder = Path(run_dir) / f"checkpoint-{self.state.global_step}"
        if args.should_save:
            (folder / checkpoints.COMPLETE_MARKER).unlink(missing_ok=True)
        # Pushing and deleting older checkpoints must wait until this one is complete.
        limit, push = args.save_total_limit, args.push_to_hub
        args.save_total_limit, args.push_to_hub = None, False
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.save_total_limit, args.push_to_hub = limit, push
        if args.should_save:
            # The arguments were written while saving was cut short above.
            (folder / checkpoints.TRAINING_ARGS).write_text(args.to_json_string() + "\n")
        self.accelerator.wait_for_everyone()
        if args.should_save:
            checkpoints.mark_complete(folder, self._run_description())
        if push:
            self._push_from_checkpoint(str(folder))
        if args.should_save:
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            checkpoints.load_model_strictly(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        best = Path(self.state.best_model_checkpoint)
        reason = checkpoints.incompleteness(best)
        if reason is not None:
            raise ValueError(f"Cannot load the best model from {best}: {reason}. The last model is still in memory.")
        checkpoints.load_model_strictly(self.model, best)
        logger.info(f"Loaded the best model from {best} ({self.args.metric_for_best_model} {self.state.best_metric}).")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            folder = Path(output_dir)
            checkpoints.save_optimizer(self.optimizer, checkpoints.optimized_names(self.model, self.optimizer), folder)
            checkpoints.save_json(self.lr_scheduler.state_dict(), folder / checkpoints.SCHEDULER_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        checkpoints.load_optimizer(
            self.optimizer, checkpoints.optimized_names(self.model, self.optimizer), Path(checkpoint)
        )
        self.lr_scheduler.load_state_dict(checkpoints.load_json(Path(checkpoint) / checkpoints.SCHEDULER_STATE))

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            checkpoints.save_json(self.accelerator.scaler.state_dict(), Path(output_dir) / checkpoints.SCALER_STATE)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.accelerator.scaler is not None and checkpoint is not None:
            self.accelerator.scaler.load_state_dict(checkpoints.load_json(Path(checkpoint) / checkpoints.SCALER_STATE))

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing to save: generators are reseeded from `(seed, step, rank)` before every step."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load, see `_save_rng_state`."""


def refuse_data_parallel(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: if one process sees several GPUs.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, which would use DataParallel; start the program with "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
        )
