"""Everything that is measured of one image encoder's features, beside raw pixels and the untrained encoder."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel

from ..data.dataset import SeededImageDataset
from ..data.seeding import forked_rng
from ..data.transforms import ImageTransform
from ..parts import load_auto
from ..token_layouts import token_grid
from .attentive_probe import attentive_probe
from .closed_form import ridge_probe
from .diagnostics import collapse_report
from .features import extract_features
from .knn import knn_accuracy
from .low_shot import low_shot_accuracy

OURS, UNTRAINED, PIXELS = "this encoder", "untrained encoder", "raw pixels"
COLLAPSE = ("feature_std", "normalized_std", "relative_std", "rankme", "effective_rank_centered", "content_share")
FEW_LABELS = (1, 10)


def _blur(pixels: torch.Tensor) -> torch.Tensor:
    """Gaussian blur; its std is a 28th of the shorter side."""
    from torchvision.transforms.functional import gaussian_blur

    std = min(pixels.shape[-2:]) / 28
    return gaussian_blur(pixels, 2 * round(2 * std) + 1, std)


def _crop(pixels: torch.Tensor) -> torch.Tensor:
    """The central 70 % of each side, at the full size again."""
    height, width = pixels.shape[-2:]
    rows, columns = max(1, round(0.7 * height)), max(1, round(0.7 * width))
    top, left = (height - rows) // 2, (width - columns) // 2
    part = pixels[..., top : top + rows, left : left + columns]
    return F.interpolate(part[None], size=(height, width), mode="bilinear", antialias=True)[0]


def _noise(pixels: torch.Tensor) -> torch.Tensor:
    """Gaussian noise of half the std of the normalised pixels, drawn from torch's generator."""
    return pixels + 0.5 * torch.randn_like(pixels)


CORRUPTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"blur": _blur, "crop": _crop, "noise": _noise}


@dataclass
class EncoderReport:
    """
    What was found.

    Args:
        numbers (`dict`): measure -> column ([`OURS`], [`UNTRAINED`], [`PIXELS`]) -> value; accuracies in [0, 1].
        verdict (`str`): of [`collapse_report`] for this encoder.
        pixels (`torch.FloatTensor` of shape `(m, C, H, W)`): the test images, as the encoder sees them.
        features (`torch.FloatTensor` of shape `(m, D)`): this encoder's, mean over patch tokens.
        tokens (`torch.FloatTensor` of shape `(m, N, D)`): its patch tokens.
        chance (`float`, *optional*): share of the most frequent test class, where there are labels.
    """

    numbers: dict[str, dict[str, float]]
    verdict: str
    pixels: torch.Tensor
    features: torch.Tensor
    tokens: torch.Tensor
    chance: float | None = None
    rows: dict[str, int] = field(default_factory=dict)


def untrained_like(model: PreTrainedModel, repo_or_path: str | Path, revision: str | None, seed: int) -> Any:
    """
    A model of the same architecture with fresh weights: of the release's whole model, whose config says how its
    encoder starts, or where there is none of the encoder's own config.
    """
    with forked_rng(seed):
        try:
            config = load_auto(AutoConfig, repo_or_path, revision=revision, subfolder="pretraining")
            return AutoModelForPreTraining.from_config(config).eval()
        except (OSError, ValueError):
            config = copy.deepcopy(model.config)
            known = type(model)
            fresh = known(config) if not hasattr(model, "timm_model") else AutoModel.from_config(config)
            return fresh.eval()


def patches(pixels: torch.Tensor, num_tokens: int) -> torch.Tensor | None:
    """`(n, C, H, W)` images as `(n, N, values)` patches, N as the encoder's tokens; None if these tile no image."""
    height, width = pixels.shape[-2:]
    try:
        rows, columns = token_grid(num_tokens, height, width, "the encoder")
    except ValueError:
        return None
    size = (height // rows, width // columns)
    return F.unfold(pixels, size, stride=size).transpose(1, 2)


def report_encoder(
    model: PreTrainedModel,
    untrained: PreTrainedModel,
    transform: ImageTransform,
    train: Any | None,
    test: Any,
    image_column: str = "image",
    label_column: str | None = "label",
    k: int = 20,
    few_labels: Sequence[int] = FEW_LABELS,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> EncoderReport:
    """
    Measures frozen features of images: k-NN and ridge probes of the mean patch token, an attentive probe of all patch
    tokens, ridge probes of a few labels per class, how far features have collapsed, and what a corruption of the test
    images costs (`knn, blur`, ...; `cosine, blur`: between the features of an image before and after).

    Args:
        model (`PreTrainedModel`): an image encoder.
        untrained (`PreTrainedModel`): to compare with, see [`untrained_like`].
        transform (`Callable`): PIL image -> float32 tensor `(C, H, W)`.
        train (`datasets.Dataset`, *optional*): rows that probes are fitted on; without them (or a label column) only
            what needs no labels is measured.
        test (`datasets.Dataset`): rows that are scored.
        image_column (`str`), label_column (`str`, *optional*): columns of both.
        k (`int`): neighbours.
        few_labels (`Sequence[int]`): labels per class; a number that a class lacks is left out.
        batch_size (`int`), num_workers (`int`), seed (`int`), device (`str`, *optional*), progress (`bool`).

    Returns:
        [`EncoderReport`]

    Raises:
        ValueError: as the probes do, and for a model that gives no tokens.
    """
    reading = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress, "device": device}
    has_labels = train is not None and label_column is not None
    label = label_column if has_labels else None
    encoders: dict[str, Any] = {OURS: model, UNTRAINED: untrained, PIXELS: None}

    def tokens_of(name: str, rows: Any, corruption: Callable | None = None) -> tuple[torch.Tensor, Any]:
        changed = transform if corruption is None else lambda image: corruption(transform(image))
        samples = SeededImageDataset(rows, changed, image_column, label, seed=seed)
        if encoders[name] is not None:
            return extract_features(encoders[name], samples, pool="none", **reading)
        read = [samples[index] for index in range(len(samples))]
        labels = torch.tensor([sample["label"] for sample in read]) if has_labels else None
        return torch.stack([sample["pixel_values"] for sample in read]), labels

    pixels, labels = tokens_of(PIXELS, test)
    numbers: dict[str, dict[str, float]] = {}
    found: dict[str, Any] = {}

    def note(measure: str, name: str, value: float) -> None:
        numbers.setdefault(measure, {})[name] = value

    for name in encoders:
        clean = pixels if name == PIXELS else tokens_of(name, test)[0]
        pooled = clean.flatten(1) if name == PIXELS else clean.mean(dim=1)
        if name == OURS:
            found = {"tokens": clean, "features": pooled}
        if has_labels:
            known, known_labels = tokens_of(name, train)
            known_pooled = known.flatten(1) if name == PIXELS else known.mean(dim=1)
            split = (known_pooled, known_labels, pooled, labels)
            neighbours = min(k, len(known_labels))
            note("k-NN", name, knn_accuracy(*split, k=neighbours))
            note("ridge", name, ridge_probe(*split, seed=seed).accuracy)
            parts = [known, clean]
            if name == PIXELS:
                parts = [patches(part, found["tokens"].shape[1]) for part in parts]
            if parts[0] is not None:
                probe = attentive_probe(parts[0], known_labels, parts[1], labels, seed=seed, device=device)
                note("attentive", name, probe.accuracy)
            rarest = int(known_labels.bincount()[known_labels.unique()].min())
            for amount in few_labels:
                if amount <= rarest:
                    note(f"{amount} per class", name, low_shot_accuracy(*split, amount, seed=seed).mean)
        for kind, corruption in CORRUPTIONS.items():
            spoilt = tokens_of(name, test, corruption)[0]
            spoilt = spoilt.flatten(1) if name == PIXELS else spoilt.mean(dim=1)
            if has_labels:
                value = knn_accuracy(known_pooled, known_labels, spoilt, labels, k=neighbours)
                note(f"k-NN, {kind}", name, value)
            # Around the mean: what all images share says nothing of this one.
            mean = pooled.mean(dim=0)
            note(f"cosine, {kind}", name, F.cosine_similarity(pooled - mean, spoilt - mean).mean().item())
        if name != PIXELS:
            health = collapse_report(clean)
            if name == OURS:
                found["verdict"] = health["verdict"]
            for measure in COLLAPSE:
                if measure in health:
                    note(measure, name, health[measure])
    counts = {"test": len(test)} | ({"train": len(train)} if has_labels else {})
    chance = labels.bincount().max().item() / len(labels) if has_labels else None
    return EncoderReport(numbers, found["verdict"], pixels, found["features"], found["tokens"], chance, counts)
