import torch
from torch.nn import functional as F


def check_split(features: torch.Tensor, labels: torch.Tensor, name: str) -> None:
    """Raises ValueError unless features `(n, ...)` and integer labels `(n,)` from 0 on belong together."""
    if labels is None or labels.ndim != 1 or len(labels) != len(features) or len(labels) == 0:
        shape = None if labels is None else tuple(labels.shape)
        raise ValueError(f"{name} has features of shape {tuple(features.shape)} but labels of shape {shape}.")
    if labels.is_floating_point() or labels.min() < 0:
        raise ValueError(f"{name} labels must be integers from 0 on, got {labels.dtype} from {labels.min().item()}.")
    # NaN is the extreme of what holds one; `isfinite` of each value takes ten times as long.
    if features.numel() and not torch.isfinite(torch.stack(features.aminmax())).all():
        raise ValueError(f"{name} features hold NaN or infinite values.")


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> float:
    """
    Accuracy of a weighted cosine k-nearest-neighbour classifier: each neighbour votes with
    `exp(similarity / temperature)` (Wu et al. 2018, as DINO's evaluation).

    Args:
        train_features (`torch.FloatTensor` of shape `(n, ...)`): Flattened to vectors if they have more dimensions.
        train_labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 on.
        test_features (`torch.FloatTensor` of shape `(m, ...)`): As `train_features`.
        test_labels (`torch.LongTensor` of shape `(m,)`): As `train_labels`.
        k (`int`): Neighbours.
        temperature (`float`): Of the votes.
        chunk_size (`int`): Test rows at a time.

    Returns:
        `float`: Share of test rows classified rightly, in [0, 1].

    Raises:
        ValueError: If shapes do not fit, features are not finite, `k` exceeds `n` or the temperature is not positive.
    """
    check_split(train_features, train_labels, "train")
    check_split(test_features, test_labels, "test")
    if not 1 <= k <= len(train_labels):
        raise ValueError(f"k must be between 1 and the {len(train_labels)} train rows, got {k}.")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    bank = F.normalize(train_features.flatten(1).float(), dim=1).T.contiguous()
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    num_right = 0
    for start in range(0, len(test_labels), chunk_size):
        queries = F.normalize(test_features[start : start + chunk_size].flatten(1).float(), dim=1)
        similarities, neighbours = (queries @ bank).topk(k, dim=1)
        # Relative to the nearest: the ranking is the same and exp cannot overflow at low temperatures.
        weights = ((similarities - similarities[:, :1]) / temperature).exp()
        votes = torch.zeros(len(queries), num_classes, device=weights.device)
        votes.scatter_add_(1, train_labels[neighbours].long(), weights)
        num_right += int((votes.argmax(dim=1) == test_labels[start : start + chunk_size]).sum())
    return num_right / len(test_labels)
