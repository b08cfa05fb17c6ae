"""Training curves from the trainer's log history."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ._figure import FONT_SIZE, INK, PALETTE, new_figure, save_figure

# Written once by the Trainer when training ends (or per evaluation): averages and timings, not curves.
_SUMMARIES = ("train_loss", "train_runtime", "total_flos", "step", "epoch")

_PANELS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Loss", lambda key: key == "loss" or key.startswith("loss_") or key.endswith("_loss")),
    ("Learning rate", lambda key: key == "learning_rate"),
    ("Weight decay", lambda key: key == "weight_decay"),
    ("EMA momentum", lambda key: key.endswith("momentum")),
    ("Feature std", lambda key: key.endswith("_std")),
    ("Rank of the features", lambda key: any(name in key for name in ("rankme", "effective_rank", "lidar"))),
    ("Active fraction", lambda key: key == "active_fraction"),
    ("Probe accuracy", lambda key: "accuracy" in key),
    ("Gradient norm", lambda key: key == "grad_norm"),
    ("Images per second", lambda key: key == "images_per_second"),
)


def _series(log_history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for position, entry in enumerate(log_history):
        step = entry.get("step", position)
        for key, value in entry.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if number and key not in _SUMMARIES:
                series.setdefault(key, []).append((float(step), float(value)))
    return series


def _label(key: str) -> str:
    words = key.removeprefix("eval_").removeprefix("train_").removesuffix("_accuracy").removesuffix("_std")
    return words.replace("_", " ").replace("knn", "k-NN").replace("rankme", "RankMe").replace("lidar", "LiDAR")


def plot_training_curves(log_history: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> Path:
    """
    Draw the curves of a training run, one panel per quantity that was logged.

    Panels: loss and its terms, learning rate, weight decay, EMA momentum, standard deviation of targets and
    predictions, rank of the features (RankMe, effective rank, LiDAR), probe accuracies, gradient norm,
    images per second.

    Args:
        log_history (`Iterable[Mapping[str, Any]]`):
            `trainer.state.log_history`: one mapping per log event, with `"step"` and scalars by name. Values that are
            not finite are left out.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if no entry holds a scalar that a panel shows.
    """
    series = _series(log_history)
    panels = [(title, [key for key in series if belongs(key)]) for title, belongs in _PANELS]
    panels = [(title, keys) for title, keys in panels if keys]
    if not panels:
        raise ValueError(f"`log_history` holds nothing to plot: scalars found: {sorted(series) or 'none'}.")

    steps_shown = [step for _, keys in panels for key in keys for step, _ in series[key]]
    first_step, last_step = min(steps_shown), max(steps_shown)
    margin = 0.03 * max(last_step - first_step, 1.0)
    num_columns = min(3, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(4.0 * num_columns, 2.7 * num_rows, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis, (title, keys) in zip(axes.flat, panels, strict=False):
        for key, color in zip(keys, PALETTE * (1 + len(keys) // len(PALETTE)), strict=False):
            steps, values = zip(*series[key], strict=True)
            # A probe is measured a few times per run: mark each measurement.
            marker = "o" if len(steps) <= 20 else None
            axis.plot(steps, values, color=color, linewidth=1.5, marker=marker, markersize=3.5, label=_label(key))
        axis.set_title(title, fontsize=FONT_SIZE + 1, color=INK, loc="left", weight="bold")
        axis.set_xlabel("step", fontsize=FONT_SIZE, color=INK)
        axis.tick_params(labelsize=FONT_SIZE - 1, colors=INK)
        axis.grid(color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.get_offset_text().set_fontsize(FONT_SIZE - 1)
        axis.set_xlim(first_step - margin, last_step + margin)
        if title == "Images per second":
            axis.set_ylim(0, 1.15 * max(value for _, value in series[keys[0]]))
        if len(keys) > 1 or title in ("Feature std", "Rank of the features", "Probe accuracy"):
            axis.legend(fontsize=FONT_SIZE - 1, frameon=False, labelcolor=INK)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    return save_figure(figure, path)
