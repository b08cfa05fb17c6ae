"""How linear the map from Text to Code is, drawn; and how well models with and without a JEPA term answer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ._figure import FONT_SIZE, INK, PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MUTED = "#8A8A8A"


def plot_displacement_spectra(
    spectra: Mapping[str, Sequence[torch.Tensor]],
    path: str | os.PathLike,
    scores: Mapping[str, Sequence[float]] | None = None,
    cosines: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    score_name: str = "exact match",
) -> Path:
    """
    Singular values of Enc(Text) - Enc(Code) of several models (LLM-JEPA figure 5), as they are and relative to each
    one's largest; and below, where given, how far pairs are told from other pairs, and how well the models answer.

    Args:
        spectra (`Mapping[str, Sequence[torch.FloatTensor]]`): name of a model -> one `(values,)` tensor per seed
            ([`~hf_jepa.evaluation.displacement_spectrum`]).
        path (`str` or `PathLike`): where to write; the suffix names the format.
        scores (`Mapping[str, Sequence[float]]`, *optional*): name -> one share in [0, 1] per seed.
        cosines (`Mapping[str, Sequence[tuple[float, float]]]`, *optional*): name -> `cos_paired` and `cos_unpaired`
            ([`~hf_jepa.evaluation.pair_report`]) per seed.
        score_name (`str`): what the scores are.

    Returns:
        `Path`: of the picture.

    Raises:
        ValueError: for no spectra or more than eight, values that are not finite, scores or cosines of other models.
    """
    names = list(spectra)
    if not names or any(not seeds or not torch.isfinite(torch.stack(list(seeds))).all() for seeds in spectra.values()):
        raise ValueError("`spectra` must hold at least one model, one spectrum per seed, and finite values only.")
    if len(names) > len(PALETTE):
        raise ValueError(f"`spectra` holds {len(names)} models; at most {len(PALETTE)} can be told apart.")
    for label, given in (("scores", scores), ("cosines", cosines)):
        if given is not None and list(given) != names:
            raise ValueError(f"`{label}` names {', '.join(given)}; it must name {', '.join(names)} in this order.")
    colors = dict(zip(names, PALETTE, strict=False))
    below = [part for part in (cosines, scores) if part is not None]
    figure = new_figure(9.6, 3.7 + (0.9 + 0.34 * len(names)) * bool(below))
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    top, *bottom = figure.subfigures(2, 1, height_ratios=(3.7, 0.9 + 0.34 * len(names))) if below else [figure]

    left, right = top.subplots(1, 2)
    _draw_spectra(left, spectra, colors, relative=False)
    _draw_spectra(right, spectra, colors, relative=True)
    handles, labels = left.get_legend_handles_labels()
    top.legend(handles, labels, loc="outside upper center", ncols=len(names), fontsize=FONT_SIZE, frameon=False)
    if below:
        axes = bottom[0].subplots(1, len(below), squeeze=False)[0]
        if cosines is not None:
            _draw_cosines(axes[0], cosines, colors)
        if scores is not None:
            _draw_scores(axes[-1], scores, colors, score_name)
        for axis in axes:
            axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
            axis.set_ylim(len(names) - 0.4, -0.6)
            axis.tick_params(axis="y", length=0)
    return save_figure(figure, path)


def _draw_spectra(
    axis: Axes, spectra: Mapping[str, Sequence[torch.Tensor]], colors: Mapping[str, str], relative: bool
) -> None:
    for name, seeds in spectra.items():
        curves = torch.stack([values / values[0] if relative else values for values in seeds]).clamp_min(1e-12)
        index = torch.arange(1, curves.shape[1] + 1)
        # On a logarithmic axis a mean of logarithms lies in the middle of its seeds.
        axis.plot(index, curves.log().mean(dim=0).exp(), color=colors[name], label=name, linewidth=1.8)
        if len(seeds) > 1:
            axis.fill_between(
                index, curves.amin(dim=0), curves.amax(dim=0), color=colors[name], alpha=0.15, linewidth=0
            )
    axis.set_yscale("log")
    _finish(axis, "… relative to the largest" if relative else "singular values of Enc(Text) - Enc(Code)", "y")
    axis.set_xlabel("index", fontsize=FONT_SIZE, color=INK)


def _draw_cosines(axis: Axes, cosines: Mapping[str, Sequence[tuple[float, float]]], colors: Mapping[str, str]) -> None:
    for row, (name, seeds) in enumerate(cosines.items()):
        paired, unpaired = (sum(values) / len(seeds) for values in zip(*seeds, strict=True))
        axis.plot([unpaired, paired], [row, row], color=colors[name], linewidth=2.5, alpha=0.45, solid_capstyle="butt")
        # Ticks are taller than dots, so that they are seen where both fall together.
        for mark, size, values in (("o", 32, [own for own, _ in seeds]), ("|", 130, [other for _, other in seeds])):
            axis.scatter(values, [row] * len(seeds), color=colors[name], marker=mark, s=size, linewidth=1.4, zorder=3)
    _finish(axis, "cosine: own Code (dots), others' (ticks)", "x")
    low = min(0.0, *(value for seeds in cosines.values() for pair in seeds for value in pair))
    axis.set_xlim(low - 0.05, 1.05)


def _draw_scores(
    axis: Axes, scores: Mapping[str, Sequence[float]], colors: Mapping[str, str], score_name: str
) -> None:
    for row, (name, values) in enumerate(scores.items()):
        mean = 100 * sum(values) / len(values)
        axis.barh(row, mean, height=0.62, color=colors[name], alpha=0.35)
        axis.scatter([100 * value for value in values], [row] * len(values), color=colors[name], s=16, zorder=3)
        axis.text(100 * max(values) + 2, row, f"{mean:.1f}", va="center", fontsize=FONT_SIZE, color=INK, weight="bold")
    _finish(axis, f"{score_name}, %: mean, and a dot per seed", "x")
    axis.set_xlim(0, 112)
    axis.set_xticks(range(0, 101, 20))


def _finish(axis: Axes, title: str, grid: str) -> None:
    axis.set_title(title, fontsize=FONT_SIZE + 1, color=INK, loc="left", weight="bold")
    axis.tick_params(labelsize=FONT_SIZE, colors=INK)
    axis.grid(axis=grid, color="#E4E4E4", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_MUTED)
