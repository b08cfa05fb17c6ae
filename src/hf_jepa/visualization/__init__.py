"""Pictures of a run: training curves, collapse, masks and PCA feature maps (over time for clips), prediction
similarity, hidden-part retrieval, surprise over time.

Importing this package does not import matplotlib; drawing does (`pip install 'hf-jepa[viz]'`).
"""

from .clip_masks import plot_clip_masks
from .collapse import plot_collapse
from .curves import plot_training_curves
from .features import pca_colors, plot_feature_pca, plot_prediction_similarity
from .fork import plot_fork
from .masks import plot_masks, plot_retrieval
from .pairs import plot_displacement_spectra
from .stream import plot_ranked_texts, plot_stream
from .video import plot_surprise, plot_video_pca
from .views import plot_neighbours, plot_views

__all__ = [
    "pca_colors",
    "plot_clip_masks",
    "plot_collapse",
    "plot_displacement_spectra",
    "plot_feature_pca",
    "plot_fork",
    "plot_masks",
    "plot_neighbours",
    "plot_prediction_similarity",
    "plot_ranked_texts",
    "plot_retrieval",
    "plot_stream",
    "plot_surprise",
    "plot_training_curves",
    "plot_video_pca",
    "plot_views",
]
