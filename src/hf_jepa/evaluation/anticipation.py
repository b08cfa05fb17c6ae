import torch


def class_mean_recall(logits: torch.Tensor, labels: torch.Tensor, k: int = 5) -> float:
    """
    Class-mean recall at k, the metric of EPIC-KITCHENS-100's action anticipation (arXiv 2006.13256): the share of a
    class's rows whose class is among their k highest scores, averaged over the classes that occur.

    Args:
        logits (`torch.FloatTensor` of shape `(n, classes)`): Scores.
        labels (`torch.LongTensor` of shape `(n,)`): Classes from 0 on.
        k (`int`): Guesses per row, at most the classes.

    Returns:
        `float`: In [0, 1].

    Raises:
        ValueError: If shapes do not fit, scores are not finite, or a label or `k` is out of range.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"class_mean_recall needs scores (n, classes) and labels (n,), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if not torch.isfinite(logits).all():
        raise ValueError("The scores hold NaN or infinite values.")
    num_classes = logits.shape[1]
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"Labels must be integers in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}.")
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must be between 1 and the {num_classes} classes, got {k}.")
    hits = (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).double()
    rows = torch.bincount(labels, minlength=num_classes)
    recalled = torch.bincount(labels, weights=hits, minlength=num_classes)
    occurs = rows > 0
    return float((recalled[occurs] / rows[occurs]).mean())
