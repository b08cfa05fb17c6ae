"""A fine-tuned classifier, scored by its own predictions."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..models.vjepa import VJepaForVideoClassification
from .features import batches
from .video import split_clips

logger = logging.get_logger(__name__)


@torch.no_grad()
def classification_accuracy(
    model: PreTrainedModel,
    dataset: Any,
    class_names: list[str] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """
    How often a classifier is right.

    Args:
        model (`PreTrainedModel`): of images or of videos, in eval mode, with `logits` as output. Probabilities are
            averaged over a video's segments and views, unless the model takes these itself, as
            [`~hf_jepa.VJepaForVideoClassification`] does.
        dataset (`Dataset`): labelled samples, as [`extract_features`] takes.
        class_names (`list[str]`, *optional*): of the dataset's labels, which are matched by name with the model's;
            where either has no names, the numbers are the same classes.
        batch_size (`int`): images or videos at a time.
        num_workers (`int`): processes that load samples.
        dtype (`torch.dtype`, *optional*): `torch.bfloat16` computes under autocast.
        progress (`bool`): show a progress bar.

    Returns:
        `dict[str, float]`: `accuracy`, and with more than 5 classes `accuracy_top5`, in [0, 1].

    Raises:
        ValueError: for a dataset without labels, or with classes that the model does not know.
    """
    order = _classes_of(model, class_names)
    ranks = []
    for pixel_values, labels in batches(dataset, batch_size, num_workers, progress):
        if labels is None:
            raise ValueError("A classifier is scored on labels; the dataset has none.")
        known = labels if order is None else order[labels]
        if int(known.max()) >= model.config.num_labels or int(known.min()) < 0:
            raise ValueError(
                f"Labels up to {int(known.max())} are in the dataset; {type(model).__name__} has "
                f"{model.config.num_labels} classes."
            )
        with torch.autocast(model.device.type, dtype or torch.bfloat16, enabled=dtype not in (None, torch.float32)):
            probabilities = _probabilities(model, pixel_values.to(model.device)).cpu()
        right = probabilities.gather(1, known[:, None])
        ranks.append((probabilities > right).sum(dim=1))
    ranks = torch.cat(ranks)
    found = {"accuracy": (ranks == 0).double().mean().item()}
    if model.config.num_labels > 5:
        found["accuracy_top5"] = (ranks < 5).double().mean().item()
    return found


def _probabilities(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    if pixels.ndim == 4:
        return model(pixel_values=pixels).logits.float().softmax(dim=1)
    if isinstance(model, VJepaForVideoClassification):
        return model(pixels).logits.float().softmax(dim=1)
    clips, segments, views = split_clips(pixels)
    logits = model(**{model.main_input_name: clips}).logits.float()
    return logits.softmax(dim=1).unflatten(0, (-1, segments * views)).mean(dim=1)


def _classes_of(model: PreTrainedModel, names: list[str] | None) -> torch.Tensor | None:
    """The model's number of each class of the dataset, or `None` where they count alike."""
    own = {str(name).lower(): number for number, name in model.config.id2label.items()}
    if names is None:
        return None
    if all(name.startswith("label_") for name in own):
        shown = ", ".join(f"{number} is {name!r}" for number, name in enumerate(names[:3]))
        logger.warning(f"The model's classes have no names; they are taken to be numbered as the dataset's: {shown}.")
        return None
    if unknown := [name for name in names if name.lower() not in own]:
        raise ValueError(
            f"The dataset has classes that {type(model).__name__} does not know: {', '.join(map(repr, unknown[:5]))}. "
            f"It knows {', '.join(map(repr, list(own)[:5]))}" + " ..." * (len(own) > 5)
        )
    return torch.tensor([own[name.lower()] for name in names])
