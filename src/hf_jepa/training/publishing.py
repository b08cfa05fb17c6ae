"""From a trainer to a published repository: the release is on disk, complete, before anything is sent."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

if TYPE_CHECKING:
    from .base_trainer import SafeCheckpointTrainer

logger = logging.get_logger(__name__)

RELEASE_FOLDER = "release"


def write_release(
    trainer: "SafeCheckpointTrainer",
    results: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    pictures: list[Path] | None = None,
) -> Path:
    """
    Writes the two-floor release of a trainer's model to `output_dir/release`.

    Args:
        trainer ([`~transformers.Trainer`]): whose model is released.
        results (`dict`, *optional*): the content of `results.json`; defaults to what the trainer has measured.
        recipe (`dict`, *optional*): the resolved recipe.
        pictures (`list[Path]`, *optional*): files shown in the card.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: under FSDP, whose processes hold pieces of the weights.
    """
    from ..hub.release import save_release

    if trainer.is_fsdp_enabled:
        raise ValueError(
            "Under FSDP no process holds the whole model; write the release from the last checkpoint in one "
            "process with `hf-jepa export`, and publish that with `hf-jepa push`."
        )
    folder = Path(trainer.args.output_dir) / RELEASE_FOLDER
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    save_release(
        model,
        folder,
        results=trainer.measured_results() if results is None else results,
        processor=trainer.processing_class,
        recipe=recipe,
        pictures=pictures or [],
    )
    logger.info(f"The release is in {folder}.")
    return folder


def push_folder(
    trainer: "SafeCheckpointTrainer",
    folder: Path,
    message: str,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> str:
    """
    Uploads a release to the trainer's repository.

    Args:
        trainer ([`~transformers.Trainer`]): names the repository and the token.
        folder (`Path`): the release.
        message (`str`): of the commit.
        token (`str`, *optional*), revision (`str`, *optional*), private (`bool`, *optional*): each defaults to the
            trainer's argument.

    Returns:
        `str`: the address of the commit.

    Raises:
        PushError: naming the command that finishes the upload.
    """
    from huggingface_hub import HfApi

    from ..hub.release import push_release

    args = trainer.args
    return push_release(
        folder,
        trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name,
        private=args.hub_private_repo if private is None else private,
        revision=args.hub_revision if revision is None else revision,
        commit_message=message,
        api=HfApi(token=args.hub_token if token is None else token),
    )
