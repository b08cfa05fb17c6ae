"""A world model plans from one picture to another; what it has been seen doing lies in its release."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import PreTrainedModel

from ...data.vl_media import read_image
from ...evaluation.planning_run import load_world_model
from ...planning import CEMPlanner
from ...visualization.planning import plot_expected_distance
from .shown import picture
from .visitors import answering

_EPISODES = "episodes.gif"
_MAX_STEPS = 40


def load(repo_or_path: str, device: str | None = None) -> PreTrainedModel:
    """The world model, on the GPU if there is one by default; `ValueError` if there is none."""
    return load_world_model(repo_or_path).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def recorded_episodes(repo_or_path: str) -> str | None:
    """The animation of episodes in a release, if it has one."""
    file = Path(repo_or_path, _EPISODES)
    if Path(repo_or_path).is_dir():
        return str(file) if file.is_file() else None
    try:
        return hf_hub_download(repo_or_path, _EPISODES)
    except OSError:
        return None


def plan_between(
    model: PreTrainedModel, now: str | None, goal: str | None, horizon: int, folder: Path
) -> tuple[list[list[float]], Path]:
    """
    Plans from what is seen now to a picture of the goal, with the cross-entropy method.

    Args:
        model: a world model.
        now, goal (`str`, *optional*): pictures.
        horizon (`int`): steps of the model.
        folder (`Path`): to write to.

    Returns:
        `tuple`: the actions, `horizon` rows in the environment's units, and a picture of how far from the goal the
        model expects to be after each, beside standing still.

    Raises:
        `ValueError`: for a missing or unreadable picture, or a model that also needs the robot's state.
    """
    if now is None or goal is None:
        raise ValueError("Give two pictures: what is seen now, and the goal.")
    if getattr(model.config, "state_dim", None):
        raise ValueError("This model also takes the robot's state, which a picture does not tell.")
    # The model brings pictures to its own size.
    frame, wanted = (read_image(file)[None].to(model.device) for file in (now, goal))
    planner = CEMPlanner(horizon=horizon, num_samples=64, num_iterations=4, num_elites=8, correlation=0.9, over="path")
    with torch.no_grad():
        latents = model.encode(frame[:, None])
        aim = model.encode_goal(wanted)
        plan = planner.plan(model, latents, aim, torch.Generator().manual_seed(0))
        still = torch.zeros_like(plan)
        ways = model.rollout(
            latents.expand(2, -1, -1, -1), model.normalize_actions(torch.cat([plan, still])), use_cache=False
        )
        starts = latents[:, -1:].expand(2, -1, -1, -1)
        ways = torch.cat([starts, ways], dim=1)
        distances = (ways - aim[:, None]).square().mean(dim=(2, 3)).sqrt().cpu().numpy()
    path = plot_expected_distance({"planned": distances[0], "standing still": distances[1]}, folder / "distance.png")
    return [[round(value, 4) for value in step] for step in plan[0].tolist()], path


def add_tab(gr: Any, model: PreTrainedModel, episodes: str | None, folder: Path) -> None:
    """What the page shows of a world model; `episodes` is an animation, `folder` is for pictures."""

    def answer(now: str | None, goal: str | None, steps: float, place: Path) -> tuple[list[list[float]], str]:
        # What the slider allows; a request need not come from it.
        if not 1 <= steps <= _MAX_STEPS:
            raise ValueError(f"Give 1 to {_MAX_STEPS} steps.")
        actions, file = plan_between(model, now, goal, int(steps), place)
        return actions, str(file)

    gr.Markdown("Which actions lead from one picture to the other, and how near does the model expect to come?")
    with gr.Row():
        with gr.Column(min_width=300):
            now = gr.Image(type="filepath", label="Now", height=200, elem_id="now")
            goal = gr.Image(type="filepath", label="Goal", height=200, elem_id="goal")
            horizon = gr.Slider(1, _MAX_STEPS, value=15, step=1, label="Steps")
            button = gr.Button("Plan", variant="primary", elem_id="plan")
        with gr.Column(min_width=300, scale=2):
            drawn = picture(gr, "Expected distance to the goal, in features", "distance")
            names = [f"action {number + 1}" for number in range(model.config.action_dim)]
            actions = gr.Dataframe(headers=names, label="Actions, in the environment's units", elem_id="actions")
            if episodes is not None:
                picture(gr, "Episodes that were recorded, each beside its goal", "episodes", episodes)
    button.click(answering(gr, folder, answer), [now, goal, horizon], [actions, drawn], api_name="plan")
