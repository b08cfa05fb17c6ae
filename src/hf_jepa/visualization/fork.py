"""A latent variable at a fork: what may follow a frame, what is predicted, and the wells of the energy between."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ._figure import FONT_SIZE, INK, PALETTE, check_images, draw_image, new_figure, save_figure

_COLORS = {"no variable": PALETTE[1], "two codes": PALETTE[0]}
_SHOWN = 40


def plot_fork(
    frames: Tensor,
    ways: Tensor,
    places: Mapping[str, Tensor],
    line: Tensor,
    wells: Mapping[str, Tensor],
    true: Tensor,
    path: str | os.PathLike,
) -> Path:
    """
    Three panels: a frame and the two that may follow it; predictions, read as places; the energy of next frames on the
    line between the two predictions, median and quartiles over transitions, in units of the energy at half the
    distance of the two ways.

    Args:
        frames (`torch.Tensor` of shape `(1, 1, height, width)`, uint8): the frame.
        ways (`torch.Tensor` of shape `(2, 1, height, width)`, uint8): what may follow it.
        places (`Mapping[str, torch.Tensor]`): `now` `(n, 2)`; `true` and `two codes` `(2, n, 2)`, left first; `no
            variable` `(1, n, 2)`.
        line (`torch.Tensor` of shape `(points,)`): 0 at the left prediction, 1 at the right one.
        wells (`Mapping[str, torch.Tensor]`): arm -> `(n, points)`.
        true (`torch.Tensor` of shape `(2, n)`): where the frames that follow lie along the line.
        path (`str` or `PathLike`): of the picture.

    Returns:
        `Path`: the picture.
    """
    figure = new_figure(11.0, 3.7)
    world, plane, energy = figure.subplots(1, 3, width_ratios=(0.85, 1, 1.25))
    _draw_world(world, frames.view(1, 1, *frames.shape[-2:]), ways)
    _draw_places(plane, places)
    for arm, values in wells.items():
        low, middle, high = torch.quantile(values.float(), torch.tensor([0.25, 0.5, 0.75]), dim=0)
        energy.fill_between(line, low, high, color=_COLORS[arm], alpha=0.18, linewidth=0)
        energy.plot(line, middle, color=_COLORS[arm], linewidth=1.8, label=arm)
    for way in true:
        place = float(way.median())
        energy.axvline(place, color=PALETTE[6], linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    energy.plot([], [], color=PALETTE[6], linewidth=1, linestyle=(0, (4, 3)), label="what follows")
    energy.set(xlabel="place on the line between the two predictions", ylabel="energy")
    energy.set_xticks([0, 0.5, 1], ["left", "middle", "right"])
    energy.set_ylim(0, 1.25 * max(float(values.median(dim=0).values.max()) for values in wells.values()))
    energy.legend(frameon=False, fontsize=FONT_SIZE - 1, loc="upper center")
    titles = ("What may follow a frame", "Predictions, read as places", "Energy of next frames")
    for axis, title in zip((world, plane, energy), titles, strict=True):
        axis.set_title(title, fontsize=FONT_SIZE + 1, color=INK, loc="left", weight="bold")
        axis.tick_params(labelsize=FONT_SIZE - 1, colors=INK)
        axis.xaxis.label.set(color=INK, fontsize=FONT_SIZE)
        axis.yaxis.label.set(color=INK, fontsize=FONT_SIZE)
    for axis in (plane, energy):
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _draw_world(axis, frame: Tensor, ways: Tensor) -> None:
    """The frame in grey, what may follow in the two colours of the ways, over each other."""
    grey = check_images(frame)[0]
    after = [check_images(way[None])[0][..., :1] for way in ways]
    tints = [torch.tensor(color) for color in ((0.0, 0.62, 0.45), (0.8, 0.47, 0.65))]
    image = 1 - 0.75 * grey
    for shade, tint in zip(after, tints, strict=True):
        image = image * (1 - shade) + tint * shade
    draw_image(axis, image)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel("grey: now; green: left; pink: right")


def _draw_places(axis, places: Mapping[str, Tensor]) -> None:
    """Every transition moved so that the frame it starts from lies at the origin."""
    now = places["now"][:_SHOWN]
    marks = (("true", "o", PALETTE[6], "what follows"), ("no variable", "x", _COLORS["no variable"], "no variable"))
    marks += (("two codes", "+", _COLORS["two codes"], "two codes"),)
    for name, marker, color, label in marks:
        moved = (places[name][:, :_SHOWN] - now).flatten(0, 1)
        style = {"facecolors": "none", "edgecolors": color} if marker == "o" else {"color": color}
        axis.scatter(moved[:, 0], moved[:, 1], s=22, marker=marker, linewidths=1, label=label, **style)
    axis.plot(0, 0, "s", color=INK, markersize=4)
    axis.annotate("now", (0, 0), (5, -2), textcoords="offset points", fontsize=FONT_SIZE - 1, color=INK)
    axis.set(xlabel="to the right", ylabel="up", aspect="equal", xlim=(-0.18, 0.18), ylim=(-0.11, 0.15))
    axis.legend(frameon=False, fontsize=FONT_SIZE - 1, loc="lower center")
