"""One page on the features of an encoder: what `hf-jepa report` writes."""

import json
from pathlib import Path
from typing import Any

import torch

from ..data.loading import open_images
from ..data.train_and_test import SplitChoice
from ..encoders import is_video_encoder
from ..evaluation import load_encoder, load_image_transform
from ..evaluation.encoder_report import (
    COLLAPSE,
    CORRUPTIONS,
    FEW_LABELS,
    OURS,
    PIXELS,
    UNTRAINED,
    EncoderReport,
    report_encoder,
    untrained_like,
)
from ..token_layouts import token_grid
from ..visualization import plot_feature_pca, plot_neighbours

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
    progress: bool = True,
    command: str = "",
) -> Path:
    """
    Measures an image encoder and writes `report.md`, `report.json`, `neighbours.png` and, where patch tokens tile the
    image, `pca.png`.

    Args:
        repo_or_path (`str` or `Path`): repository or folder of the encoder.
        dataset, train_split, test_split, train_dataset, test_dataset, holdout, max_train, max_test: which rows, see
            [`~hf_jepa.evaluation.evaluate_model`].
        output (`Path`): the folder to write to.
        image_column (`str`), label_column (`str`): columns of the dataset.
        unlabelled (`bool`): measure what needs no labels, on the test split alone.
        k, batch_size, num_workers, seed, device: see [`~hf_jepa.evaluation.encoder_report.report_encoder`].
        revision, subfolder, imagenet_statistics: see [`~hf_jepa.evaluation.evaluate_model`].
        progress (`bool`): show progress bars.
        command (`str`): that is noted on the page.

    Returns:
        `Path`: the page.

    Raises:
        ValueError: for an encoder of videos, or as [`~hf_jepa.evaluation.evaluate_model`].
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_encoder(repo_or_path, revision, subfolder).to(device)
    if is_video_encoder(model):
        raise ValueError(
            f"{type(model).__name__} takes clips; the report is of image encoders. `hf-jepa evaluate {repo_or_path} "
            "--num-frames 16 --task attentive` scores it."
        )
    choice = SplitChoice(
        dataset, train_split, test_split, train_dataset, test_dataset, holdout, max_train, max_test, seed
    )
    label = None if unlabelled else label_column
    rows = choice.rows(
        lambda name, split: open_images(name, split, image_column, label), image_column, label, fits=not unlabelled
    )
    untrained = untrained_like(model, repo_or_path, revision, seed).to(device)
    report = report_encoder(
        model,
        untrained,
        load_image_transform(repo_or_path, model, revision, imagenet_statistics),
        rows.train,
        rows.test,
        image_column,
        label,
        k,
        FEW_LABELS,
        batch_size,
        num_workers,
        seed,
        device,
        progress,
    )
    output.mkdir(parents=True, exist_ok=True)
    pictures = _draw(report, output)
    facts = {
        "model": str(repo_or_path),
        "model_class": type(model).__name__,
        "data": {"name": str(choice.test_name), "split": rows.split, "num_examples": report.rows},
        "seed": seed,
        "k": k,
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


def _draw(report: EncoderReport, output: Path) -> list[tuple[str, str]]:
    """The pictures as (file, caption); of other channels than grey or colour there are none."""
    if report.pixels.shape[1] not in (1, 3):
        return []
    plot_neighbours(report.pixels, report.features, output / "neighbours.png")
    pictures = [("neighbours.png", "Test images and those with the nearest features (cosine).")]
    try:
        grid = token_grid(report.tokens.shape[1], *report.pixels.shape[-2:], "the encoder")
    except ValueError:
        return pictures
    plot_feature_pca(report.pixels[:12], report.tokens[:12], grid, output / "pca.png")
    pictures.append(("pca.png", "The first three principal components of the patch tokens as colours."))
    return pictures


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
    probes = ["k-NN", "ridge", "attentive", *(f"{amount} per class" for amount in FEW_LABELS)]
    tables = _table("accuracy, %", numbers, probes, percent=True)
    tables += _table("accuracy of spoilt images, %", numbers, [f"k-NN, {kind}" for kind in CORRUPTIONS], percent=True)
    tables += _table("features of an image before and after", numbers, [f"cosine, {k}" for k in CORRUPTIONS], False)
    tables += _table(f"collapse: {facts['verdict']}", numbers, list(COLLAPSE), percent=False)
    if facts["chance"] is not None:
        tables += (
            f"The most frequent class is {100 * facts['chance']:.1f} % of the test images. k-NN ({facts['k']} "
            "neighbours), ridge and few labels (mean of 5 draws) are of the mean patch token, attentive of all patch "
            "tokens.\n\n"
        )
    tables += (
        "Blur: Gaussian, std a 28th of the side; crop: the central 70 %; noise: std 0.5 on normalised pixels. "
        "A `relative_std` below 0.01 is a collapse; `effective_rank_centered` is at most the width.\n\n"
    )
    for file, caption in pictures:
        tables += f"![{caption}]({file})\n\n*{caption}*\n\n"
    counts = ", ".join(f"{count:,} {name} images" for name, count in data["num_examples"].items())
    return _PAGE.format(
        name=facts["model"],
        encoder=f"`{facts['model_class']}`",
        data=f"{data['name']} ({data['split']})",
        rows=counts,
        columns=f"Beside it: the same architecture with fresh weights, and raw pixels; seed {facts['seed']}.",
        tables=tables,
        command=facts["command"],
    )
