from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import logging

from ..data.dataset import SeededImageDataset
from ..data.loading import load_image_dataset
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from ..data.video_loading import load_video_dataset
from ..encoders import is_video_encoder
from ..models.vjepa import VJepaModel
from .attentive_heads import train_attentive_heads
from .clips import ClipProtocol, clip_dataset, clip_transform
from .closed_form import ridge_probe
from .diagnostics import collapse_report
from .features import extract_features
from .knn import knn_accuracy
from .linear_probe import linear_probe
from .low_shot import low_shot_accuracy

logger = logging.get_logger(__name__)

Task = Literal["knn", "linear", "attentive", "lowshot", "collapse"]
TASKS: tuple[str, ...] = ("knn", "linear", "attentive", "lowshot", "collapse")


def evaluate_model(
    repo_or_path: str | Path,
    dataset: str | Path,
    task: Task = "knn",
    train_split: str = "train",
    test_split: str = "test",
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
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """
    Evaluates the frozen features of any vision checkpoint that `AutoModel` loads, on images or, with `clips`, on
    videos: of video encoders, and of image encoders, which see frames one by one.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder of the model.
        dataset (`str` or `Path`): What [`~hf_jepa.data.load_image_dataset`] takes, or, with `clips`,
            [`~hf_jepa.data.load_video_dataset`].
        task (`str`): `"knn"`: weighted k-NN. `"linear"`: the paper's protocol and a ridge probe. `"attentive"`:
            V-JEPA 2's 20 attentive heads, the best on rows held out of train. `"lowshot"`: ridge probes on 1 % and
            10 % of the labels, five draws. `"collapse"`: RankMe, stds, ...; needs no labels and no train split.
        train_split (`str`): Split that the probes are fitted on.
        test_split (`str`): Split that is scored.
        image_column (`str`): Column of images.
        label_column (`str`): Column of integer labels.
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
        progress (`bool`): Show progress bars.
        command (`str`, *optional*): The command line, to be recorded.

    Returns:
        `dict`: `model`, `data` and `evaluations` as in `results.json`; one entry of `evaluations` per number.

    Raises:
        ValueError: If the task is unknown, the dataset lacks a column, model or processor cannot be loaded, or a model
            of videos gets no `clips`.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
    if num_probe_blocks < 1:
        raise ValueError(f"num_probe_blocks must be at least 1, got {num_probe_blocks}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    splits = {"test": (test_split, max_test)}
    if task != "collapse":
        splits = {"train": (train_split, max_train)} | splits
    label = None if task == "collapse" else label_column
    # The dataset first: a wrong column must not cost the download of a model.
    load, column = (load_image_dataset, image_column) if clips is None else (load_video_dataset, video_column)
    data = {name: _subset(load(dataset, split, column, label), limit, seed) for name, (split, limit) in splits.items()}
    model = load_encoder(repo_or_path, revision, subfolder).to(device)
    if clips is None and is_video_encoder(model):
        raise ValueError(
            f"{type(model).__name__} takes clips: say which (num_frames, ...). Images become still clips with "
            f'video_column="{image_column}"; in V-JEPA\'s evaluations they have 16 frames.'
        )

    if clips is None:
        transform = processor_transform(repo_or_path, model, revision, imagenet_statistics)
        samples = {name: SeededImageDataset(rows, transform, image_column, label) for name, rows in data.items()}
    else:
        # Several views are for testing.
        crops = {name: clips.views if name == "test" else 1 for name in data}
        transforms = {
            name: clip_transform(repo_or_path, model, crops[name], revision, imagenet_statistics) for name in data
        }
        samples = {
            name: clip_dataset(rows, clips, transforms[name], video_column, label) for name, rows in data.items()
        }
    pool = _pool_for(task, model, clips is not None)
    features = {
        name: extract_features(
            model,
            dataset_of_split,
            batch_size,
            pool,
            dtype=torch.bfloat16 if bf16 else None,
            num_workers=num_workers,
            progress=progress,
        )
        for name, dataset_of_split in samples.items()
    }
    evaluations = [
        {
            "task": task,
            "dataset": str(dataset),
            "split": test_split,
            "num_examples": len(data["test"]),
            "seed": seed,
            "command": command,
            **({} if clips is None else {"clips": clips.description()}),
            **entry,
        }
        for entry in _score(task, features, pool, k, seed, progress, num_probe_blocks, device)
    ]
    return {
        "model": {
            "name": str(repo_or_path),
            "model_type": model.config.model_type,
            "num_parameters": model.num_parameters(),
        },
        "data": {"name": str(dataset), "split": test_split, "num_examples": len(data["test"])},
        "evaluations": evaluations,
    }


def load_encoder(repo_or_path: str | Path, revision: str | None = None, subfolder: str = "") -> PreTrainedModel:
    """
    Loads a vision model by its config, in float32 and eval mode. V-JEPA 2 is loaded as [`VJepaModel`], which is the
    same and takes clips of every size.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder.
        revision (`str`, *optional*): Revision of the repository.
        subfolder (`str`): Folder inside it.

    Returns:
        `PreTrainedModel`: In eval mode.

    Raises:
        ValueError: If there is no such model, or weights that it needs are missing from the checkpoint.
    """
    source = {"revision": revision, "subfolder": subfolder}
    try:
        config = AutoConfig.from_pretrained(str(repo_or_path), **source)
        auto_class = VJepaModel if config.model_type == "vjepa2" else AutoModel
        model, info = auto_class.from_pretrained(
            str(repo_or_path), **source, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot load a model from {str(repo_or_path)!r}: {error}") from error
    # Poolers do not touch the patch tokens, and many checkpoints come without one.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(f"{repo_or_path} lacks weights of {type(model).__name__}: {', '.join(missing[:5])} ...")
    if getattr(model.config, "model_type", "") == "vit_mae" and model.config.mask_ratio > 0:
        # It would drop three quarters of the patches at random.
        model.config.mask_ratio = 0.0
    return model.eval()


def processor_transform(
    repo_or_path: str | Path, model: PreTrainedModel, revision: str | None = None, imagenet_statistics: bool = False
) -> ImageTransform:
    """
    The checkpoint's own image processor as a transform.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder.
        model (`PreTrainedModel`): Its model: tells grey from colour.
        revision (`str`, *optional*): Revision of the repository.
        imagenet_statistics (`bool`): Use ImageNet's mean and std instead of the processor's.

    Returns:
        `Callable`: PIL image -> float32 tensor `(C, H, W)`.

    Raises:
        ValueError: If the checkpoint has no image processor.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(str(repo_or_path), revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(repo_or_path)!r} has no usable image processor: {error}") from error
    mean = getattr(processor, "image_mean", None) or IMAGENET_MEAN
    if imagenet_statistics:
        processor.image_mean, processor.image_std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    elif model.config.model_type == "ijepa" and list(mean) == [0.5, 0.5, 0.5]:
        logger.warning(
            "This I-JEPA checkpoint's processor normalises with mean and std 0.5. Meta's were pretrained with "
            "ImageNet's statistics: if this is one of theirs, set imagenet_statistics."
        )
    num_channels = getattr(model.config, "num_channels", len(mean))
    return partial(_process, processor=processor, mode="L" if num_channels == 1 else "RGB")


def _process(image: Image.Image, processor: Any, mode: str) -> torch.Tensor:
    pixels = np.array(image.convert(mode))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    # Processors guess the layout from the shape, and guess wrong for grey and for tiny images.
    batch = processor(images=pixels, input_data_format="channels_first", return_tensors="pt")
    return batch["pixel_values"][0].float()


def _pool_for(task: str, model: PreTrainedModel, is_video: bool) -> Literal["mean", "none", "last4"]:
    if task in ("attentive", "collapse"):
        return "none"
    if is_video:
        return "mean"
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", 0) or 0
    encoder_config = getattr(model.config, "encoder_config", None)
    if encoder_config is not None:
        depth = getattr(encoder_config, "num_hidden_layers", 0)
    return "last4" if task == "linear" and depth >= 4 else "mean"


def _subset(rows: Any, limit: int | None, seed: int) -> Any:
    if limit is None or limit >= len(rows):
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[:limit]))


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
    entries = [{"metric": "accuracy", "value": result.accuracy, "features": result.chosen["features"]}]
    for name, pair in inputs.items():
        value = ridge_probe(pair[0], train_labels, pair[1], test_labels, seed=seed).accuracy
        entries.append({"metric": "accuracy_ridge", "value": value, "features": name})
    return entries
