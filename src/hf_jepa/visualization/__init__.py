"""Pictures of a run: training curves, masks, PCA feature maps, prediction similarity, hidden-part retrieval.

Importing this package does not import matplotlib; drawing does (`pip install hf-jepa[viz]`).
"""

from .curves import plot_training_curves
from .features import pca_colors, plot_feature_pca, plot_prediction_similarity
from .masks import plot_masks, plot_retrieval

__all__ = [
    "pca_colors",
    "plot_feature_pca",
    "plot_masks",
    "plot_prediction_similarity",
    "plot_retrieval",
    "plot_training_curves",
]
