from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from ..data.dataset import SeededImageDataset
from ..data.loading import open_images, open_videos
from ..data.train_and_test import SplitChoice
from ..encoders import is_video_encoder
from .attentive_heads import train_attentive_heads
from .checkpoints import load_classifier, load_encoder, load_image_transform, released_pooling
from .classification import classification_accuracy
from .clips import ClipProtocol, clip_dataset, clip_transform
from .closed_form import ridge_probe
from .diagnostics import collapse_report
from .features import Pool, extract_features
from .knn import knn_accuracy
from .linear_probe import linear_probe
from .low_shot import low_shot_accuracy

Task = Literal["knn", "linear", "ridge", "attentive", "lowshot", "collapse", "classification"]
TASKS: tuple[str, ...] = get_args(Task)
FITTED = ("knn", "linear", "ridge", "attentive", "lowshot")


def evaluate_model(
    repo_or_path: str | Path,
    dataset: str | Path | None = None,
    task: Task = "knn",
    train_split: str | None = None,
    test_split: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    batch_size: int = 64,
    max_train: int | None = None,
    max_test: int | None = None,
    device: str | None = None,
    bf16: bool = False,
    num_workers: int = 0,
    seed: int = 0,
    k: int = 20,
    revision: str | None = None,
    subfolder: str = "",
    imagenet_statistics: bool = False,
    num_probe_blocks: int = 1,
    clips: ClipProtocol | None = None,
    video_column: str = "video",
    train_dataset: str | Path | None = None,
    test_dataset: str | Path | None = None,
    holdout: float | None = None,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """
    Evaluates the frozen features of any vision checkpoint that `AutoModel` loads, on images or, with `clips`, on
    videos: of video encoders, and of image encoders, which see frames one by one. Or a fine-tuned classifier.

    Images are read by the checkpoint's own processor, as the probes of training read them.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder of the model.
        dataset (`str` or `Path`, *optional*): What [`~hf_jepa.data.load_image_dataset`] takes, or, with `clips`,
            [`~hf_jepa.data.load_video_dataset`].
        task (`str`): `"knn"`: weighted k-NN. `"linear"`: the linear protocol of I-JEPA's paper. `"ridge"`: a linear
            probe in closed form, which is what training measures. `"attentive"`: V-JEPA 2's 20 attentive heads, the
            best on rows held out of train. `"lowshot"`: ridge probes on 1 % and 10 % of the labels, five draws.
            `"collapse"`: RankMe, stds, ...; needs no labels and no train split. `"classification"`: the predictions of
            a fine-tuned classifier; needs no train split.
        train_split (`str`, *optional*): Split that the probes are fitted on, slices included; by default `"train"`.
        test_split (`str`, *optional*): Split that is scored; by default `"test"`, or the only one where nothing is
            fitted or `test_dataset` is given.
        image_column (`str`): Column of images.
        label_column (`str`): Column of labels: integers, `ClassLabel`s or names.
        batch_size (`int`): Images at a time.
        max_train (`int`, *optional*): Use this many train images, drawn with `seed`.
        max_test (`int`, *optional*): Use this many test images, drawn with `seed`.
        device (`str`, *optional*): `"cpu"`, `"cuda"`, ...; the GPU if there is one by default.
        bf16 (`bool`): Compute features under bfloat16 autocast.
        num_workers (`int`): Processes that load images.
        seed (`int`): Seed of subsets and probes.
        k (`int`): Neighbours of `"knn"`.
        revision (`str`, *optional*): Revision of the model's repository.
        subfolder (`str`): Folder of the model inside the repository, such as `"pretraining"`.
        imagenet_statistics (`bool`): Normalise with ImageNet's mean and std instead of the processor's. Meta's I-JEPA
            repositories need it: their processors say 0.5, the models were trained with ImageNet's.
        num_probe_blocks (`int`): Blocks of `"attentive"`: 1 is cross-attention alone, which is quick; 4 is V-JEPA 2's
            published probe, with 3 self-attention blocks on all tokens before it.
        clips ([`ClipProtocol`], *optional*): Evaluates on these clips of videos. `"attentive"` pools the tokens of all
            segments together and averages predictions over views; the other tasks average features over both.
        video_column (`str`): Column of videos; a column of images becomes still clips.
        train_dataset (`str` or `Path`, *optional*), test_dataset (`str` or `Path`, *optional*): Instead of `dataset`.
        holdout (`float`, *optional*): Share of the train split, of every class alike, that is drawn with `seed` and
            scored, for datasets without a test split.
        progress (`bool`): Show progress bars.
        command (`str`, *optional*): The command line, to be recorded.

    Returns:
        `dict`: `model`, `data` and `evaluations` as in `results.json`; one entry of `evaluations` per number.

    Raises:
        ValueError: If the task is unknown, the dataset lacks a column or a split, its splits share rows, test has
            classes that train lacks, model or processor cannot be loaded, or a model of videos gets no `clips`.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
    if num_probe_blocks < 1:
        raise ValueError(f"num_probe_blocks must be at least 1, got {num_probe_blocks}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    choice = SplitChoice(
        dataset, train_split, test_split, train_dataset, test_dataset, holdout, max_train, max_test, seed
    )
    label = None if task == "collapse" else label_column
    # The dataset first: a wrong column must not cost the download of a model.
    opener, column = (open_images, image_column) if clips is None else (open_videos, video_column)
    rows = choice.rows(lambda name, split: opener(name, split, column, label), column, label, fits=task in FITTED)
    data = {name: part for name, part in (("train", rows.train), ("test", rows.test)) if part is not None}
    if task == "classification":
        model = load_classifier(repo_or_path, clips is not None, revision, subfolder).to(device)
    else:
        model = load_encoder(repo_or_path, revision, subfolder).to(device)
    if clips is None and is_video_encoder(model):
        raise ValueError(
            f"{type(model).__name__} takes clips: say which (num_frames, ...). Images become still clips with "
            f'video_column="{image_column}"; in V-JEPA\'s evaluations they have 16 frames.'
        )
    if clips is None:
        transform = load_image_transform(repo_or_path, model, revision, imagenet_statistics)
        samples = {name: SeededImageDataset(part, transform, image_column, label) for name, part in data.items()}
    else:
        # Several views are for testing.
        crops = {name: clips.views if name == "test" else 1 for name in data}
        transforms = {
            name: clip_transform(repo_or_path, model, crops[name], revision, imagenet_statistics) for name in data
        }
        samples = {
            name: clip_dataset(part, clips, transforms[name], video_column, label) for name, part in data.items()
        }
    reading = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    dtype = torch.bfloat16 if bf16 else None
    if task == "classification":
        names = getattr(rows.test.features[label], "names", None)
        found = classification_accuracy(model, samples["test"], names, dtype=dtype, **reading)
        entries = [
            {"metric": metric, "value": value, "features": "own predictions"} for metric, value in found.items()
        ]
    else:
        pooling = None if clips is not None else released_pooling(repo_or_path, revision, subfolder)
        pool = _pool_for(task, model, clips is not None, pooling)
        features = {
            name: extract_features(model, part, pool=pool, dtype=dtype, pooling=pooling or "auto", **reading)
            for name, part in samples.items()
        }
        entries = _score(task, features, pool, k, seed, progress, num_probe_blocks, device)
    evaluations = [
        {
            "task": task,
            "dataset": str(choice.test_name),
            "split": rows.split,
            "num_examples": len(rows.test),
            "seed": seed,
            "command": command,
            **({} if clips is None else {"clips": clips.description()}),
            **entry,
        }
        for entry in entries
    ]
    return {
        "model": {
            "name": str(repo_or_path),
            "model_type": model.config.model_type,
            "num_parameters": model.num_parameters(),
        },
        "data": {"name": str(choice.test_name), "split": rows.split, "num_examples": len(rows.test)},
        "evaluations": evaluations,
    }


def _pool_for(task: str, model: PreTrainedModel, is_video: bool, pooling: str | None) -> Pool:
    if task in ("attentive", "collapse"):
        return "none"
    if is_video:
        return "mean"
    if task != "linear":
        # What the probes of training read.
        return "mean" if pooling is None and not hasattr(model, "get_pooled_features") else "pooled"
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", 0) or 0
    encoder_config = getattr(model.config, "encoder_config", None)
    if encoder_config is not None:
        depth = getattr(encoder_config, "num_hidden_layers", 0)
    return "last4" if depth >= 4 else "mean"


def _score(
    task: str,
    features: dict[str, tuple[torch.Tensor, torch.Tensor]],
    pool: str,
    k: int,
    seed: int,
    progress: bool,
    num_probe_blocks: int,
    device: str,
) -> list[dict[str, Any]]:
    if task == "collapse":
        tokens = features["test"][0]
        report = collapse_report(tokens.flatten(1, -2))  # views are more tokens of the same clip
        verdict = report.pop("verdict")
        numbers = {name: value for name, value in report.items() if name not in ("num_examples", "width")}
        # A broken model has no numbers, and its verdict must not get lost.
        numbers = numbers or {"rankme": None}
        return [
            {"metric": name, "value": number, "features": "mean", "verdict": verdict}
            for name, number in numbers.items()
        ]
    (train, train_labels), (test, test_labels) = features["train"], features["test"]
    if task == "knn":
        value = knn_accuracy(train, train_labels, test, test_labels, k=min(k, len(train_labels)))
        return [{"metric": "accuracy", "value": value, "features": pool}]
    if task == "ridge":
        value = ridge_probe(train, train_labels, test, test_labels, seed=seed).accuracy
        return [{"metric": "accuracy", "value": value, "features": pool}]
    if task == "attentive":
        result = train_attentive_heads(
            train,
            train_labels,
            test,
            test_labels,
            num_self_attention_layers=num_probe_blocks - 1,
            seed=seed,
            device=device,
            progress=progress,
        )
        entry = {"metric": "accuracy", "value": result.accuracy, "features": "tokens"}
        return [entry | {"num_probe_blocks": num_probe_blocks, **result.chosen}]
    if task == "lowshot":
        entries = []
        for amount in (0.01, 0.1):
            result = low_shot_accuracy(train, train_labels, test, test_labels, amount, seed=seed)
            name = f"accuracy_{amount:.0%}_labels"
            entries.append({"metric": name, "value": result.mean, "std": result.std, "features": pool})
        return entries
    width = train.shape[1] // 4 if pool == "last4" else train.shape[1]
    inputs = {"last": (train[:, -width:], test[:, -width:])}
    if pool == "last4":
        inputs["last4"] = (train, test)
    result = linear_probe(
        {name: pair[0] for name, pair in inputs.items()},
        train_labels,
        {name: pair[1] for name, pair in inputs.items()},
        test_labels,
        seed=seed,
        progress=progress,
    )
    return [{"metric": "accuracy", "value": result.accuracy, "features": result.chosen["features"]}]
