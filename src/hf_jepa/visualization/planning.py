from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ._figure import INK, PALETTE, image_axes, new_figure, save_figure


def plot_imagination(
    real: np.ndarray, imagined: np.ndarray, path: str | os.PathLike, labels: Sequence[str] | None = None
) -> Path:
    """
    What happened beside what a world model imagined from the first frame and the actions.

    Args:
        real (`(rollouts, steps, height, width, channels)` uint8): Frames of the environment.
        imagined (array of the same shape, float in [0, 1] or uint8): Decoded imagined latents.
        path (`str` or `Path`): Picture to be written.
        labels (sequence of `str`, *optional*): Above the columns; `+0`, `+1`, ... if omitted.

    Raises:
        ValueError: If the shapes differ.
    """
    if real.ndim != 5 or imagined.shape != real.shape:
        raise ValueError(f"real {real.shape} and imagined {imagined.shape} must both be (rollouts, steps, h, w, c).")
    rollouts, steps = real.shape[:2]
    labels = [f"+{step}" for step in range(steps)] if labels is None else labels
    figure = new_figure(0.9 * steps + 0.8, 1.95 * rollouts + 0.3)
    axes = image_axes(figure, 2 * rollouts, steps)
    for row in range(2 * rollouts):
        rollout, source = row // 2, imagined if row % 2 else real
        for step in range(steps):
            axes[row, step].imshow(_shown(source[rollout, step]), interpolation="nearest")
            if not row:
                axes[row, step].set_title(labels[step], fontsize=8, color=INK)
        axes[row, 0].set_ylabel("imagined" if row % 2 else "real", fontsize=8, color=INK)
    return save_figure(figure, path)


def plot_distance_maps(
    maps: np.ndarray,
    goals: np.ndarray,
    background: np.ndarray,
    path: str | os.PathLike,
    titles: Sequence[str],
    extent: tuple[float, float, float, float] = (0.0, 1.0, 1.0, 0.0),
) -> Path:
    """
    How far a goal is from everywhere: one map per goal and kind of distance, each with its own colour scale.

    Args:
        maps (`(goals, kinds, rows, columns)` floats): Distances over a grid of places; NaN where nothing can be.
        goals (`(goals, 2)`): x and y.
        background (`(height, width, 3)` uint8): A frame of the empty place, drawn faintly for orientation.
        path (`str` or `Path`): Picture to be written.
        titles (sequence of `str`): One per kind.
        extent (tuple): Left, right, bottom and top coordinate of the place.
    """
    num_goals, kinds = maps.shape[:2]
    if len(titles) != kinds or len(goals) != num_goals:
        raise ValueError(f"{maps.shape} maps need {kinds} titles and {num_goals} goals.")
    figure = new_figure(2.6 * kinds + 0.4, 2.5 * num_goals + 0.3)
    axes = image_axes(figure, num_goals, kinds)
    for row in range(num_goals):
        for column in range(kinds):
            axis, values = axes[row, column], maps[row, column]
            axis.imshow(values, extent=extent, cmap="viridis_r", interpolation="bilinear")
            axis.contour(
                np.linspace(extent[0], extent[1], values.shape[1]),
                np.linspace(extent[3], extent[2], values.shape[0]),
                values,
                levels=8,
                colors="white",
                linewidths=0.6,
                alpha=0.8,
            )
            light = background.astype(np.float32).max(axis=-1) / 255
            wall = np.zeros((*light.shape, 4), dtype=np.float32)
            wall[..., 3] = (light > 0.3) * 0.85
            axis.imshow(wall, extent=extent, interpolation="nearest")
            axis.plot(*goals[row], marker="*", markersize=13, color=PALETTE[1], markeredgecolor="white")
            if not row:
                axis.set_title(titles[column], fontsize=9, color=INK)
    return save_figure(figure, path)


def plot_energy_landscape(
    energies: np.ndarray,
    grid: np.ndarray,
    frames: np.ndarray,
    goals: np.ndarray,
    chosen: np.ndarray,
    path: str | os.PathLike,
    axis_labels: tuple[str, str] = ("held action, x", "held action, y"),
) -> Path:
    """
    What a planner sees: the cost of holding an action from now on, beside where it is and where it should be.

    Args:
        energies (`(cases, rows, columns)` floats): Cost of holding the action of this grid place.
        grid (`(values,)` floats): Values of both action dimensions; rows are the second one, columns the first.
        frames, goals (`(cases, height, width, channels)` uint8): Now, and the goal.
        chosen (`(cases, 2)` floats): The first action of the planner's plan, which is free to go on with another.
        path (`str` or `Path`): Picture to be written.
        axis_labels (pair of `str`): Of the landscape.
    """
    cases = len(energies)
    figure = new_figure(6.6, 2.2 * cases + 0.3)
    axes = figure.subplots(cases, 3, squeeze=False)
    for row in range(cases):
        for axis, picture, title in zip(axes[row], (frames[row], goals[row]), ("now", "goal"), strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if not row:
                axis.set_title(title, fontsize=9, color=INK)
        axis = axes[row, 2]
        edges = (grid[0], grid[-1], grid[-1], grid[0])
        axis.imshow(energies[row], extent=edges, cmap="viridis_r", interpolation="bilinear")
        best = np.unravel_index(np.argmin(energies[row]), energies[row].shape)
        axis.plot(grid[best[1]], grid[best[0]], "x", color="white", markersize=7, label="lowest")
        axis.plot(*chosen[row], "o", color=PALETTE[1], markersize=6, markeredgecolor="white", label="planner's first")
        ticks = np.round([grid[0], 0, grid[-1]], 3)
        axis.set(xticks=ticks, yticks=ticks)
        axis.tick_params(labelsize=7)
        axis.set_xlabel(axis_labels[0], fontsize=8)
        axis.set_ylabel(axis_labels[1], fontsize=8)
        if not row:
            axis.set_title("cost", fontsize=9, color=INK)
            axis.legend(fontsize=7, loc="best", framealpha=0.6)
    return save_figure(figure, path)


def plot_expected_distance(ways: dict[str, np.ndarray], path: str | os.PathLike) -> Path:
    """
    How far from the goal a model expects to be after each step, for several plans.

    Args:
        ways (`dict[str, (steps + 1,)` floats`]`): By name, the start first.
        path (`str` or `Path`): Picture to be written.

    Raises:
        ValueError: If there is no way.
    """
    if not ways:
        raise ValueError("There is no plan to draw.")
    figure = new_figure(5.0, 2.6)
    axis = figure.subplots()
    for (name, way), color in zip(ways.items(), PALETTE, strict=False):
        axis.plot(way, "-o", label=name, color=color, markersize=3, linewidth=1.4)
    axis.set_xlabel("step", fontsize=9, color=INK)
    axis.set_ylabel("distance", fontsize=9, color=INK)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return save_figure(figure, path)


def save_episode_animation(
    frames: np.ndarray,
    goals: np.ndarray,
    path: str | os.PathLike,
    scale: int = 3,
    milliseconds: int = 90,
) -> Path:
    """
    Episodes as a GIF, each beside its goal, one below the other.

    Args:
        frames (`(episodes, steps, height, width, channels)` uint8): What happened.
        goals (`(episodes, height, width, channels)` uint8): What was wanted.
        path (`str` or `Path`): GIF to be written.
        scale (`int`): Pixels of the GIF per pixel.
        milliseconds (`int`): Per step.

    Raises:
        ValueError: If the shapes do not go together.
    """
    from PIL import Image

    if frames.ndim != 5 or goals.shape != (len(frames), *frames.shape[2:]) or not frames.shape[1]:
        raise ValueError(f"frames {frames.shape} must be (episodes, steps, h, w, c), goals {goals.shape} one of each.")
    pictures = []
    gap = np.full((frames.shape[2], 4, 3), 255, dtype=np.uint8)
    for step in range(frames.shape[1]):
        rows = [
            np.concatenate([_rgb(episode[step]), gap, _rgb(goal)], axis=1)
            for episode, goal in zip(frames, goals, strict=True)
        ]
        line = np.full((4, rows[0].shape[1], 3), 255, dtype=np.uint8)
        stacked = np.concatenate([part for row in rows for part in (row, line)][:-1], axis=0)
        pictures.append(Image.fromarray(stacked.repeat(scale, 0).repeat(scale, 1)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One palette for all, or colours would flicker.
    palette = pictures[0].quantize(64)
    shown = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [milliseconds] * (len(shown) - 1) + [1500]
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=durations, loop=0)
    return path


def _rgb(frame: np.ndarray) -> np.ndarray:
    return frame.repeat(3, axis=-1) if frame.shape[-1] == 1 else frame


def _shown(frame: np.ndarray | Tensor) -> np.ndarray:
    frame = np.asarray(frame)
    return _rgb(frame if frame.dtype == np.uint8 else frame.clip(0, 1))
