"""Everything that is measured of one encoder's features, beside raw pixels and the untrained encoder."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel

from ..data.seeding import forked_rng
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
# Most pixels per side that the column of raw pixels reads of a frame: a whole clip is too much for a probe.
FRAME_SIDE = 32


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
    return _resized(part, (height, width))


def _resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    images = pixels if pixels.ndim == 4 else pixels[None]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True).view(*pixels.shape[:-2], *size)


def _still(clip: torch.Tensor) -> torch.Tensor:
    """The first frame `(F, C, H, W)`, F times."""
    return clip[:1].expand_as(clip)


def _noise(pixels: torch.Tensor) -> torch.Tensor:
    """Gaussian noise of half the std of the normalised pixels, drawn from torch's generator."""
    return pixels + 0.5 * torch.randn_like(pixels)


CORRUPTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"blur": _blur, "crop": _crop, "noise": _noise}
CLIP_CORRUPTIONS = {**CORRUPTIONS, "first frame only": _still}


@dataclass
class EncoderReport:
    """
    What was found.

    Args:
        numbers (`dict`): measure -> column ([`OURS`], [`UNTRAINED`], [`PIXELS`]) -> value; accuracies in [0, 1].
        verdict (`str`): of [`collapse_report`] for this encoder.
        pixels (`torch.FloatTensor` of shape `(m, C, H, W)`): the test images, as the encoder sees them; of clips the
            frame in the middle.
        features (`torch.FloatTensor` of shape `(m, D)`): this encoder's, mean over patch tokens.
        tokens (`torch.FloatTensor` of shape `(m, N, D)`): its patch tokens.
        chance (`float`, *optional*): share of the most frequent test class, where there are labels.
        rows (`dict`): examples of each split.
        clips (`torch.FloatTensor` of shape `(up to 4, F, C, H, W)`, *optional*): the first test clips.
    """

    numbers: dict[str, dict[str, float]]
    verdict: str
    pixels: torch.Tensor
    features: torch.Tensor
    tokens: torch.Tensor
    chance: float | None = None
    rows: dict[str, int] = field(default_factory=dict)
    clips: torch.Tensor | None = None


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
    """
    `(n, C, H, W)` images as `(n, N, values)` patches, N as the encoder's tokens; None if these tile no image. Of clips
    `(n, F, C, H, W)` each frame is a token.
    """
    if pixels.ndim == 5:
        return pixels.flatten(2)
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
    samples_of: Callable[[Any, Callable | None], Any],
    train: Any | None,
    test: Any,
    k: int = 20,
    few_labels: Sequence[int] = FEW_LABELS,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> EncoderReport:
    """
    Measures frozen features of images or clips: k-NN and ridge probes of the mean patch token, an attentive probe of
    all patch tokens, ridge probes of a few labels per class, how far features have collapsed, and what a corruption of
    the test rows costs (`knn, blur`, ...; `cosine, blur`: between the features of an image before and after).

    Args:
        model (`PreTrainedModel`): an encoder.
        untrained (`PreTrainedModel`): to compare with, see [`untrained_like`].
        samples_of (`Callable`): rows, and what changes their normalised pixels (or `None`) -> what
            [`extract_features`] takes, with labels where probes are to be fitted.
        train (`datasets.Dataset`, *optional*): rows that probes are fitted on; without them only what needs no labels
            is measured.
        test (`datasets.Dataset`): rows that are scored.
        k (`int`): neighbours.
        few_labels (`Sequence[int]`): labels per class; a number that a class lacks is left out.
        batch_size (`int`), num_workers (`int`), seed (`int`), device (`str`, *optional*), progress (`bool`).

    Returns:
        [`EncoderReport`]

    Raises:
        ValueError: as the probes do, and for a model that gives no tokens.
    """
    reading = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress, "device": device}
    has_labels = train is not None
    encoders: dict[str, Any] = {OURS: model, UNTRAINED: untrained, PIXELS: None}

    def tokens_of(name: str, rows: Any, corruption: Callable | None = None) -> tuple[torch.Tensor, Any]:
        samples = samples_of(rows, corruption)
        if encoders[name] is not None:
            return extract_features(encoders[name], samples, pool="none", **reading)
        read = [_shrunk(samples[index]) for index in range(len(samples))]
        labels = torch.tensor([label for _, label in read]) if has_labels else None
        return torch.stack([pixels for pixels, _ in read]), labels

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
        for kind, corruption in (CORRUPTIONS if pixels.ndim == 4 else CLIP_CORRUPTIONS).items():
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
    shown = {"pixels": pixels, "features": found["features"], "tokens": found["tokens"]}
    if pixels.ndim == 5:
        samples = samples_of(test, None)
        middle = [samples[index]["pixel_values_videos"][pixels.shape[1] // 2].clone() for index in range(len(test))]
        first = [samples[index]["pixel_values_videos"] for index in range(min(4, len(test)))]
        shown |= {"pixels": torch.stack(middle), "clips": torch.stack(first)}
    return EncoderReport(numbers, found["verdict"], chance=chance, rows=counts, **shown)


def _shrunk(sample: dict[str, Any]) -> tuple[torch.Tensor, int | None]:
    """Pixels and label of a sample, the frames of a clip shrunk to [`FRAME_SIDE`]."""
    if "pixel_values" in sample:
        return sample["pixel_values"], sample.get("label")
    clip = sample["pixel_values_videos"]
    height, width = (min(side, FRAME_SIDE) for side in clip.shape[-2:])
    return _resized(clip, (height, width)), sample.get("label")
