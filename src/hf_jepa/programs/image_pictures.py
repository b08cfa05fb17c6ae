"""The pictures that end a run on images: each function draws into a folder and returns files with their captions."""

from pathlib import Path
from typing import Any

import torch

from ..masking import visible_indices
from ..objectives import normalize_targets
from ..training import JepaTrainer
from .curves import draw_curves

FEATURE_PCA = "First three principal components of the patch features as colours."


def first_batch(trainer: JepaTrainer, source: Any, count: int = 8) -> dict[str, Any]:
    """The collator's batch of the first images of a dataset, on the model's device."""
    samples = [{**source[index], "draw": index} for index in range(min(count, len(source)))]
    device = trainer.model.device
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else [mask.to(device) for mask in value]
        for name, value in trainer.data_collator(samples).items()
    }


def stretched(images: torch.Tensor) -> torch.Tensor:
    """Normalised pixels in [0, 1], on the CPU."""
    images = images.cpu()
    return (images - images.amin()) / (images.amax() - images.amin())


def draw_mask_pictures(trainer: JepaTrainer, folder: Path) -> dict[Path, str]:
    """Training curves, masks of the first batch, PCA maps and a prediction similarity map."""
    from ..visualization import plot_feature_pca, plot_masks, plot_prediction_similarity

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).eval()
    batch = first_batch(trainer, trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset)
    grid_size = model.config.grid_size
    images = stretched(batch["pixel_values"])
    with torch.no_grad():
        output = model(**batch)
        features = model.get_features(batch["pixel_values"]).cpu()
    # Predictions live in the space of normalised targets; without each position's mean, content alone is compared.
    targets = normalize_targets(features)
    mean = targets.mean(dim=0)
    block = batch["target_mask"][0].cpu()
    context_mask, target_mask = ([mask.cpu() for mask in batch[f"{name}_mask"]] for name in ("context", "target"))
    similarity = plot_prediction_similarity(
        images,
        output.predictions[0].float().cpu() - mean[block],
        targets - mean,
        block,
        grid_size,
        folder / "prediction_similarity.png",
    )
    return {
        **draw_curves(trainer, folder),
        plot_masks(images, context_mask, target_mask, grid_size, folder / "masks.png"): (
            "What the context encoder sees, and the blocks the predictor is asked for."
        ),
        plot_feature_pca(images, features, grid_size, folder / "feature_pca.png"): FEATURE_PCA,
        similarity: "Similarity of the block predicted for the outlined place with every patch of the image.",
    }


def draw_data2vec_pictures(trainer: JepaTrainer, folder: Path) -> dict[Path, str]:
    """Training curves, block-wise masks of the first batch, PCA maps and a prediction similarity map."""
    from ..visualization import plot_feature_pca, plot_masks, plot_prediction_similarity

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).eval()
    batch = first_batch(trainer, trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset)
    rows, columns = grid_size = model.config.grid_size
    pixels, masked = batch["pixel_values"], batch["target_mask"][0]
    # One block in the middle: the mean over a scattered mask would have no place to be compared with.
    places = torch.arange(rows * columns, device=pixels.device).view(rows, columns)
    places = places[rows // 3 : rows - rows // 3, columns // 3 : columns - columns // 3]
    block = places.flatten().expand(len(pixels), -1)
    with torch.no_grad():
        predicted = model(pixels, [block]).predictions[0].float().cpu()
        targets, features = model.target_features(pixels).cpu(), model.get_features(pixels).cpu()
    # Without each position's mean, content alone is compared.
    mean, block, images = targets.mean(dim=0), block.cpu(), stretched(pixels)
    visible = [visible_indices(masked, rows * columns).cpu()]
    similarity = plot_prediction_similarity(
        images, predicted - mean[block], targets - mean, block, grid_size, folder / "prediction_similarity.png"
    )
    return {
        **draw_curves(trainer, folder),
        plot_masks(images, visible, [masked.cpu()], grid_size, folder / "masks.png"): (
            "What the student sees, and the patches that mask tokens replace."
        ),
        plot_feature_pca(images, features, grid_size, folder / "feature_pca.png"): FEATURE_PCA,
        similarity: "Similarity of what the student predicts for the outlined, masked middle with every patch.",
    }


def draw_mae_pictures(trainer: JepaTrainer, folder: Path) -> dict[Path, str]:
    """Training curves and PCA maps."""
    from ..visualization import plot_feature_pca

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).eval()
    batch = first_batch(trainer, trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset)
    features = model.get_features(batch["pixel_values"]).cpu()
    side = model.config.image_size // model.config.patch_size
    return {
        **draw_curves(trainer, folder),
        plot_feature_pca(stretched(batch["pixel_values"]), features, (side, side), folder / "feature_pca.png"): (
            FEATURE_PCA
        ),
    }


def draw_joint_embedding_pictures(trainer: JepaTrainer, folder: Path) -> dict[Path, str]:
    """Training curves, views of the first images, nearest neighbours, and PCA maps where features have places."""
    from ..evaluation import extract_features
    from ..visualization import plot_feature_pca, plot_neighbours, plot_views

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).eval()
    batch = first_batch(trainer, trainer.train_dataset)
    views = [batch["pixel_values"].cpu()]
    if "local_pixel_values" in batch:
        views.append(batch["local_pixel_values"].cpu())
    pictures = {
        **draw_curves(trainer, folder),
        plot_views(views, folder / "views.png"): "Views of the first images, as the encoder gets them.",
    }
    if trainer.eval_dataset is None:
        return pictures
    rows = torch.utils.data.Subset(trainer.eval_dataset, range(min(1000, len(trainer.eval_dataset))))
    whole = torch.stack([sample["pixel_values"] for sample in rows])
    pooled, _ = extract_features(model, rows, pool="pooled")
    drawn = plot_neighbours(whole, pooled, folder / "neighbours.png")
    pictures[drawn] = "Images and their nearest neighbours by cosine of the pooled features."
    with torch.no_grad():
        features = model.get_features(whole[:8].to(model.device)).float().cpu()
    side = round(features.shape[1] ** 0.5)
    # Pooled-only encoders and grids that do not tile the image have no map to draw.
    if side > 1 and side**2 == features.shape[1] and all(length % side == 0 for length in whole.shape[-2:]):
        pictures[plot_feature_pca(stretched(whole[:8]), features, side, folder / "feature_pca.png")] = FEATURE_PCA
    return pictures
