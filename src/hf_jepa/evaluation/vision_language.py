"""Evaluation of a VL-JEPA on a dataset: zero-shot classification, retrieval both ways, question answering."""

from pathlib import Path
from typing import Any

import torch

from ..data.loading import open_vision_texts
from ..data.manifests import resolve_paths
from ..data.train_and_test import SplitChoice
from ..pipelines.vl_jepa import VLJepaPipeline, rank
from .embedding_retrieval import retrieval_report

VISION_LANGUAGE_TASKS = ("zero-shot", "retrieval", "vqa")


def evaluate_vision_language(
    repo_or_path: str | Path,
    dataset: str | Path,
    task: str = "zero-shot",
    split: str | None = None,
    image_column: str = "image",
    video_column: str = "video",
    label_column: str = "label",
    text_column: str = "text",
    answer_column: str = "answer",
    candidates_column: str = "candidates",
    query: str | None = None,
    template: str = "{}",
    batch_size: int = 16,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    command: str | None = None,
) -> dict[str, Any]:
    """
    Evaluates a [`~hf_jepa.VLJepaModel`] with its processor.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder of both.
        dataset (`str` or `Path`): what [`~hf_jepa.data.load_vision_text_dataset`] takes; paths in a manifest start
            from its folder.
        task (`str`): `"zero-shot"`: class names as candidates, accuracy. `"retrieval"`: the text of each image or clip
            among all, and the other way. `"vqa"`: the answer to each row's question among candidates, accuracy.
        split (`str`, *optional*): of the dataset, slices included; by default `"test"`, or the only one there is.
        image_column, video_column (`str`): the dataset has one of them, and the video column is taken where both are.
        label_column (`str`): zero-shot: class labels with names, or names.
        text_column (`str`): of texts to retrieve, or of questions.
        answer_column, candidates_column (`str`): question answering: the right answer, and lists of candidates;
            without that column, all answers of the split.
        query (`str`, *optional*): what is asked of every image or clip; the processor's default where there is none.
        template (`str`): what is encoded of a class name.
        batch_size (`int`): images, clips or texts at a time.
        limit (`int`, *optional*): use this many rows, drawn with `seed`.
        seed (`int`): of the draw.
        device (`str`, *optional*): the GPU if there is one by default.
        revision (`str`, *optional*), subfolder (`str`): of the model.
        command (`str`, *optional*): the command line, to be recorded.

    Returns:
        `dict`: `model`, `data` and `evaluations`, as in `results.json`.

    Raises:
        `ValueError`: for an unknown task, a dataset without the columns or rows, or a model that cannot be loaded.
    """
    if task not in VISION_LANGUAGE_TASKS:
        raise ValueError(f"task must be one of {', '.join(VISION_LANGUAGE_TASKS)}, got {task!r}.")
    choice = SplitChoice(dataset, test_split=split, max_test=limit, seed=seed)
    rows, visual, split = _load_rows(choice, (video_column, image_column), label_column, task)
    needed = {"zero-shot": [label_column], "retrieval": [text_column], "vqa": [text_column, answer_column]}[task]
    if missing := [name for name in needed if name not in rows.column_names]:
        raise ValueError(f"{dataset} has no column {missing[0]!r}, but {sorted(rows.column_names)}.")
    if not len(rows):
        raise ValueError(f"Split {split!r} of {dataset} has no rows.")
    options = {"revision": revision} if revision else {}
    options |= {"subfolder": subfolder} if subfolder else {}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = VLJepaPipeline.from_pretrained(str(repo_or_path), device, batch_size, **options)

    asked = list(rows[text_column]) if task == "vqa" else query
    embeds = _encode_rows(pipeline, rows, visual, visual == video_column, asked)
    if task == "retrieval":
        found, classes = _retrieval(pipeline, embeds, list(rows[text_column])), None
    elif task == "vqa":
        candidates = rows[candidates_column] if candidates_column in rows.column_names else None
        found, classes = _question_answering(pipeline, embeds, list(rows[answer_column]), candidates), None
    else:
        labels, names = _class_names(rows, label_column)
        found, classes = _zero_shot(pipeline, embeds, labels, names, template), len(names)
    entry = {
        "task": task,
        "dataset": str(dataset),
        "split": split,
        "num_examples": len(rows),
        "features": None if query is None else f"query: {query}",
        "seed": seed,
        "command": command,
    }
    if classes is not None:
        entry["num_labels"] = classes
    facts = {"model_type": pipeline.model.config.model_type, "num_parameters": pipeline.model.num_parameters()}
    return {
        "model": {"name": str(repo_or_path), **facts},
        "data": {"name": str(dataset), "split": split, "num_examples": len(rows)},
        "evaluations": [{**entry, "metric": metric, "value": value} for metric, value in found.items()],
    }


def _load_rows(choice: SplitChoice, columns: tuple[str, ...], label_column: str, task: str) -> tuple[Any, str, str]:
    """Rows with undecoded media, the name of the visual column, and what was taken."""
    import datasets

    def opener(name: str | Path, split: str | None) -> Any:
        labelled = {"other_column": label_column, "is_text": False} if task == "zero-shot" else {}
        return open_vision_texts(name, split, **labelled)

    chosen = choice.rows(opener, columns[0], None, fits=False)
    rows, root = chosen.test, opener(choice.test_name, choice.test_split).root
    visual = next((name for name in columns if name in rows.column_names), None)
    if visual is None:
        raise ValueError(f"{choice.dataset} has none of the columns {list(columns)}, but {sorted(rows.column_names)}.")
    if isinstance(rows.features[visual], (datasets.Image, datasets.Video)):
        # As bytes and paths, so that a broken file is named by us.
        rows = rows.cast_column(visual, type(rows.features[visual])(decode=False))
    elif root is not None:
        rows = resolve_paths(rows, visual, root)
    return rows, visual, chosen.split


def _encode_rows(
    pipeline: VLJepaPipeline, rows: Any, visual: str, is_video: bool, query: str | list[str] | None
) -> torch.Tensor:
    """Batch by batch, so that a dataset of videos never stands in memory."""
    parts = []
    for start in range(0, len(rows), pipeline.batch_size):
        media = rows[start : start + pipeline.batch_size][visual]
        asked = query[start : start + pipeline.batch_size] if isinstance(query, list) else query
        try:
            parts.append(pipeline.encode(query=asked, **{"videos" if is_video else "images": media}))
        except ValueError as error:
            raise ValueError(f"Among rows {start} to {start + len(media) - 1}: {error}") from error
    return torch.cat(parts)


def _class_names(rows: Any, column: str) -> tuple[list[int], list[str]]:
    values, feature = list(rows[column]), rows.features[column]
    if hasattr(feature, "names"):
        return values, [name.replace("_", " ") for name in feature.names]
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"Column {column!r} holds neither names of classes nor labels that have names.")
    names = sorted(set(values))
    return [names.index(value) for value in values], names


def _zero_shot(
    pipeline: VLJepaPipeline, embeds: torch.Tensor, labels: list[int], names: list[str], template: str
) -> dict[str, float]:
    if "{}" not in template:
        raise ValueError(f'`template` must hold "{{}}", where the class name stands, got {template!r}.')
    texts = pipeline.encode_text([template.format(name) for name in names])
    order = (embeds @ texts.T).argsort(dim=1, descending=True, stable=True)
    right = order == torch.tensor(labels)[:, None]
    found = {"accuracy": right[:, 0].double().mean().item()}
    if len(names) > 5:
        found["top-5 accuracy"] = right[:, :5].any(dim=1).double().mean().item()
    return found


def _retrieval(pipeline: VLJepaPipeline, embeds: torch.Tensor, texts: list[str]) -> dict[str, float]:
    """Rows with the same text are each other's right answers."""
    unique = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    groups = torch.tensor([unique[text] for text in texts])
    targets = pipeline.encode_text(list(unique))[groups]
    report = retrieval_report(embeds, targets, groups)
    return {
        name.replace("reverse_", "text-to-media ").replace("_", " "): value
        for name, value in report.items()
        if "median" not in name
    }


def _question_answering(
    pipeline: VLJepaPipeline, embeds: torch.Tensor, answers: list[str], candidates: Any
) -> dict[str, float]:
    everyone = [sorted(set(answers))] * len(answers) if candidates is None else list(candidates)
    for place, (answer, given) in enumerate(zip(answers, everyone, strict=True)):
        if answer not in (given or []):
            raise ValueError(f"Row {place}: the answer {answer!r} is not among its candidates {given}.")
    texts = list(dict.fromkeys(text for given in everyone for text in given))
    places = {text: place for place, text in enumerate(texts)}
    encoded = pipeline.encode_text(texts)
    right = 0
    for embed, answer, given in zip(embeds, answers, everyone, strict=True):
        best = rank(embed[None], encoded[[places[text] for text in given]], given, top_k=1)[0][0]
        right += best.text == answer
    return {"accuracy": right / len(answers)}
