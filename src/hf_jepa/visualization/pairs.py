"""How linear the map from Text to Code is, drawn; and how well models with and without a JEPA term answer."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ._figure import FONT_SIZE, INK, PALETTE, new_figure, save_figure


def plot_displacement_spectra(
    spectra: Mapping[str, Sequence[torch.Tensor]],
    path: str | os.PathLike,
    scores: Mapping[str, Sequence[float]] | None = None,
    score_name: str = "exact match",
) -> Path:
    """
    Singular values of Enc(Text) - Enc(Code) of several models (LLM-JEPA figure 5), relative to each one's largest and
    as they are, and their scores beside.

    Args:
        spectra (`Mapping[str, Sequence[torch.FloatTensor]]`): name of a model -> one `(values,)` tensor per seed
            ([`~hf_jepa.evaluation.displacement_spectrum`]).
        path (`str` or `PathLike`): where to write; the suffix names the format.
        scores (`Mapping[str, Sequence[float]]`, *optional*): name -> one share in [0, 1] per seed.
        score_name (`str`): what the scores are.

    Returns:
        `Path`: of the picture.

    Raises:
        ValueError: for no spectra, or values that are not finite.
    """
    if not spectra or any(not torch.isfinite(values).all() for seeds in spectra.values() for values in seeds):
        raise ValueError("`spectra` must hold at least one model, and finite values only.")
    columns = 2 if scores is None else 3
    figure = new_figure(3.4 * columns, 3.0)
    axes = figure.subplots(1, columns)
    titles = ("singular values of Enc(Text) - Enc(Code)", "the same, relative to the largest")
    for axis, title, relative in zip(axes, titles, (False, True), strict=False):
        for color, (name, seeds) in zip(PALETTE, spectra.items(), strict=False):
            curves = torch.stack([values / values[0] if relative else values for values in seeds]).clamp_min(1e-12)
            index = torch.arange(1, curves.shape[1] + 1)
            axis.plot(index, curves.mean(dim=0), color=color, label=name, linewidth=1.5)
            if len(seeds) > 1:
                axis.fill_between(index, curves.amin(dim=0), curves.amax(dim=0), color=color, alpha=0.2, linewidth=0)
        axis.set_yscale("log")
        axis.set_title(title, fontsize=FONT_SIZE, color=INK)
        axis.set_xlabel("index", fontsize=FONT_SIZE)
    axes[0].legend(fontsize=FONT_SIZE - 1, frameon=False)
    if scores is not None:
        axis = axes[2]
        for place, (color, values) in enumerate(zip(PALETTE, scores.values(), strict=False)):
            axis.barh(place, 100 * sum(values) / len(values), color=color, alpha=0.35)
            axis.scatter([100 * value for value in values], [place] * len(values), color=color, s=14, zorder=3)
        axis.set_yticks(range(len(scores)), list(scores))
        axis.invert_yaxis()
        axis.set_title(f"{score_name} (%); a dot per seed", fontsize=FONT_SIZE, color=INK)
    for axis in axes:
        axis.tick_params(labelsize=FONT_SIZE - 1)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return save_figure(figure, path)
