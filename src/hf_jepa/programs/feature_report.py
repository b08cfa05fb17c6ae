"""One page on the features of an encoder: what `hf-jepa report` writes."""

import json
from pathlib import Path
from typing import Any

import torch

from ..data.dataset import MissingLabelsError, SeededImageDataset
from ..data.loading import open_images, open_videos
from ..data.train_and_test import SplitChoice
from ..encoders import is_video_encoder
from ..evaluation import ClipProtocol, load_encoder, load_image_transform
from ..evaluation.clips import clip_dataset, clip_transform
from ..evaluation.encoder_report import (
    CLIP_CORRUPTIONS,
    COLLAPSE,
    FEW_LABELS,
    FRAME_SIDE,
    OURS,
    PIXELS,
    UNTRAINED,
    EncoderReport,
    report_encoder,
    untrained_like,
)
from ..token_layouts import clip_grid, token_grid
from ..visualization import plot_feature_pca, plot_neighbours, plot_video_pca
from ..visualization._figure import check_matplotlib

_COLUMNS = (OURS, UNTRAINED, PIXELS)
_PAGE = """# Features of {name}

{encoder} on {data}: {rows}. {columns}

{tables}
Written by

```bash
{command}
```
"""


def write_report(
    repo_or_path: str | Path,
    dataset: str | Path | None,
    output: Path,
    *,
    train_split: str | None = None,
    test_split: str | None = None,
    train_dataset: str | Path | None = None,
    test_dataset: str | Path | None = None,
    holdout: float | None = None,
    max_train: int | None = 5000,
    max_test: int | None = 1000,
    image_column: str = "image",
    label_column: str = "label",
    unlabelled: bool = False,
    k: int = 20,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    imagenet_statistics: bool = False,
    clips: ClipProtocol | None = None,
    video_column: str = "video",
    progress: bool = True,
    command: str = "",
) -> Path:
    """
    Measures an encoder of images, or with `clips` of videos, and writes `report.md`, `report.json` and, of grey or
    coloured pixels, `neighbours.png` and, where patch tokens tile the image, `pca.png`.

    Args:
        repo_or_path (`str` or `Path`): repository or folder of the encoder.
        dataset, train_split, test_split, train_dataset, test_dataset, holdout, max_train, max_test: which rows, see
            [`~hf_jepa.evaluation.evaluate_model`].
        output (`Path`): the folder to write to.
        image_column (`str`), label_column (`str`): columns of the dataset.
        unlabelled (`bool`): measure what needs no labels, on the test split alone.
        k, batch_size, num_workers, seed, device: see [`~hf_jepa.evaluation.encoder_report.report_encoder`].
        revision, subfolder, imagenet_statistics, clips, video_column: see [`~hf_jepa.evaluation.evaluate_model`];
            of a video there is one clip.
        progress (`bool`): show progress bars.
        command (`str`): that is noted on the page.

    Returns:
        `Path`: the page.

    Raises:
        ImportError: without matplotlib.
        ValueError: for fewer than two test rows, an encoder of videos without `clips`, several clips of a video, or as
            [`~hf_jepa.evaluation.evaluate_model`].
    """
    check_matplotlib()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if clips is not None and (clips.segments, clips.views) != (1, 1):
        raise ValueError(
            f"The report is of one clip per video, got {clips.segments} segments and {clips.views} views; "
            "`hf-jepa evaluate` takes several."
        )
    model = load_encoder(repo_or_path, revision, subfolder).to(device)
    if clips is None and is_video_encoder(model):
        raise ValueError(f"{type(model).__name__} takes clips: say of how many frames, such as --num-frames 16.")
    choice = SplitChoice(
        dataset, train_split, test_split, train_dataset, test_dataset, holdout, max_train, max_test, seed
    )
    label = None if unlabelled else label_column
    opener, column = (open_images, image_column) if clips is None else (open_videos, video_column)
    try:
        rows = choice.rows(lambda name, split: opener(name, split, column, label), column, label, fits=not unlabelled)
    except MissingLabelsError as error:
        raise MissingLabelsError(f"{error} --unlabelled measures what needs no labels.") from error
    if len(rows.test) < 2:
        raise ValueError(f"The spread of features is measured over at least two test rows, got {len(rows.test)}.")
    if clips is None:
        transform = load_image_transform(repo_or_path, model, revision, imagenet_statistics)
    else:
        transform = clip_transform(repo_or_path, model, 1, revision, imagenet_statistics)

    def samples_of(part: Any) -> Any:
        if clips is None:
            return SeededImageDataset(part, transform, column, label, seed=seed)
        return clip_dataset(part, clips, transform, column, label)

    untrained = untrained_like(model, repo_or_path, revision, seed).to(device)
    report = report_encoder(
        model,
        untrained,
        samples_of,
        rows.train,
        # Pictures show the first rows, and those of class folders are all of one class.
        rows.test.shuffle(seed=seed),
        k,
        FEW_LABELS,
        batch_size,
        num_workers,
        seed,
        device,
        progress,
    )
    output.mkdir(parents=True, exist_ok=True)
    pictures = _draw(report, model, output)
    facts = {
        "model": str(repo_or_path),
        "model_class": type(model).__name__,
        "data": {"name": str(choice.test_name), "split": rows.split, "num_examples": report.rows},
        **({} if clips is None else {"clips": _frames(clips)}),
        "seed": seed,
        "k": k if rows.train is None else min(k, len(rows.train)),
        "command": command,
        "verdict": report.verdict,
        "numbers": report.numbers,
        "chance": report.chance,
        "pictures": [file for file, _ in pictures],
    }
    (output / "report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    page = output / "report.md"
    page.write_text(_page(facts, pictures), encoding="utf-8")
    return page


def _frames(clips: ClipProtocol) -> dict[str, int]:
    """What there is to say of one clip per video."""
    return {name: value for name, value in clips.description().items() if name not in ("segments", "views")}


def _draw(report: EncoderReport, model: Any, output: Path) -> list[tuple[str, str]]:
    """The pictures as (file, caption); of other channels than grey or colour there are none."""
    if report.pixels.shape[1] not in (1, 3):
        return []
    pictures = []
    if len(report.pixels) > 1:
        plot_neighbours(report.pixels, report.features, output / "neighbours.png")
        caption = "Test images and those with the nearest features (cosine)."
        if report.clips is not None:
            caption = "Test clips, by the frame in the middle, and those with the nearest features (cosine)."
        pictures.append(("neighbours.png", caption))
    caption = "The first three principal components of the patch tokens as colours."
    try:
        if report.clips is None:
            grid = token_grid(report.tokens.shape[1], *report.pixels.shape[-2:], "the encoder")
            plot_feature_pca(report.pixels[:12], report.tokens[:12], grid, output / "pca.png")
        else:
            grid = clip_grid(model.config, report.tokens.shape[1], report.clips, "the encoder")
            plot_video_pca(report.clips, report.tokens[: len(report.clips)], grid, output / "pca.png")
            caption += " Above, a frame of each time slot."
    except ValueError:
        return pictures
    return [*pictures, ("pca.png", caption)]


def _table(title: str, numbers: dict[str, dict[str, float]], measures: list[str], percent: bool) -> str:
    present = [measure for measure in measures if measure in numbers]
    if not present:
        return ""
    columns = [name for name in _COLUMNS if any(name in numbers[measure] for measure in present)]
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for measure in present:
        cells = [numbers[measure].get(name) for name in columns]
        shown = ["" if cell is None else f"{100 * cell:.1f}" if percent else f"{cell:.3g}" for cell in cells]
        lines.append(f"| {measure} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n\n"


def _page(facts: dict[str, Any], pictures: list[tuple[str, str]]) -> str:
    numbers, data = facts["numbers"], facts["data"]
    kind = "images" if facts.get("clips") is None else "clips"
    probes = ["k-NN", "ridge", "attentive", *(f"{amount} per class" for amount in FEW_LABELS)]
    tables = _table("accuracy, %", numbers, probes, percent=True)
    spoilt = {measure: [f"{measure}, {name}" for name in CLIP_CORRUPTIONS] for measure in ("k-NN", "cosine")}
    tables += _table(f"accuracy of spoilt {kind}, %", numbers, spoilt["k-NN"], percent=True)
    tables += _table("cosine of features before and after", numbers, spoilt["cosine"], percent=False)
    tables += _table(f"collapse: {facts['verdict']}", numbers, list(COLLAPSE), percent=False)
    if facts["chance"] is not None:
        tables += (
            f"The most frequent class is {100 * facts['chance']:.1f} % of the test {kind}. k-NN ({facts['k']} "
            "neighbours), ridge and few labels (mean of 5 draws) are of the mean patch token, attentive of all patch "
            "tokens.\n\n"
        )
    tables += (
        "Blur: Gaussian, std a 28th of the side; crop: the central 70 %; noise: std 0.5 on normalised pixels. "
        "A `relative_std` below 0.01 is a collapse; `effective_rank_centered` is at most the width.\n\n"
    )
    if kind == "clips":
        tables += (
            f"Raw pixels: every frame at {FRAME_SIDE} pixels a side at most; attentive reads frames one by one.\n\n"
        )
    for file, caption in pictures:
        tables += f"![{caption}]({file})\n\n*{caption}*\n\n"
    counts = ", ".join(f"{count:,} {name} {kind}" for name, count in data["num_examples"].items())
    return _PAGE.format(
        name=facts["model"],
        encoder=f"`{facts['model_class']}`",
        data=f"{data['name']} ({data['split']})",
        rows=counts + "".join(f", {name} {value}" for name, value in facts.get("clips", {}).items()),
        columns=f"Beside it: the same architecture with fresh weights, and raw pixels; seed {facts['seed']}.",
        tables=tables,
        command=facts["command"],
    )
