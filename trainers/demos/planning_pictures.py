"""The pictures of the planning demo: imagination, distance maps, what the planner sees, episodes."""

from pathlib import Path

import numpy as np
import torch

from hf_jepa import LatentWorldModel
from hf_jepa.data import ArrayTrajectories
from hf_jepa.evaluation.planning import Episodes, PlanningTasks
from hf_jepa.planning import CEMPlanner
from hf_jepa.planning.policy import channels_first
from hf_jepa.visualization.latent_decoder import train_decoder
from hf_jepa.visualization.planning import (
    plot_distance_maps,
    plot_energy_landscape,
    plot_imagination,
    save_episode_animation,
)
from trainers.worlds import two_rooms

CAPTIONS = [
    {"file": "curves.png", "caption": "The run: loss and its terms, feature statistics, speed."},
    {"file": "episodes.gif", "caption": "Four episodes, each beside the picture of its goal."},
    {
        "file": "imagination.png",
        "caption": "Walks, and what the model imagines from the first frame and the actions, drawn by a decoder that "
        "was trained by itself.",
    },
    {
        "file": "distance.png",
        "caption": "How far a goal is from everywhere: in latents, on foot through the door, in a straight line.",
    },
    {
        "file": "landscape.png",
        "caption": "What the planner sees: the cost of holding an action for eight steps, and the first action of its "
        "plan.",
    },
]


@torch.no_grad()
def _encode(model: LatentWorldModel, frames: np.ndarray) -> torch.Tensor:
    return torch.cat([model.encode(part[:, None].to(model.device)) for part in channels_first(frames).split(500)])


def draw_pictures(
    model: LatentWorldModel,
    planner: CEMPlanner,
    walks: ArrayTrajectories,
    tasks: PlanningTasks,
    episodes: dict[str, Episodes],
    ours: str,
    folder: Path,
) -> list[Path]:
    """Draws all pictures into `folder`; the paths."""
    return [
        save_episode_animation(episodes[ours].frames[:4, :48], tasks.goal_frames[:4], folder / "episodes.gif"),
        imagination(model, walks, folder / "imagination.png"),
        distance_maps(model, tasks, folder / "distance.png"),
        landscape(model, planner, tasks, folder / "landscape.png"),
    ]


def imagination(model: LatentWorldModel, walks: ArrayTrajectories, path: Path) -> Path:
    """Real walks that pass the door or the wall, and imagined ones."""
    fitted = two_rooms.render(two_rooms.free_positions(np.random.default_rng(0), 4000))
    decoder = train_decoder(_encode(model, fitted)[:, 0], channels_first(fitted), num_steps=600)
    states = np.stack([walks.states(episode) for episode in range(len(walks))])
    crossing = np.flatnonzero((states[:, 0, 0] < two_rooms.WALL) != (states[:, -1, 0] < two_rooms.WALL))
    bumping = np.flatnonzero((np.abs(np.diff(states[:, :, 0], axis=1)) < 1e-6).sum(axis=1) > 2)
    chosen = [*crossing[:2], *bumping[:1]]
    real = np.stack([walks.frames(int(episode), np.arange(17)) for episode in chosen])
    actions = torch.from_numpy(np.stack([walks.actions(int(episode))[:16] for episode in chosen])).to(model.device)
    with torch.no_grad():
        first = _encode(model, real[:, 0])
        imagined = torch.cat([first, model.rollout(first, model.normalize_actions(actions))], dim=1)
        drawn = decoder(imagined).clamp(0, 1).cpu().numpy()
    every = slice(None, None, 2)
    labels = [f"+{step}" for step in range(0, 17, 2)]
    return plot_imagination(real[:, every], (np.moveaxis(drawn, 2, -1)[:, every] * 255).astype(np.uint8), path, labels)


def distance_maps(model: LatentWorldModel, tasks: PlanningTasks, path: Path) -> Path:
    """Latent, walking and straight distance to two goals, from a grid of places."""
    line = np.linspace(0.03, 0.97, 48)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    latents = _encode(model, two_rooms.render(grid))[:, 0, 0]
    goals = tasks.goals[:2]
    aims = _encode(model, tasks.goal_frames[:2])[:, 0, 0]
    maps = [
        [
            (latents - aim).norm(dim=1).cpu().numpy(),
            two_rooms.walking_distance(grid, goal[None])[:, 0],
            np.linalg.norm(grid - goal, axis=1),
        ]
        for aim, goal in zip(aims, goals, strict=True)
    ]
    background = two_rooms.render(np.array([[-9.0, -9.0]]))[0]
    titles = ("latent distance", "walking distance", "straight distance")
    return plot_distance_maps(np.array(maps).reshape(2, 3, 48, 48), goals, background, path, titles)


@torch.no_grad()
def landscape(model: LatentWorldModel, planner: CEMPlanner, tasks: PlanningTasks, path: Path) -> Path:
    """The cost of holding each action for eight steps, at the starts of three tasks."""
    grid = np.linspace(-two_rooms.MAX_STEP, two_rooms.MAX_STEP, 21, dtype=np.float32)
    held = torch.from_numpy(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 1, 2)).to(model.device)
    frames = two_rooms.render(tasks.starts[:3])
    latents = _encode(model, frames)
    goals = model.encode_goal(channels_first(tasks.goal_frames[:3]).to(model.device))
    candidates = model.normalize_actions(held.expand(-1, 8, -1)).repeat(3, 1, 1)
    costs = model.cost(model.rollout(latents, candidates), goals, norm=planner.norm, over=planner.over)
    plan = planner.plan(model, latents, goals, torch.Generator(model.device).manual_seed(0))
    return plot_energy_landscape(
        costs.view(3, 21, 21).cpu().numpy(), grid, frames, tasks.goal_frames[:3], plan[:, 0].cpu().numpy(), path
    )
