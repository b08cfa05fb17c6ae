"""What the trainers of pairs share: Text and Code, or what is seen and what is said of it."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from .base_trainer import SafeCheckpointTrainer
from .publishing import push_folder

logger = logging.get_logger(__name__)


class PairTrainer(SafeCheckpointTrainer):
    """
    Publishing of models that are one checkpoint. The base of [`LLMJepaTrainer`] and [`VLJepaTrainer`], which say what
    of the run goes on a card (`measured_results`) and how a release is written (`write_release`).
    """

    def _whole_model(self) -> PreTrainedModel:
        if self.is_fsdp_enabled:
            raise ValueError("Under FSDP no process holds the whole model; load the last checkpoint in one process.")
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def push_to_hub(
        self, commit_message: str | None = "End of training", *, license: str | None = None, **options: Any
    ) -> str | None:
        """
        Publishes what `write_release` writes.

        Args:
            commit_message (`str`, *optional*): of the commit.
            license (`str`, *optional*): of the weights, as the Hub spells it; without it the card says "unknown".
            options: `token`, `revision` and `private`; each defaults to the trainer's argument.

        Returns:
            `str`: the address of the commit, on the main process.

        Raises:
            PushError: if the upload failed; it names the command that finishes it.
        """
        if not self.is_world_process_zero():
            return None
        folder = self.write_release(self.measured_results() | ({"licence": license} if license else {}))
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


def refuse_half_precision(model: PreTrainedModel, otherwise: str = "") -> None:
    """
    Args:
        model (`PreTrainedModel`).
        otherwise (`str`): what else can be done.

    Raises:
        ValueError: for a parameter that trains below float32.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"`{name}` is trained in {parameter.dtype}, where most updates at the usual learning rates are "
                f"rounded away. Load the model with `dtype=torch.float32` and pass `bf16=True`{otherwise}."
            )
