"""The pictures that end a run on videos."""

from pathlib import Path
from typing import Any

import torch

from ..training import JepaTrainer
from .curves import draw_curves


def first_clips(trainer: JepaTrainer, count: int = 4) -> dict[str, Any]:
    """The collator's batch of the first clips (of one length) that the run evaluates, or else trains on."""
    source = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
    samples = [{**source[index], "draw": index} for index in range(min(4 * count, len(source)))]
    longest = max(sample["pixel_values_videos"].shape[0] for sample in samples)
    samples = [sample for sample in samples if sample["pixel_values_videos"].shape[0] == longest][:count]
    batch = trainer.data_collator(samples)
    if isinstance(batch["pixel_values_videos"], list):
        batch = {name: groups[0] for name, groups in batch.items()}
    return batch


def draw_pictures(trainer: JepaTrainer, folder: Path) -> dict[Path, str]:
    """Training curves, the masks of a clip, and PCA strips, with their captions."""
    from ..models.vjepa.encoder_vjepa import grid_of
    from ..visualization import plot_clip_masks, plot_video_pca

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).eval()
    batch = first_clips(trainer)
    clips = batch["pixel_values_videos"]
    grid = grid_of(model.config.encoder_config, clips)
    with torch.no_grad():
        features = model.get_features(clips.to(model.device)).float().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    masks = batch["context_mask"], batch["target_mask"]
    return {
        **draw_curves(trainer, folder),
        plot_clip_masks(clips[0], *masks, grid, folder / "masks.png"): (
            "What the context encoder sees of a clip, and what the predictor is asked for."
        ),
        plot_video_pca(clips, features, grid, folder / "feature_pca.png"): (
            "Clips over time, and the first three principal components of their features as colours."
        ),
    }
