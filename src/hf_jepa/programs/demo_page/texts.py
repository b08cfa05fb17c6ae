"""A VL-JEPA ranks texts for an image or a video."""

from pathlib import Path
from typing import Any

import torch

from ...data.vl_media import read_clip, read_image
from ...pipelines.vl_jepa import VLJepaPipeline
from ...visualization import plot_feature_pca
from .shown import picture
from .visitors import answering

_SIDE = 224


def load(repo_or_path: str, device: str | None = None) -> VLJepaPipeline:
    """The pipeline, on the GPU if there is one by default; `ValueError` as [`VLJepaPipeline.from_pretrained`]."""
    return VLJepaPipeline.from_pretrained(repo_or_path, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def ranked_texts(
    pipeline: VLJepaPipeline, image: str | None, video: str | None, query: str, candidates: str
) -> dict[str, float]:
    """
    What the page shows as ranks.

    Args:
        pipeline ([`VLJepaPipeline`]).
        image, video (`str`, *optional*): a file, of one of them.
        query (`str`): what is asked; empty for the processor's default.
        candidates (`str`): one a line.

    Returns:
        `dict[str, float]`: candidate -> cosine, best first.

    Raises:
        `ValueError`: for no candidates, neither or both files, or one that cannot be read.
    """
    texts = list(dict.fromkeys(line.strip() for line in candidates.splitlines() if line.strip()))
    if (image is None) == (video is None):
        raise ValueError("Give either an image or a video.")
    media = {"images": [image]} if image is not None else {"videos": [video]}
    found = pipeline.retrieve_texts(texts, query=query.strip() or None, top_k=None, **media)
    return {text: score for text, score, _ in found[0]}


def draw_pca(pipeline: VLJepaPipeline, image: str | None, video: str | None, path: Path) -> Path | None:
    """
    Draws the principal components of the X-encoder's patch tokens: of the image, or of frames of the video.

    Returns:
        `Path`: the picture; `None` where the tokens form no square grid, or an encoder of clips mixes frames.
    """
    frames = read_image(image)[None] if image is not None else read_clip(video, 6)
    if getattr(pipeline.processor, "image_processor", None) is None:
        return None
    pixels = pipeline.processor(images=list(frames))["pixel_values"]
    with torch.no_grad():
        tokens = pipeline.model.encode_vision(pixels.to(pipeline.model.device))[0].float().cpu()
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        return None
    pixels = torch.nn.functional.interpolate(pixels, size=(side * max(1, _SIDE // side),) * 2, mode="bilinear")
    return plot_feature_pca(pixels, tokens, side, path)


def add_tab(gr: Any, pipeline: VLJepaPipeline, folder: Path) -> None:
    """What the page shows of a VL-JEPA; `folder` is for pictures."""

    def answer(
        image: str | None, video: str | None, query: str, candidates: str, place: Path
    ) -> tuple[dict, str | None]:
        ranks = ranked_texts(pipeline, image, video, query, candidates)
        file = draw_pca(pipeline, image, video, place / "texts.png")
        # The label's bars take shares: cosines from -1 to 1 become 0 to 1.
        return {text: (1 + score) / 2 for text, score in ranks.items()}, file and str(file)

    gr.Markdown(
        "The model predicts the embedding of a text from an image or a video. Which of your texts is nearest to it? "
        "Bars show (1 + cosine) / 2."
    )
    with gr.Row():
        with gr.Column(min_width=300):
            image = gr.Image(type="filepath", label="Image", height=240, elem_id="seen")
            video = gr.Video(label="or video", height=240)
            query = gr.Textbox(label="Query (may be empty)", elem_id="query")
            candidates = gr.Textbox(label="Candidate texts, one a line", lines=5, elem_id="candidates")
            button = gr.Button("Rank", variant="primary", elem_id="rank")
        with gr.Column(min_width=300):
            ranks = gr.Label(label="Ranks", num_top_classes=10, elem_id="ranks")
            drawn = picture(gr, "Features: principal components as colours", "pca")
    button.click(answering(gr, folder, answer), [image, video, query, candidates], [ranks, drawn], api_name="rank")
