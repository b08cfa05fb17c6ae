"""A `Trainer` whose checkpoints hold no pickles and are either restored whole or refused."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import CONFIG_NAME, logging

from ..file_errors import naming
from . import checkpoints
from .settings import changed_settings

logger = logging.get_logger(__name__)


class SafeCheckpointTrainer(Trainer):
    """
    [`~transformers.Trainer`] with checkpoints that can be trusted: safetensors and JSON only, a completion marker
    written last, weights restored whole or refused, and changed settings noticed on resume. The base of
    [`~hf_jepa.training.base_trainer.BaseTrainer`], which says what a run is (`_run_description`).
    """

    def _run_description(self) -> dict[str, Any]:
        """What a resumed run is compared with, besides its arguments and the model's configuration."""
        raise NotImplementedError

    def _raise_if_non_finite(self) -> None:
        """Raises before weights are kept that a NaN loss has spoilt."""
        raise NotImplementedError

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
        with naming(folder):
            TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
            changes = changed_settings(folder, self.args.to_dict(), self._run_description(), self.model.config)
        if changes and not self.args.allow_changed_settings:
            raise ValueError(
                f"{folder} is from a run with other settings: {'; '.join(changes)}. Set them back, or pass "
                "`allow_changed_settings=True` to go on with the new ones."
            )
        if changes:
            logger.warning(f"Resuming {folder} with other settings: {'; '.join(changes)}.")
        logger.info(f"Resuming from {folder}.")
        return str(folder)

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

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
            if not (folder / CONFIG_NAME).exists():
                # Shards come without it, and a resumed run is compared with it.
                self.model.config.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        if args.should_save:
            checkpoints.mark_complete(folder, self._run_description())
        if push:
            self._push_from_checkpoint(str(folder))
        if args.should_save:
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self._is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            with naming(resume_from_checkpoint):
                checkpoints.load_model_strictly(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self._is_sharded:
            super()._load_best_model()
            return
        best = Path(self.state.best_model_checkpoint)
        reason = checkpoints.incompleteness(best)
        if reason is not None:
            raise ValueError(f"Cannot load the best model from {best}: {reason}. The last model is still in memory.")
        checkpoints.load_model_strictly(self.model, best)
        logger.info(f"Loaded the best model from {best} ({self.args.metric_for_best_model} {self.state.best_metric}).")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            folder = Path(output_dir)
            checkpoints.save_optimizer(self.optimizer, checkpoints.optimized_names(self.model, self.optimizer), folder)
            checkpoints.save_json(self.lr_scheduler.state_dict(), folder / checkpoints.SCHEDULER_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self._is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with naming(checkpoint):
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
