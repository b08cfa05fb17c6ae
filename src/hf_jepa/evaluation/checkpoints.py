"""What is loaded from a checkpoint to be evaluated: an encoder or a classifier, and its processor."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from ..data.processing import processor_transform
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from ..models.vjepa import VJepaForVideoClassification, VJepaModel
from ..parts import load_auto

logger = logging.get_logger(__name__)


def load_encoder(repo_or_path: str | Path, revision: str | None = None, subfolder: str = "") -> PreTrainedModel:
    """
    Loads a vision model by its config, in float32 and eval mode. V-JEPA 2 is loaded as [`VJepaModel`], which is the
    same and takes clips of every size.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder.
        revision (`str`, *optional*): Revision of the repository.
        subfolder (`str`): Folder inside it.

    Returns:
        `PreTrainedModel`: In eval mode.

    Raises:
        ValueError: If there is no such model, or weights that it needs are missing from the checkpoint.
    """
    place = {"revision": revision, "subfolder": subfolder}
    # Poolers do not touch the patch tokens, and many checkpoints come without one.
    model = _load(repo_or_path, place, AutoModel, VJepaModel, optional="pooler")
    if getattr(model.config, "model_type", "") == "vit_mae" and model.config.mask_ratio > 0:
        # It would drop three quarters of the patches at random.
        model.config.mask_ratio = 0.0
    return model


def load_classifier(
    repo_or_path: str | Path, is_video: bool, revision: str | None = None, subfolder: str = ""
) -> PreTrainedModel:
    """
    Loads a fine-tuned classifier of images or videos by its config, in float32 and eval mode.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder.
        is_video (`bool`): Of videos.
        revision (`str`, *optional*): Revision of the repository.
        subfolder (`str`): Folder inside it.

    Returns:
        `PreTrainedModel`: In eval mode.

    Raises:
        ValueError: If there is no such model, or weights of its head are missing: an encoder alone has none.
    """
    auto_class = AutoModelForVideoClassification if is_video else AutoModelForImageClassification
    place = {"revision": revision, "subfolder": subfolder}
    return _load(repo_or_path, place, auto_class, VJepaForVideoClassification)


def _load(
    repo_or_path: str | Path, place: dict[str, Any], auto_class: Any, of_vjepa2: Any, optional: str = " "
) -> PreTrainedModel:
    try:
        config = load_auto(AutoConfig, repo_or_path, **place)
        auto_class = of_vjepa2 if config.model_type == "vjepa2" else auto_class
        model, info = load_auto(auto_class, repo_or_path, **place, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        where = "" if Path(repo_or_path).exists() else ", which is no folder here"
        raise ValueError(f"Cannot load a model from {str(repo_or_path)!r}{where}: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if optional not in key)
    if missing:
        raise ValueError(f"{repo_or_path} lacks weights of {type(model).__name__}: {', '.join(missing[:5])} ...")
    return model.eval()


def load_image_transform(
    repo_or_path: str | Path, model: PreTrainedModel, revision: str | None = None, imagenet_statistics: bool = False
) -> ImageTransform:
    """
    The checkpoint's own image processor as a transform.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder.
        model (`PreTrainedModel`): Its model: tells grey from colour.
        revision (`str`, *optional*): Revision of the repository.
        imagenet_statistics (`bool`): Use ImageNet's mean and std instead of the processor's.

    Returns:
        `Callable`: PIL image -> float32 tensor `(C, H, W)`.

    Raises:
        ValueError: If the checkpoint has no image processor.
    """
    try:
        processor = load_auto(AutoImageProcessor, repo_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(repo_or_path)!r} has no usable image processor: {error}") from error
    mean = getattr(processor, "image_mean", None) or IMAGENET_MEAN
    if imagenet_statistics:
        processor.image_mean, processor.image_std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    elif model.config.model_type == "ijepa" and list(mean) == [0.5, 0.5, 0.5]:
        logger.warning(
            "This I-JEPA checkpoint's processor normalises with mean and std 0.5. Meta's were pretrained with "
            "ImageNet's statistics: if this is one of theirs, set imagenet_statistics."
        )
    return processor_transform(processor, getattr(model.config, "num_channels", None))


def released_pooling(repo_or_path: str | Path, revision: str | None = None, subfolder: str = "") -> str | None:
    """
    How the model of a release makes one vector of an image, which the trainer's probes read: what the composite under
    `pretraining/` says, or `None` for the mean of the patch tokens.
    """
    if subfolder:
        return None
    try:
        config = load_auto(AutoConfig, repo_or_path, revision=revision, subfolder="pretraining")
    except (OSError, ValueError):
        return None
    return config.pooling if hasattr(config, "pooled_size") else None
