"""What the trainers here refuse before a run, instead of ignoring it or failing later."""

from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import HubStrategy


def refuse_what_is_not_kept(args: TrainingArguments, options: dict[str, Any]) -> None:
    """
    Refuses what these trainers would otherwise ignore.

    Args:
        args (`TrainingArguments`): the arguments.
        options (`dict`): what else `Trainer` was given.

    Raises:
        ValueError: naming the option and what to do instead.
    """
    refuse_several_splits(options.get("train_dataset"))
    for name in ("compute_metrics", "preprocess_logits_for_metrics"):
        if options.get(name) is not None:
            raise ValueError(
                f"`{name}` would never be called: evaluation here has no logits of classes. Leave it out; scores of "
                "your own belong in a callback's `on_evaluate`, or in a subclass's `_score`."
            )
    for name, why in (("compute_loss_func", "the model makes its own loss"), ("model_init", "give `model` instead")):
        if options.get(name) is not None:
            raise ValueError(f"`{name}` would be ignored: {why}.")
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor` is {args.label_smoothing_factor}, but the model makes its own loss, which does "
            "not smooth labels; leave it 0."
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"`train_sampling_strategy` is {args.train_sampling_strategy!r}, but samples are drawn in one order that "
            "every split of the batch shares (group_by_length would not); choose 'random' or 'sequential'."
        )
    if args.ignore_data_skip:
        raise ValueError("`ignore_data_skip` would show a resumed run samples that it has seen; leave it False.")
    if args.push_to_hub and args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
        raise ValueError(
            f"`hub_strategy` is {args.hub_strategy.value!r}, but checkpoints are not uploaded: only the release is; "
            "choose 'every_save' or 'end'."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, which would use DataParallel; start the program with "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
        )


def refuse_several_splits(train_dataset: Any) -> None:
    """
    Raises:
        ValueError: for a dict of datasets, as `load_dataset` gives it without a split.
    """
    if isinstance(train_dataset, dict):
        names = ", ".join(repr(name) for name in train_dataset)
        raise ValueError(f"`train_dataset` is a dict of datasets; choose one: `datasets[...]` with one of {names}.")


def refuse_prediction(trainer: Any, *args: Any, **kwargs: Any) -> None:
    """
    Stands for `Trainer.predict`.

    Raises:
        ValueError: always; there are neither logits nor labels to return.
    """
    raise ValueError(
        f"{type(trainer).__name__} has no logits to return: `evaluate` scores a dataset; features are those of "
        "`model.get_features`, and `hf_jepa.evaluation` makes answers."
    )


def refuse_without_metric(args: TrainingArguments, eval_dataset: Any) -> None:
    """
    Refuses to choose the best of several checkpoints by a score that no evaluation has.

    Args:
        args (`TrainingArguments`): the arguments.
        eval_dataset: a dict of datasets, whose names are in those of the scores, or another.

    Raises:
        ValueError: naming scores as they are called.
    """
    chooses = args.load_best_model_at_end or args.save_strategy == "best"
    if not chooses or not isinstance(eval_dataset, dict):
        return
    metric = args.metric_for_best_model.removeprefix("eval_")
    if not metric.startswith(tuple(f"{name}_" for name in eval_dataset)):
        names = ", ".join(f"'eval_{name}_{metric}'" for name in eval_dataset)
        raise ValueError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, but scores of several evaluation sets have "
            f"their names: choose one of {names}."
        )


def refuse_half_precision(model: PreTrainedModel, otherwise: str = "") -> None:
    """
    Args:
        model (`PreTrainedModel`).
        otherwise (`str`): what else can be done.

    Raises:
        ValueError: for a parameter that trains below float32.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"`{name}` is trained in {parameter.dtype}, where most updates at the usual learning rates are "
                f"rounded away. Load the model with `dtype=torch.float32` and pass `bf16=True`{otherwise}."
            )


def refuse_random_teacher(model: PreTrainedModel) -> None:
    """
    Keeps a run from learning to predict noise.

    Raises:
        ValueError: if the model's frozen teacher was never given weights.
    """
    if getattr(model, "teacher_is_random", False):
        raise ValueError(
            "The frozen teacher has random weights: call `model.load_teacher(encoder)` (an id, a folder or a model) "
            "before training."
        )
