"""Surprise of a video model: the energy of every moment of a clip."""

from pathlib import Path
from typing import Any

from ...evaluation import load_encoder
from ...modeling_jepa import JepaPreTrainedModel
from ...visualization.run import visualize
from .shown import picture
from .visitors import answering


def check(repo_or_path: str) -> None:
    """
    Raises:
        ValueError: for a release without the whole model, which alone can be surprised.
    """
    if not isinstance(load_encoder(repo_or_path, subfolder="pretraining"), JepaPreTrainedModel):
        raise ValueError(f"{repo_or_path} holds no whole model in pretraining/: an encoder alone predicts nothing.")


def draw_surprise(repo_or_path: str, video: str | None, folder: Path) -> tuple[Path, Path]:
    """
    Draws the energy over time of one video, and principal components of its features.

    Returns:
        `tuple`: the two files.

    Raises:
        `ValueError`: for no video, or one that cannot be read.
    """
    if video is None:
        raise ValueError("Give a video.")
    where = {"files": [Path(video)], "subfolder": "pretraining"}
    try:
        return tuple(
            visualize(repo_or_path, kind=kind, output=folder / f"video_{kind}.png", **where)
            for kind in ("surprise", "pca")
        )
    except OSError as error:
        raise ValueError(f"The video cannot be read: {error}") from error


def add_tab(gr: Any, repo_or_path: str, folder: Path) -> None:
    """What the page shows of a video model; `folder` is for pictures."""

    def answer(video: str | None, place: Path) -> tuple[str, str]:
        return tuple(map(str, draw_surprise(repo_or_path, video, place)))

    gr.Markdown("How far is each moment of a clip from what the model predicts from the rest?")
    with gr.Row():
        with gr.Column(min_width=300):
            video = gr.Video(label="Video", height=240, elem_id="clip")
            button = gr.Button("Measure", variant="primary", elem_id="measure")
        with gr.Column(min_width=300, scale=2):
            surprise = picture(gr, "Surprise over time", "surprise")
            components = picture(gr, "Principal components of the features as colours", "video-components")
    button.click(answering(gr, folder, answer), [video], [surprise, components], api_name="surprise")
