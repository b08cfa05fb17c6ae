from .anticipation import class_mean_recall
from .attentive_heads import VJEPA1_PROBE, train_attentive_heads
from .attentive_probe import attentive_probe
from .checkpoints import load_classifier, load_encoder, load_image_transform
from .classification import classification_accuracy
from .clips import ClipProtocol
from .closed_form import ProbeResult, logistic_probe, ridge_probe
from .diagnostics import collapse_report, content_share, effective_rank, feature_std, lidar, rankme
from .embedding_retrieval import retrieval_ranks, retrieval_report
from .features import extract_features, pooled_features
from .generation import SCORERS, execution_match, generate_responses, score_responses, sqlite_match
from .knn import knn_accuracy
from .language import evaluate_language_model, load_language_model
from .linear_probe import linear_probe
from .low_shot import LowShotResult, low_shot_accuracy
from .pairs import displacement_spectrum, linear_map_error, pair_report
from .retrieval import hidden_part_retrieval, pixel_retrieval, rank_of_truth
from .run import TASKS, evaluate_model
from .vision_language import VISION_LANGUAGE_TASKS, evaluate_vision_language

__all__ = [
    "SCORERS",
    "TASKS",
    "VISION_LANGUAGE_TASKS",
    "VJEPA1_PROBE",
    "ClipProtocol",
    "LowShotResult",
    "ProbeResult",
    "attentive_probe",
    "class_mean_recall",
    "classification_accuracy",
    "collapse_report",
    "content_share",
    "displacement_spectrum",
    "effective_rank",
    "evaluate_language_model",
    "evaluate_model",
    "evaluate_vision_language",
    "execution_match",
    "extract_features",
    "feature_std",
    "generate_responses",
    "hidden_part_retrieval",
    "knn_accuracy",
    "lidar",
    "linear_map_error",
    "linear_probe",
    "load_classifier",
    "load_encoder",
    "load_image_transform",
    "load_language_model",
    "logistic_probe",
    "low_shot_accuracy",
    "pair_report",
    "pixel_retrieval",
    "pooled_features",
    "rank_of_truth",
    "rankme",
    "retrieval_ranks",
    "retrieval_report",
    "ridge_probe",
    "score_responses",
    "sqlite_match",
    "train_attentive_heads",
]
