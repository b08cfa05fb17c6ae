"""The probes that a run is evaluated with."""

import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import Subset
from transformers import PreTrainedModel

from .arguments import JepaTrainingArguments


def gathered_features(
    model: PreTrainedModel, dataset: Any, batch_size: int, accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Pooled target features of a labelled dataset, each process computing its share: the vector that a joint-embedding
    model is trained on, the mean of the patch tokens of the others.

    Args:
        model ([`~hf_jepa.modeling_jepa.JepaPreTrainedModel`]): the model being trained.
        dataset (`Dataset`): samples with `pixel_values` and `label`.
        batch_size (`int`): images at a time.
        accelerator (`Accelerator`): the processes that share the work.

    Returns:
        `tuple` of features `(num_examples, width)` float32 and labels `(num_examples,)` int64, in every process.

    Raises:
        ValueError: if the samples have no labels.
    """
    from ...evaluation import extract_features

    count, world, rank = len(dataset), accelerator.num_processes, accelerator.process_index
    # Wrapped around so that every process makes the same number of forward passes, as sharded models need.
    per_process = -(-count // world)
    pool = "pooled" if hasattr(model, "get_pooled_features") else "mean"
    share = Subset(dataset, [(position * world + rank) % count for position in range(per_process)])
    with accelerator.autocast():
        features, labels = extract_features(model, share, batch_size=batch_size, pool=pool, device=accelerator.device)
    if labels is None:
        raise ValueError("The probe datasets need labels: give SeededImageDataset a `label_column`.")
    if world == 1:
        return features, labels
    parts = [
        accelerator.gather(tensor.to(accelerator.device)[None].contiguous())
        .transpose(0, 1)
        .flatten(0, 1)[:count]
        .cpu()
        for tensor in (features, labels)
    ]
    return parts[0], parts[1]


def probe_metrics(
    model: PreTrainedModel,
    train_dataset: Any,
    eval_dataset: Any,
    args: JepaTrainingArguments,
    accelerator: Accelerator,
) -> dict[str, float]:
    """
    Weighted k-NN and ridge-regression probe on pooled target features.

    Args:
        model ([`~hf_jepa.modeling_jepa.JepaPreTrainedModel`]): the model being trained.
        train_dataset (`Dataset`): labelled images that the probes are fitted on.
        eval_dataset (`Dataset`): labelled images that they are scored on.
        args ([`JepaTrainingArguments`]): batch size and neighbours.
        accelerator (`Accelerator`): the processes that share the work.

    Returns:
        `dict[str, float]`: `knn_accuracy`, `ridge_accuracy` and `runtime` in seconds, the same in every process.
    """
    from ...evaluation import knn_accuracy, ridge_probe

    start = time.perf_counter()
    batch_size = args.per_device_eval_batch_size
    train_features, train_labels = gathered_features(model, train_dataset, batch_size, accelerator)
    eval_features, eval_labels = gathered_features(model, eval_dataset, batch_size, accelerator)
    values = [0.0, 0.0]
    if accelerator.is_main_process:
        arguments = (train_features, train_labels, eval_features, eval_labels)
        neighbors = min(args.probe_num_neighbors, len(train_labels))
        values = [float(knn_accuracy(*arguments, k=neighbors)), float(ridge_probe(*arguments).accuracy)]
    # Every process decides alike about the best checkpoint.
    values = broadcast_object_list(values)
    return {
        "knn_accuracy": values[0],
        "ridge_accuracy": values[1],
        "runtime": round(time.perf_counter() - start, 4),
    }
