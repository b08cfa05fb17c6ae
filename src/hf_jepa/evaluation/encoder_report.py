"""Everything that is measured of one encoder's features, beside raw pixels and the untrained encoder."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel

from ..data.seeding import forked_rng, mix_seed
from ..parts import load_auto
from ..token_layouts import token_grid
from .attentive_probe import attentive_probe
from .closed_form import ridge_probe
from .diagnostics import collapse_report
from .features import allocate, batches, eval_mode, pooled_features
from .knn import knn_accuracy
from .low_shot import low_shot_accuracy

ENCODINGS = OURS, UNTRAINED, PIXELS = "this encoder", "untrained encoder", "raw pixels"
# A frame of each test clip, for pictures.
MIDDLE = "middle frame"
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
    samples_of: Callable[[Any], Any],
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
        samples_of (`Callable`): rows -> what [`extract_features`] takes, with labels where probes are to be fitted.
            Each row is read once.
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
    has_labels = train is not None
    # What makes a column of a batch of pixels.
    columns: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        OURS: lambda pixels: pooled_features(model, pixels.to(device), "none"),
        UNTRAINED: lambda pixels: pooled_features(untrained, pixels.to(device), "none"),
        PIXELS: _shrunk,
    }

    def read(samples: Any, names: Sequence[str], kinds: Sequence[str] = ()) -> tuple[dict[Any, Any], Any]:
        """
        Columns of samples by (name, kind of corruption or ""), and labels. Each sample is decoded once; of spoilt ones
        the mean token is kept.
        """
        found: dict[tuple[str, str], torch.Tensor] = {}
        labels, start = [], 0
        for pixels, batch_labels in batches(samples, batch_size, num_workers, progress):
            parts = {(name, ""): columns[name](pixels) for name in names}
            for kind in kinds:
                changed = _spoilt(pixels, kind, seed, start)
                parts |= {(name, kind): _pooled(name, columns[name](changed).float()) for name in ENCODINGS}
            for key, part in parts.items():
                if key not in found:
                    found[key] = allocate((len(samples), *part.shape[1:]))
                found[key][start : start + len(part)] = part
            start += len(pixels)
            labels += [] if batch_labels is None else [batch_labels]
        return found, torch.cat(labels) if has_labels else None

    samples = samples_of(test)
    is_clips = "pixel_values_videos" in samples[0]
    if is_clips:
        columns[MIDDLE] = lambda clips: clips[:, clips.shape[1] // 2]
    kinds = list(CLIP_CORRUPTIONS if is_clips else CORRUPTIONS)
    with eval_mode(model), eval_mode(untrained), torch.no_grad():
        tested, labels = read(samples, list(columns), kinds)
    pixels = tested[PIXELS, ""]
    numbers: dict[str, dict[str, float]] = {}
    found: dict[str, Any] = {}

    def note(measure: str, name: str, value: float) -> None:
        numbers.setdefault(measure, {})[name] = value

    for name in ENCODINGS:
        clean = tested[name, ""]
        pooled = _pooled(name, clean)
        if name == OURS:
            found = {"tokens": clean, "features": pooled}
        if has_labels:
            # One column at a time: tokens of all would not fit where those of one do.
            with eval_mode(model), eval_mode(untrained), torch.no_grad():
                fitted, known_labels = read(samples_of(train), [name])
            known = fitted[name, ""]
            known_pooled = _pooled(name, known)
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
        for kind in kinds:
            spoilt = tested[name, kind]
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
    if is_clips:
        shown["clips"] = torch.stack([samples[i]["pixel_values_videos"] for i in range(min(4, len(samples)))])
        shown["pixels"] = tested[MIDDLE, ""]
    return EncoderReport(numbers, found["verdict"], chance=chance, rows=counts, **shown)


def _shrunk(pixels: torch.Tensor) -> torch.Tensor:
    """Images as they are, the frames of clips `(n, F, C, H, W)` shrunk to [`FRAME_SIDE`]."""
    if pixels.ndim == 4:
        return pixels
    height, width = (min(side, FRAME_SIDE) for side in pixels.shape[-2:])
    return _resized(pixels.flatten(0, 1), (height, width)).unflatten(0, pixels.shape[:2])


def _pooled(name: str, part: torch.Tensor) -> torch.Tensor:
    """One vector per row of a column: the mean token, or all pixels."""
    return part.flatten(1) if name == PIXELS else part.mean(dim=1)


def _spoilt(pixels: torch.Tensor, kind: str, seed: int, start: int) -> torch.Tensor:
    """A corruption of each row of a batch whose first row is number `start`; draws depend on `(seed, row)` alone."""
    rows = []
    for number, row in enumerate(pixels, start):
        with forked_rng(mix_seed(seed, number)):
            rows.append(CLIP_CORRUPTIONS[kind](row))
    return torch.stack(rows)
