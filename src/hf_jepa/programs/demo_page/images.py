"""Features of an image encoder: which image is like which, and principal components as colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...data import decode_image
from ...data.transforms import ImageTransform
from ...evaluation import load_encoder, load_image_transform, pooled_features
from ...token_layouts import token_grid
from ...visualization import plot_feature_pca, plot_neighbours
from .shown import picture
from .visitors import answering


@dataclass(frozen=True)
class Images:
    """An encoder and how it reads images."""

    model: PreTrainedModel
    transform: ImageTransform


def load(repo_or_path: str, device: str | None = None) -> Images:
    """The encoder, on the GPU if there is one by default; `ValueError` if it cannot be loaded."""
    model = load_encoder(repo_or_path).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Images(model, load_image_transform(repo_or_path, model))


@torch.no_grad()
def draw_features(images: Images, files: Sequence[str], folder: Path) -> tuple[Path | None, Path | None]:
    """
    Draws the principal components of the patch tokens of at most 12 images, and, of two images or more, for the first
    three of them the others in the order of their features' cosine.

    Args:
        images ([`Images`]).
        files (`Sequence[str]`): of images.
        folder (`Path`): to write to.

    Returns:
        `tuple`: the file of components (`None` where tokens tile no image) and of neighbours.

    Raises:
        `ValueError`: for no files, or one that cannot be read.
    """
    if not files:
        raise ValueError("Give at least one image; two or more to compare.")
    try:
        pixels = torch.stack([images.transform(decode_image(str(file))) for file in files])
    except (OSError, SyntaxError) as error:
        raise ValueError(f"An image cannot be read: {error}") from error
    tokens = pooled_features(images.model, pixels.to(images.model.device), "none").float().cpu()
    try:
        grid = token_grid(tokens.shape[1], *pixels.shape[-2:], type(images.model).__name__)
        components = plot_feature_pca(pixels[:12], tokens[:12], grid, folder / "components.png")
    except ValueError:
        components = None
    neighbours = None
    if len(files) > 1:
        neighbours = plot_neighbours(pixels, tokens.mean(dim=1), folder / "neighbours.png", num_queries=3)
    return components, neighbours


def add_tab(gr: Any, images: Images, folder: Path) -> None:
    """What the page shows of an image encoder; `folder` is for pictures."""

    def answer(files: list[str] | None, place: Path) -> tuple[str | None, str | None]:
        return tuple(file and str(file) for file in draw_features(images, files or [], place))

    gr.Markdown("Which of your images are alike to the encoder, and which parts of them?")
    with gr.Row():
        with gr.Column(min_width=300):
            files = gr.File(file_count="multiple", file_types=["image"], label="Images", elem_id="images")
            button = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Column(min_width=300, scale=2):
            neighbours = picture(gr, "Nearest features", "neighbours")
            components = picture(gr, "Principal components of the patches as colours", "components")
    button.click(answering(gr, folder, answer), [files], [components, neighbours], api_name="compare")
