from .attentive_probe import attentive_probe
from .closed_form import ProbeResult, logistic_probe, ridge_probe
from .diagnostics import collapse_report, content_share, effective_rank, feature_std, lidar, rankme
from .features import extract_features, pooled_features
from .knn import knn_accuracy
from .linear_probe import linear_probe
from .low_shot import LowShotResult, low_shot_accuracy
from .retrieval import hidden_part_retrieval, pixel_retrieval, rank_of_truth
from .run import TASKS, evaluate_model, load_encoder, processor_transform

__all__ = [
    "TASKS",
    "LowShotResult",
    "ProbeResult",
    "attentive_probe",
    "collapse_report",
    "content_share",
    "effective_rank",
    "evaluate_model",
    "extract_features",
    "feature_std",
    "hidden_part_retrieval",
    "knn_accuracy",
    "lidar",
    "linear_probe",
    "load_encoder",
    "logistic_probe",
    "low_shot_accuracy",
    "pixel_retrieval",
    "pooled_features",
    "processor_transform",
    "rank_of_truth",
    "rankme",
    "ridge_probe",
]
