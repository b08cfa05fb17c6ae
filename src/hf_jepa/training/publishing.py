"""From a trainer to a published repository: the release is on disk, complete, before anything is sent."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

if TYPE_CHECKING:
    from .jepa.trainer import JepaTrainer

logger = logging.get_logger(__name__)

RELEASE_FOLDER = "release"


def measured_results(trainer: "JepaTrainer") -> dict[str, Any]:
    """
    What a trainer itself has measured, in the form of `results.json`. Nothing is filled in that was not measured.

    Args:
        trainer ([`JepaTrainer`]): after or during training.

    Returns:
        `dict[str, Any]`: the sections `model`, `data`, `training`, `environment` and `evaluations`.
    """
    from ..hub.environment import environment_info

    history = trainer.state.log_history
    rates = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
    seconds = next((entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry), None)
    features = f"mean-pooled {'target ' * trainer.has_target}encoder tokens"
    if hasattr(trainer.model, "get_pooled_features"):
        features = "pooled encoder output"
    evaluations = [
        {
            "task": task,
            "dataset": "eval_dataset",
            "split": "eval",
            "num_examples": len(trainer.eval_dataset),
            "metric": "accuracy",
            "value": entry[f"eval_{name}_accuracy"],
            "features": features,
            "seed": trainer.args.seed,
            "command": None,
        }
        for entry in [next((entry for entry in reversed(history) if "eval_knn_accuracy" in entry), None)]
        if entry is not None and hasattr(trainer.eval_dataset, "__len__")
        for task, name in (("knn", "knn"), ("linear", "linear"))
    ]
    has_length = hasattr(trainer.train_dataset, "__len__")
    return {
        "model": {"name": Path(trainer.hub_model_id or trainer.args.hub_model_id or trainer.args.output_dir).name},
        "data": {"num_examples": len(trainer.train_dataset) if has_length else None},
        "training": {
            "steps": trainer.state.global_step,
            "batch_size": trainer.global_batch_size,
            "seconds": seconds,
            "images_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        },
        "environment": environment_info(),
        "evaluations": evaluations,
        "licence": "unknown",
    }


def write_release(
    trainer: "JepaTrainer",
    results: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    pictures: list[Path] | None = None,
) -> Path:
    """
    Writes the two-floor release of a trainer's model to `output_dir/release`.

    Args:
        trainer ([`JepaTrainer`]): whose model is released.
        results (`dict`, *optional*): the content of `results.json`; defaults to [`measured_results`].
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
        results=measured_results(trainer) if results is None else results,
        processor=trainer.processing_class,
        recipe=recipe,
        pictures=pictures or [],
    )
    logger.info(f"The release is in {folder}.")
    return folder


def push_folder(
    trainer: "JepaTrainer",
    folder: Path,
    message: str,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> str:
    """
    Uploads a release to the trainer's repository.

    Args:
        trainer ([`JepaTrainer`]): names the repository and the token.
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
