"""What all trainers here share: how samples are drawn, what is refused, evaluation, releases and pushes."""

import signal
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_utils import HubStrategy, TrainOutput
from transformers.utils import PushInProgress, logging

from ..data import CountedSampler
from ..hub.release import push_release
from . import checkpoints
from .base_metrics import RunningTerms, has_finite_weights
from .callbacks import GuardCallback, SamplerEpochCallback, StepSeedCallback, TargetEMACallback
from .checkpoint_trainer import SafeCheckpointTrainer
from .draws import DrawSeededDataset
from .interruption import InterruptionCallback, TrainingInterrupted, shelter_workers
from .refusals import refuse_prediction, refuse_what_is_not_kept, refuse_without_metric
from .results import reported_evaluations, run_results
from .settings import compares_examples, describe

logger = logging.get_logger(__name__)

RELEASE_FOLDER = "release"


class BaseTrainer(SafeCheckpointTrainer):
    """
    The base of the trainers here. Samples come in one order counted over the run, for any split over processes; what
    cannot be honoured is refused at construction; a release is written to `output_dir/release` before it is pushed.

    Subclasses set `guard` before they call this constructor, and say what gathers the logs and what it gathered
    (`_new_metrics`, `_gathered`), what a dataset is scored on (`_score`), which scores are published (`_reported`),
    under which name the throughput is logged (`throughput`), and how a release is written (`_save_release`).

    Args:
        model ([`~hf_jepa.modeling_jepa.JepaPreTrainedModel`]): the model.
        args ([`~hf_jepa.training.base_arguments.CommonTrainingArguments`]): the arguments.
        method_callbacks (`Sequence`): callbacks of the method, which run before `callbacks`.
        callbacks (`list`, *optional*): the user's.
        kwargs: everything else that `Trainer` takes.

    Raises:
        ValueError: for an option that would be ignored, `DataParallel`, DeepSpeed ZeRO-3, or pushes at each save under
            FSDP.
    """

    metrics: RunningTerms
    guard: GuardCallback
    throughput: str
    # What an interrupted run tells to call; programs name their flag.
    resume_command = "trainer.train(resume_from_checkpoint=True)"
    train_sampler: CountedSampler | None = None
    # Kinds of datasets that seed their samples themselves.
    seeded_datasets: tuple[type, ...] = ()
    # The stock trainer has no such attribute until it has created a repository.
    push_in_progress: PushInProgress | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        method_callbacks: Sequence[TrainerCallback] = (),
        callbacks: list[TrainerCallback | type[TrainerCallback]] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_what_is_not_kept(args, kwargs)
        self.metrics = self._new_metrics(args)
        # transformers' own answer to SIGTERM is the user's choice.
        numbers = (signal.SIGINT,) if args.enable_jit_checkpoint else (signal.SIGINT, signal.SIGTERM)
        self.interruption = InterruptionCallback(numbers)
        own = [StepSeedCallback(), SamplerEpochCallback(lambda: self.train_sampler), self.guard, *method_callbacks]
        own.append(self.interruption)
        if getattr(model, "target_encoder", None) is not None:
            own.insert(0, TargetEMACallback())
        super().__init__(model=model, args=args, callbacks=[*own, *(callbacks or [])], **kwargs)
        refuse_without_metric(args, self.eval_dataset)
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO-3 cuts parameters into pieces, which an EMA target, losses of gathered embeddings and "
                "states read between backbone and head do not survive; use ZeRO-2, or FSDP2."
            )
        if self.is_fsdp_enabled and args.push_to_hub and args.hub_strategy != HubStrategy.END:
            raise ValueError(
                "Under FSDP a release is gathered from all processes, which a push at each save would do every time; "
                'set hub_strategy="end" and call push_to_hub after training, or push_to_hub=False.'
            )

    # ---- Data ----

    @property
    def global_batch_size(self) -> int:
        """`int`: images of one optimizer step, over all processes and accumulation steps."""
        return self.get_total_train_batch_size(self.args)

    def get_train_dataloader(self) -> DataLoader:
        """
        The training loader: samples are drawn in one global order, of which each process takes its share.

        Raises:
            ValueError: without a training dataset, or for one smaller than an optimizer step.
        """
        if self.train_dataset is None:
            raise ValueError(f"Training needs a `train_dataset`; give one to {type(self).__name__}.")
        if not hasattr(dataset := self.train_dataset, "__len__"):
            raise ValueError(
                f"{type(dataset).__name__} is a stream, but {type(self).__name__} draws samples by their index; give "
                "a list or a map-style dataset (`streaming=False`, or `Dataset.from_list(list(stream.take(n)))`)."
            )
        if not isinstance(dataset, self.seeded_datasets):
            dataset = DrawSeededDataset(dataset, self._data_seed)
        loader = self._get_dataloader(
            dataset=dataset,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )
        return shelter_workers(loader)

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

    def _run_description(self) -> dict[str, Any]:
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        described = {
            "global_batch_size": self.global_batch_size,
            "num_examples": rows,
            "train_dataset": describe(self.train_dataset),
            "data_collator": describe(self.data_collator),
        }
        if compares_examples(self.model):
            # What is compared is what passes through the model together, in all processes.
            described["batch_per_forward"] = self._train_batch_size * self.args.world_size
        return described

    # ---- Training ----

    def _new_metrics(self, args: TrainingArguments) -> RunningTerms:
        """What gathers the logs of a run."""
        raise NotImplementedError

    def _gathered(self) -> dict[str, float]:
        """What a training log says of the steps since the last one."""
        raise NotImplementedError

    def _prepare_run(self, resume_from_checkpoint: str | bool | None) -> None:
        """What a trainer does, or refuses, before a run."""

    @cached_property
    def _num_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the stock trainer, which counts parameters anew in every step; the main input may be a list of groups."""
        values = inputs.get(self.model.main_input_name, [])
        values = values if isinstance(values, list) else [values]
        return 6 * sum(value.numel() for value in values) * self._num_parameters

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Logs, adding to a training log what the steps since the last one have gathered.

        Args:
            logs (`dict[str, float]`): the values to log.
            start_time (`float`, *optional*): start of training.
        """
        if "loss" in logs:
            logs.update(self._gathered())
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """
        Trains.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint, or `True` for the newest complete one
                in `output_dir`.
            kwargs: as for `Trainer.train`.

        Raises:
            ValueError: if the checkpoint, or that of `start_from_checkpoint`, is incomplete or does not fit the model,
                or is of a run with other settings (unless `allow_changed_settings`); if InfoNCE would see one pair at
                a time.
            NonFiniteLossError: if the loss becomes NaN or infinite.
            TrainingInterrupted: after Ctrl-C or SIGTERM, once a checkpoint is saved; a line says how to go on.
        """
        self._prepare_run(resume_from_checkpoint)
        self.metrics = self._new_metrics(self.args)
        if resume_from_checkpoint:
            resume_from_checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        elif found := checkpoints.used_by(Path(self.args.output_dir)):
            logger.warning(
                f"{self.args.output_dir} holds {found[-1]} of an earlier run, and this one starts anew: its "
                "checkpoints will stand among those. Pass `resume_from_checkpoint=True` to go on instead."
            )
        with self.interruption.listening():
            output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        if self.interruption.received is not None:
            # Told at the very end; what several processes have not agreed on, none of them can save.
            late = not self.interruption.has_stopped
            if late and self.args.world_size == 1 and not self.args.load_best_model_at_end:
                self._save_before_leaving()
                self.interruption.tell(self.state.global_step, self.resume_command)
            raise TrainingInterrupted(self.interruption.received)
        self._raise_if_non_finite()
        if not self._is_sharded and not has_finite_weights(self.model):
            step = max(self.state.global_step - 1, 0)
            raise self.guard.report_non_finite(self.args, self.state, step, float("nan"), None)
        return output

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        if self.interruption.is_told_at_the_end():
            self._save_before_leaving()
        if not self.interruption.has_stopped:
            return super()._finalize_training(trial, num_train_samples, start_time)
        # Not the stock end, which may load the best model, and delete all checkpoints but that one.
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        if self.is_world_process_zero():
            self.interruption.tell(self.state.global_step, self.resume_command)
        return TrainOutput(self.state.global_step, float("nan"), {})

    def _save_before_leaving(self) -> None:
        """For a signal that came too late to end an update: what was trained must not be lost."""
        self.interruption.has_stopped = True
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if checkpoints.incompleteness(folder) is not None:
            self._save_checkpoint(self.model, trial=None)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # The stock loop would make one update too many when a finished run is resumed.
            logger.info(f"All {self.state.max_steps} updates are done; nothing is left to train.")
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _raise_if_non_finite(self) -> None:
        step = self.metrics.first_non_finite_step(self.accelerator)
        if step is not None:
            raise self.guard.report_non_finite(self.args, self.state, step, float("nan"), None)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        only_model = self.args.save_only_model
        # A run that is interrupted has to be able to go on.
        self.args.save_only_model = only_model and not self.interruption.has_stopped
        try:
            with self.metrics.paused():
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_only_model = only_model

    # ---- Evaluation ----

    predict = refuse_prediction

    def _score(self, dataset: Any) -> dict[str, float]:
        """What evaluation measures on one dataset, by name without prefix; in eval mode and without gradients."""
        raise NotImplementedError

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
            with self.metrics.paused():
                found = self._score(dataset)
        finally:
            self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- Publishing ----

    def _reported(self, rows: Any) -> list[dict[str, Any]]:
        """
        Which scores go on a card: for each its `name` in the log without prefix, and the fields of
        [`~hf_jepa.training.results.evaluation_entry`] that are its own.

        Args:
            rows: the dataset that was scored.
        """
        raise NotImplementedError

    def _training_facts(self) -> dict[str, Any]:
        """What else `results["training"]` says of a run."""
        return {}

    def measured_results(self) -> dict[str, Any]:
        """
        What this run has measured, in the form of `results.json`.

        Returns:
            `dict[str, Any]`: the sections `model`, `data`, `training`, `environment`, `evaluations` (of each dataset
            of a dict by its name) and `limits`.
        """
        evaluations = reported_evaluations(self, self._reported)
        results = run_results(self, self.throughput, evaluations, **self._training_facts())
        return results | {"limits": [] if self.guard.finding is None else [self.guard.finding]}

    def _save_release(
        self,
        model: PreTrainedModel,
        folder: Path,
        results: dict[str, Any],
        recipe: dict[str, Any] | None,
        pictures: list[Path],
        **options: Any,
    ) -> None:
        """Writes the release of the whole model into a folder."""
        raise NotImplementedError

    def write_release(
        self,
        results: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        pictures: list[Path] | None = None,
        **options: Any,
    ) -> Path:
        """
        Writes what is worth publishing to `output_dir/release`: model, processor, results and card. Under FSDP every
        process has to call it, as the model is gathered from all of them; elsewhere the others return at once.

        Args:
            results (`dict`, *optional*): the content of `results.json`; defaults to what this trainer has measured.
            recipe (`dict`, *optional*): the resolved recipe.
            pictures (`list[Path]`, *optional*): files shown in the card.
            options: of the trainer, see there.

        Returns:
            `Path`: the folder.

        Raises:
            ValueError: for a release that could not be published, such as one without a processor.
        """
        folder = Path(self.args.output_dir) / RELEASE_FOLDER
        model = self._whole_model()
        if self.is_world_process_zero():
            results = self.measured_results() if results is None else results
            self._save_release(model, folder, results, recipe, pictures or [], **options)
            logger.info(f"The release is in {folder}.")
        return folder

    def _whole_model(self) -> PreTrainedModel | None:
        if self.is_fsdp_enabled:
            return checkpoints.gather_whole_model(self.model, self.is_world_process_zero())
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        license: str | None = None,
        results: dict[str, Any] | None = None,
        **release: Any,
    ) -> str | None:
        """
        Publishes what `write_release` writes. It is on disk first, together with the training state, so a failed
        upload loses nothing.

        Args:
            commit_message (`str`, *optional*): of the commit.
            blocking (`bool`): must be True: an upload that fails has to be seen.
            token (`str`, *optional*): defaults to `args.hub_token`, then to the stored login.
            revision (`str`, *optional*): defaults to `args.hub_revision`.
            private (`bool`, *optional*): defaults to `args.hub_private_repo`.
            license (`str`, *optional*): of the weights, as the Hub spells it; without it the card says "unknown".
            results (`dict`, *optional*): the content of `results.json`; defaults to what this trainer has measured.
            release: further arguments of `write_release`.

        Returns:
            `str`: the address of the commit, on the main process.

        Raises:
            PushError: if the upload failed; it names the command that finishes it.
        """
        if not blocking:
            raise ValueError("`blocking=False` would hide a failed upload; call push_to_hub in a thread of your own.")
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        self.save_state()
        results = self.measured_results() if results is None else results
        folder = self.write_release(results | ({"licence": license} if license else {}), **release)
        if not self.is_world_process_zero():
            return None
        return self.push_folder(folder, commit_message or "End of training", token, revision, private)

    def push_folder(
        self,
        folder: Path,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> str:
        """
        Uploads a release that is on disk to the trainer's repository; arguments and errors as in `push_to_hub`.

        Args:
            folder (`Path`): the release.
        """
        args = self.args
        return push_release(
            folder,
            self.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name,
            private=args.hub_private_repo if private is None else private,
            revision=args.hub_revision if revision is None else revision,
            commit_message=commit_message,
            api=HfApi(token=args.hub_token if token is None else token),
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        # The stock trainer keeps copies of weights and a pickle in `output_dir` and uploads all of it.
        unfinished = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if unfinished and not self.args.hub_always_push:
            logger.warning(f"Not pushing step {self.state.global_step}: the last push is still going on.")
            return
        self._finish_current_push()
        folder = self.write_release()
        message = f"Training in progress, step {self.state.global_step}"
        self.push_in_progress = PushInProgress([HfApi().run_as_future(self.push_folder, folder, message)])

    def _finish_current_push(self) -> None:
        if self.push_in_progress is None:
            return
        self.push_in_progress.wait_until_done()
        for job in self.push_in_progress.jobs:
            if job.exception() is not None:
                # Training goes on, or has ended well: a failed upload must not look like a failed run.
                logger.error(str(job.exception()))
        self.push_in_progress = None
