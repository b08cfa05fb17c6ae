"""Model cards, rendered from `results.json` alone: a number that is not in the file does not appear on the card."""

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from ..file_errors import naming
from ..methods import METHODS, Method
from .sources import HUB_NAME, is_hub_name

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TEXT_TEMPLATE = Path(__file__).with_name("card_text_template.md")
_VL_TEMPLATE = Path(__file__).with_name("card_vl_template.md")
_TEMPLATES = {"text": _TEXT_TEMPLATE, "vision-language": _VL_TEMPLATE}
NOT_EVALUATED = "not evaluated"
NOT_MEASURED = "not measured"
_ROW = ("task", "dataset", "split", "features", "metric")


def _number(value: float | int | None, missing: str = NOT_EVALUATED) -> str:
    if value is None:
        return missing
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _summary(values: list[float]) -> str:
    """Mean, and over several seeds the standard deviation."""
    if not values:
        return NOT_EVALUATED
    if len(values) == 1:
        return _number(values[0])
    return f"{_number(statistics.fmean(values))} ± {statistics.stdev(values):.2g} ({len(values)} seeds)"


def _grouped(evaluations: Iterable[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for entry in evaluations:
        groups.setdefault(tuple(entry.get(key) for key in _ROW), []).append(entry)
    return groups


def _values(entries: list[dict[str, Any]]) -> list[float]:
    return [entry["value"] for entry in entries if entry.get("value") is not None]


def _results_table(results: dict[str, Any]) -> list[list[str]]:
    """Header and rows: one column for this model and one for each baseline."""
    evaluations = _grouped(results.get("evaluations") or [])
    baselines: dict[str, dict[tuple, list]] = {}
    for entry in results.get("baselines") or []:
        baselines.setdefault(entry["name"], {}).setdefault(tuple(entry.get(key) for key in _ROW), []).append(entry)
    rows = list(evaluations) + [key for group in baselines.values() for key in group if key not in evaluations]
    table = [["task", "dataset", "examples", "features", "metric", "this model", *baselines]]
    for row in dict.fromkeys(rows):
        task, dataset, split, features, metric = row
        everyone = [
            *evaluations.get(row, []),
            *(entry for group in baselines.values() for entry in group.get(row, [])),
        ]
        count = next((entry["num_examples"] for entry in everyone if entry.get("num_examples") is not None), None)
        values = [_summary(_values(group.get(row, []))) for group in (evaluations, *baselines.values())]
        named = f"{dataset} ({split})" if split else str(dataset)
        table.append([str(task), named, _number(count, "not recorded"), features or "-", str(metric), *values])
    return table


def _library(model: dict[str, Any]) -> str:
    """What loads the root of a release."""
    if model.get("is_adapter"):
        return "peft"
    needs_import = model.get("needs_hf_jepa") or model.get("num_labels") or model.get("modality") == "vision-language"
    return "hf_jepa" if needs_import else "transformers"


def _pipeline(results: dict[str, Any]) -> str:
    if results["model"].get("num_labels"):
        return "video-classification"
    # The Hub has no task for the features of videos alone, nor for those of images and texts together.
    pipelines = {"text": "text-generation", "video": "feature-extraction", "vision-language": "feature-extraction"}
    return pipelines.get(results["model"].get("modality"), "image-feature-extraction")


def _eval_results(results: dict[str, Any]) -> list[EvalResult]:
    entries, pipeline = [], _pipeline(results)
    for (task, dataset, split, features, metric), group in _grouped(results.get("evaluations") or []).items():
        if values := _values(group):
            entries.append(
                EvalResult(
                    task_type=pipeline,
                    task_name=pipeline.replace("-", " ").capitalize(),
                    dataset_type=dataset,
                    dataset_name=dataset,
                    dataset_split=split,
                    metric_type=metric,
                    # The Hub groups entries by task and data set, so the protocol goes into the metric's name.
                    metric_name=f"{task} {metric} ({features})" if features else f"{task} {metric}",
                    metric_value=round(statistics.fmean(values), 6),
                )
            )
    return entries


def eval_result_files(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """
    What the Hub reads beside the card, of scores on data sets that it has: file name -> content for YAML.

    Args:
        results (`dict`): see [`render_card`].
    """
    files: dict[str, list[EvalResultEntry]] = {}
    environment, data = (results.get(section) or {} for section in ("environment", "data"))
    for (task, dataset, split, features, metric), group in _grouped(results.get("evaluations") or []).items():
        values = _values(group)
        if not values or not is_hub_name(dataset):
            continue
        notes = [f"{metric} on {split}" if split else metric, features, f"mean of {len(values)} seeds"]
        files.setdefault(f"{dataset.replace('/', '--')}.yaml", []).append(
            EvalResultEntry(
                dataset_id=dataset,
                task_id=re.sub(r"\W+", "_", f"{task}_{metric}"),
                value=round(statistics.fmean(values), 6),
                dataset_revision=data.get("revision") if data.get("name") == dataset else None,
                date=environment.get("date"),
                notes="; ".join(note for note in notes[: 2 + (len(values) > 1)] if note),
            )
        )
    return {name: eval_result_entries_to_yaml(entries) for name, entries in files.items()}


def _compute_lines(compute: dict[str, Any]) -> list[str]:
    lines = []
    for key, label in (("gpu_seconds", "GPU time"), ("cpu_seconds", "CPU time")):
        if compute.get(key) is not None:
            lines.append(f"{label}: {_number(float(compute[key]))} s ({_number(compute[key] / 3600)} h)")
    energy = compute.get("energy_kwh")
    lines = lines or [f"Compute time: {NOT_MEASURED}"]
    lines.append(f"Energy: {NOT_MEASURED if energy is None else _number(float(energy)) + ' kWh'}")
    if compute.get("energy_note"):
        lines[-1] += f" ({compute['energy_note']})"
    return lines


def _class_name(path: str | type) -> str:
    """The name of a class that is given by its dotted path, or itself."""
    return path.partition(":")[2] if isinstance(path, str) else path.__name__


def _size(config: dict[str, Any]) -> str:
    """Pixels of a side, or height x width."""
    size = config.get("crop_size") or config.get("image_size") or ""
    return " x ".join(map(str, size)) if isinstance(size, list | tuple) else str(size)


def _example(example: str | list[dict[str, str]] | None) -> str:
    """A conversation for the snippet, as Python."""
    if isinstance(example, list):
        return json.dumps(example, ensure_ascii=False)
    return json.dumps([{"role": "user", "content": example or "lines with the string 'dog'"}], ensure_ascii=False)


def _sampling(config: dict[str, Any], data: dict[str, Any]) -> str:
    """How clips were cut from videos, in words."""
    frames = config.get("frames_per_clip")
    clips = f"clips of {frames} frames" if frames else "clips"
    if data.get("fps"):
        return f"{clips} at {_number(data['fps'])} per second"
    return f"{clips}, one frame out of {data['frame_step']}" if data.get("frame_step") else clips


_SECTIONS: dict[str, type] = {
    **dict.fromkeys(("model", "data", "training", "environment", "compute", "conversion"), dict),
    **dict.fromkeys(("evaluations", "baselines", "pictures", "limits"), list),
    **dict.fromkeys(("licence", "source_licence"), str),
}


def _check(results: dict[str, Any]) -> None:
    wrong = [
        f"{name} is a {type(results[name]).__name__}, not a {kind.__name__}"
        for name, kind in _SECTIONS.items()
        if results.get(name) is not None and not isinstance(results[name], kind)
    ]
    wrong += [
        f"{name}[{index}] is a {type(entry).__name__}, not a {kind.__name__}"
        for name, kind in (("evaluations", dict), ("baselines", dict), ("pictures", dict), ("limits", str))
        for index, entry in enumerate(() if wrong else results.get(name) or ())
        if not isinstance(entry, kind)
    ]
    if wrong:
        raise ValueError(f"The results have wrong types: {'; '.join(wrong)}.")
    model = results.get("model") or {}
    missing = [f"model.{key}" for key in ("name", "family") if not model.get(key)]
    missing += ["licence"] if not results.get("licence") else []
    for section in ("evaluations", "baselines"):
        for index, entry in enumerate(results.get(section) or []):
            needed = ("task", "dataset", "metric", "value") + (("name",) if section == "baselines" else ())
            missing += [f"{section}[{index}].{key}" for key in needed if key not in entry]
    if missing:
        raise ValueError(f"The results lack {', '.join(missing)}; a card needs them.")


def render_card(results: dict[str, Any]) -> str:
    """
    Renders the card of a release. Only what is in `results` appears; evaluations that are absent or null read
    "not evaluated", energy that is null "not measured".

    Args:
        results (`dict`): `model` (`name`, `family`, and what `save_release` fills in), `data` (of
            videos with `fps` or `frame_step`), `training`, `environment`, `compute`, `evaluations`, `baselines`,
            `licence`, `source_licence`, `pictures`; for converted checkpoints `conversion`. Sections may be missing.

    Returns:
        Markdown with YAML front matter.

    Raises:
        `ValueError`: if the name, family or licence, or a field of an evaluation, is missing.
    """
    _check(results)
    model, data = results["model"], results.get("data") or {}
    family = model["family"]
    method = METHODS.get(family, Method(family, family))
    dataset = data.get("name")
    bases = results.get("base_model") or model.get("base_model") or []
    bases = [name for name in ([bases] if isinstance(bases, str) else bases) if HUB_NAME.fullmatch(name)]
    relation = {"base_model_relation": "adapter" if model.get("is_adapter") else "finetune"} if bases else {}
    card_data = ModelCardData(
        library_name=_library(model),
        pipeline_tag=_pipeline(results),
        license=results["licence"],
        tags=["hf-jepa", "jepa", family],
        datasets=[dataset] if dataset and HUB_NAME.fullmatch(dataset) else None,
        base_model=(bases[0] if len(bases) == 1 else bases) or None,
        **relation,
        model_name=model["name"],
        eval_results=_eval_results(results) or None,
    )
    measured = [*(results.get("evaluations") or []), *(results.get("baselines") or [])]
    commands = [entry["command"] for entry in measured if entry.get("command")]
    card = ModelCard.from_template(
        card_data,
        template_path=str(_TEMPLATES.get(model.get("modality"), _TEMPLATE)),
        model=model,
        repo=model.get("repo_id") or model["name"],
        method=method.title,
        sentence=method.sentence,
        citation=method.citation,
        composite=_class_name(method.composite.model) if method.composite else None,
        config=model.get("encoder_config") or {},
        data=data,
        size=_size(model.get("encoder_config") or {}),
        channels=model.get("num_channels") or 3,
        sampling=_sampling(model.get("encoder_config") or {}, data),
        training=results.get("training") or {},
        conversion=results.get("conversion"),
        environment=results.get("environment") or {},
        compute_lines=_compute_lines(results.get("compute") or {}),
        table=_results_table(results),
        commands=list(dict.fromkeys(commands)),
        pictures=results.get("pictures") or [],
        limits=results.get("limits") or [],
        example=_example(model.get("example")),
        licence=results["licence"],
        source_licence=results.get("source_licence"),
        number=_number,
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).strip() + "\n"


def render_card_file(path: Path) -> str:
    """`render_card` of a JSON file, or a release's; `ValueError` names the file if it is no valid results file."""
    path = path / "results.json" if path.is_dir() else path
    with naming(path):
        return render_card(json.loads(path.read_text(encoding="utf-8")))
