"""Collapse at a glance: where runs that differ by their objective ended, and how they got there."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._figure import FONT_SIZE, INK, PALETTE, new_figure, save_figure

# Warm for what fails, cool for what does not, in the order in which objectives are usually listed.
_COLORS = tuple(PALETTE[index] for index in (1, 4, 5, 0, 2, 3, 7, 6))
_MARKERS = "oDsv^PXh"
_GREY = "#6B6B6B"
_FAILED = "#F6E3DC"


def plot_collapse(runs: Sequence[Mapping[str, Any]], path: str | os.PathLike, collapsed_below: float = 0.05) -> Path:
    """
    Draw what collapse is and which objectives prevent it.

    The top row shows the embeddings of one run per objective of the first group in their two leading directions, all
    on one scale: a collapsed network's are a dot. Below, one row per group: std of the embeddings while training
    (each seed a line), and final std against k-NN accuracy (each seed a mark).

    Args:
        runs (`Sequence[Mapping[str, Any]]`):
            One mapping per run, seeds of one objective sharing `"arm"` and `"group"` (strings), with `"knn"` (`float`,
            accuracy in [0, 1]), `"projector_std"` (`float`, mean over dimensions), `"curve"` (`list[float]`, that std
            at each step) and, for at least one run per objective of the first group, `"points"` (`list` of `(x, y)`).
            Runs without a `"curve"` are baselines, drawn in grey; those without `"projector_std"`, such as raw pixels,
            are a line.
        path (`str` or `os.PathLike`):
            File to write; its suffix names the format.
        collapsed_below (`float`):
            Share of the untrained networks' std (the mean over baselines of the group, otherwise over first steps)
            below which the picture says "collapsed".

    Returns:
        `Path`: the file written.

    Raises:
        ValueError: if no run was trained, or a number that is drawn is not finite.
    """
    trained = [run for run in runs if run.get("curve")]
    arms = list(dict.fromkeys(run["arm"] for run in trained))
    groups = list(dict.fromkeys(run["group"] for run in trained))
    if not arms:
        raise ValueError("`runs` holds no trained run: each needs a non-empty `curve`.")
    if len(arms) > len(_COLORS):
        raise ValueError(f"`runs` holds {len(arms)} objectives; at most {len(_COLORS)} can be told apart.")
    for run in runs:
        numbers = (run["knn"], run.get("projector_std", 0.0), *run.get("curve", ()))
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"The run {run['arm']!r} of {run['group']!r} holds NaN or infinite values.")
    styles = {arm: (_COLORS[i], _MARKERS[i]) for i, arm in enumerate(arms)}

    figure = new_figure(11.0, 2.6 + 3.2 * len(groups), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.07, hspace=0.02, wspace=0.01)
    stds = [std for run in runs for std in (*run.get("curve", ()), run.get("projector_std", 0.0)) if std > 0] or [1.0]
    scale = (0.5 * min(stds), 2 * max(stds))  # of all panels; zero, a complete collapse, lies on its edge
    top, below = figure.subfigures(2, 1, height_ratios=(2.3, 3.2 * len(groups)))
    _draw_clouds(top, [run for run in trained if run["group"] == groups[0] and run.get("points")], styles, groups[0])
    axes = below.subplots(len(groups), 2, squeeze=False, width_ratios=(1, 1.15))
    for (left, right), group in zip(axes, groups, strict=True):
        members = [run for run in runs if run["group"] == group]
        first = [run["projector_std"] for run in members if not run.get("curve") and "projector_std" in run]
        first = first or [run["curve"][0] for run in members if run.get("curve")]
        limit = collapsed_below * sum(first) / len(first)
        _draw_curves(left, members, styles, limit, scale)
        _draw_ends(right, members, styles, limit, scale)
        left.set_title(f"{group}: while training", fontsize=FONT_SIZE + 1, color=INK, loc="left", weight="bold")
        right.set_title(f"{group}: at the end", fontsize=FONT_SIZE + 1, color=INK, loc="left", weight="bold")
    return save_figure(figure, path)


def _draw_clouds(figure: Any, runs: Sequence[Mapping[str, Any]], styles: Mapping[str, tuple], group: str) -> None:
    shown = {run["arm"]: run for run in reversed(runs)}
    reach = sorted(max(abs(x), abs(y)) for run in shown.values() for x, y in run["points"]) or [1.0]
    size = 1.1 * reach[int(0.998 * (len(reach) - 1))] or 1.0  # a stray point would make all clouds small
    title = f"Embeddings of the test images, {group}: two leading directions, one scale for all"
    figure.suptitle(title, fontsize=FONT_SIZE + 2, color=INK, weight="bold", x=0.008, ha="left")
    axes = figure.subplots(1, len(styles), squeeze=False)[0]
    for axis, (arm, (color, marker)) in zip(axes, styles.items(), strict=True):
        axis.set(xlim=(-size, size), ylim=(-size, size), aspect="equal", xticks=[], yticks=[])
        axis.spines[:].set(color="#CCCCCC", linewidth=0.8)
        if arm in shown:
            run = shown[arm]
            axis.scatter(*zip(*run["points"], strict=True), s=5, color=color, alpha=0.55, linewidths=0)
            note = f"k-NN {100 * run['knn']:.0f} %, std {run['projector_std']:.2g}"
            axis.text(0.5, 0.03, note, transform=axis.transAxes, ha="center", fontsize=FONT_SIZE - 1, color=_GREY)
        # The name above the cloud doubles as the legend of every panel below.
        axis.plot([], [], marker, color=color, markersize=7, label=arm)
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98), "frameon": False, "handletextpad": 0.2}
        axis.legend(fontsize=FONT_SIZE + 0.5, labelcolor=INK, **place)


def _draw_curves(
    axis: Any, runs: Sequence[Mapping[str, Any]], styles: Mapping[str, tuple], limit: float, scale: tuple[float, float]
) -> None:
    for run in runs:
        if run.get("curve"):
            color = styles[run["arm"]][0]
            axis.plot(range(len(run["curve"])), run["curve"], color=color, linewidth=1.3, alpha=0.85)
    axis.axhspan(1e-12, limit, color=_FAILED, linewidth=0, zorder=0)
    steps = max(len(run.get("curve", ())) for run in runs)
    axis.set(yscale="log", ylim=scale, xlim=(0, max(steps - 1, 1)), xlabel="step", ylabel="projector std")
    _finish(axis)


def _draw_ends(
    axis: Any, runs: Sequence[Mapping[str, Any]], styles: Mapping[str, tuple], limit: float, scale: tuple[float, float]
) -> None:
    axis.set(xscale="log", xlim=scale, xlabel="projector std", ylabel="k-NN accuracy, %")
    axis.axvspan(1e-12, limit, color=_FAILED, linewidth=0, zorder=0)
    text = {"color": _GREY, "fontsize": FONT_SIZE - 1, "zorder": 4}
    axis.text(limit, 0.98, "collapsed ", ha="right", va="top", transform=axis.get_xaxis_transform(), **text)
    lines: dict[str, list[float]] = {}
    for run in runs:
        accuracy = 100 * run["knn"]
        if "projector_std" not in run:
            lines.setdefault(run["arm"], []).append(accuracy)
        else:
            color, marker = styles[run["arm"]] if run.get("curve") else (_GREY, "*")
            axis.plot(run["projector_std"], accuracy, marker, color=color, markersize=8, alpha=0.9, mec="white")
    for arm, values in lines.items():
        mean = sum(values) / len(values)
        axis.axhline(mean, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axis.text(0.01, mean, arm, transform=axis.get_yaxis_transform(), va="bottom", **text)
    baselines = [run for run in runs if not run.get("curve") and "projector_std" in run]
    for arm in dict.fromkeys(run["arm"] for run in baselines):
        lowest = min((run for run in baselines if run["arm"] == arm), key=lambda run: run["knn"])
        place = (lowest["projector_std"], 100 * lowest["knn"])
        axis.annotate(arm, place, (0, -6), textcoords="offset points", ha="center", va="top", **text)
    axis.set_ylim(0, 1.12 * max(100 * run["knn"] for run in runs))
    _finish(axis)


def _finish(axis: Any) -> None:
    axis.xaxis.label.set(color=INK, fontsize=FONT_SIZE)
    axis.yaxis.label.set(color=INK, fontsize=FONT_SIZE)
    axis.tick_params(labelsize=FONT_SIZE - 1, colors=INK, which="both")
    axis.grid(color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
