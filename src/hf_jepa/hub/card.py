"""Model cards, rendered from `results.json` alone: a number that is not in the file does not appear on the card."""

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TEXT_TEMPLATE = Path(__file__).with_name("card_text_template.md")
_VL_TEMPLATE = Path(__file__).with_name("card_vl_template.md")
_TEMPLATES = {"text": _TEXT_TEMPLATE, "vision-language": _VL_TEMPLATE}
NOT_EVALUATED = "not evaluated"
NOT_MEASURED = "not measured"
_ROW = ("task", "dataset", "split", "features", "metric")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

# family -> (name, one sentence, BibTeX)
_METHODS = {
    "ijepa": (
        "I-JEPA",
        "I-JEPA learns image features without labels: from the visible patches of an image, a predictor must tell "
        "what an exponential moving average of the encoder makes of hidden blocks of the same image.",
        """@inproceedings{assran2023ijepa,
  title     = {Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture},
  author    = {Assran, Mahmoud and Duval, Quentin and Misra, Ishan and Bojanowski, Piotr and Vincent, Pascal and
               Rabbat, Michael and LeCun, Yann and Ballas, Nicolas},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2023},
  note      = {arXiv:2301.08243}
}""",
    ),
    "data2vec_vision": (
        "data2vec",
        "data2vec learns image features without labels: from an image whose masked patches are replaced by a mask "
        "token, a student regresses what its own moving average, seeing the whole image, represents there in its top "
        "blocks.",
        """@inproceedings{baevski2022data2vec,
  title     = {data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language},
  author    = {Baevski, Alexei and Hsu, Wei-Ning and Xu, Qiantong and Babu, Arun and Gu, Jiatao and Auli, Michael},
  booktitle = {International Conference on Machine Learning},
  year      = {2022},
  note      = {arXiv:2202.03555}
}""",
    ),
    "vit_mae": (
        "MAE",
        "MAE is a baseline, not a JEPA: it reconstructs the pixels of hidden patches.",
        """@inproceedings{he2022mae,
  title     = {Masked Autoencoders Are Scalable Vision Learners},
  author    = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and
               Girshick, Ross},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  note      = {arXiv:2111.06377}
}""",
    ),
    "cjepa": (
        "C-JEPA",
        "C-JEPA is I-JEPA with VICReg's variance, covariance and invariance terms on the predicted blocks. No "
        "official code exists; this is a reading of the paper, not a port.",
        """@inproceedings{mo2024cjepa,
  title     = {Connecting Joint-Embedding Predictive Architecture with Contrastive Self-supervised Learning},
  author    = {Mo, Shentong and Tong, Shengbang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2410.19560}
}""",
    ),
    "lejepa": (
        "LeJEPA",
        "LeJEPA learns image features without labels: the embeddings of an image's views are pulled together, and a "
        "statistical test along random directions (SIGReg) keeps their distribution an isotropic Gaussian.",
        """@article{balestriero2025lejepa,
  title   = {LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics},
  author  = {Balestriero, Randall and LeCun, Yann},
  journal = {arXiv:2511.08544},
  year    = {2025}
}""",
    ),
    "rectified_lpjepa": (
        "Rectified LpJEPA",
        "Rectified LpJEPA learns image features without labels: the embeddings of an image's views are pulled "
        "together, and their distribution is matched with a rectified generalized Gaussian (RDMReg), which makes them "
        "sparse.",
        """@article{rectifiedlpjepa2026,
  title   = {Rectified LpJEPA},
  journal = {arXiv:2602.01456},
  year    = {2026}
}""",
    ),
    "vicreg": (
        "VICReg",
        "VICReg learns image features without labels: the embeddings of an image's two views are pulled together, "
        "while every dimension keeps its variance and dimensions are decorrelated.",
        """@inproceedings{bardes2022vicreg,
  title     = {VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning},
  author    = {Bardes, Adrien and Ponce, Jean and LeCun, Yann},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  note      = {arXiv:2105.04906}
}""",
    ),
    "simsiam": (
        "SimSiam",
        "SimSiam learns image features without labels: from one view of an image, a predictor must tell the embedding "
        "of the other, which gets no gradient.",
        """@inproceedings{chen2021simsiam,
  title     = {Exploring Simple Siamese Representation Learning},
  author    = {Chen, Xinlei and He, Kaiming},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021},
  note      = {arXiv:2011.10566}
}""",
    ),
    "vjepa": (
        "V-JEPA",
        "V-JEPA learns video features without labels: from the visible patches of a clip, a predictor must tell what "
        "an exponential moving average of the encoder makes of blocks hidden through the whole clip.",
        """@article{bardes2024vjepa,
  title   = {Revisiting Feature Prediction for Learning Visual Representations from Video},
  author  = {Bardes, Adrien and Garrido, Quentin and Ponce, Jean and Chen, Xinlei and Rabbat, Michael and
             LeCun, Yann and Assran, Mahmoud and Ballas, Nicolas},
  journal = {arXiv:2404.08471},
  year    = {2024}
}""",
    ),
    "vjepa2": (
        "V-JEPA 2",
        "V-JEPA 2 learns video features without labels, as V-JEPA does, with rotary positions and at scale: from the "
        "visible patches of a clip, a predictor must tell what an exponential moving average of the encoder makes of "
        "the hidden ones.",
        """@article{assran2025vjepa2,
  title   = {V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning},
  author  = {Assran, Mahmoud and Bardes, Adrien and Fan, David and Garrido, Quentin and others},
  journal = {arXiv:2506.09985},
  year    = {2025}
}""",
    ),
    "vjepa2_1": (
        "V-JEPA 2.1",
        "V-JEPA 2.1 learns dense features of videos and images without labels: a predictor must tell what an "
        "exponential moving average of the encoder makes of the hidden and of the visible patches, at several depths.",
        """@article{murlabadia2026vjepa21,
  title   = {V-JEPA 2.1: Unlocking Dense Features in Video Self-Supervised Learning},
  author  = {Mur-Labadia, Lorenzo and Muckley, Matthew and Bar, Amir and Assran, Mido and Sinha, Koustuv and
             Rabbat, Mike and LeCun, Yann and Ballas, Nicolas and Bardes, Adrien},
  journal = {arXiv:2603.14482},
  year    = {2026}
}""",
    ),
    "vl_jepa": (
        "VL-JEPA",
        "VL-JEPA predicts, from an image or video and a question about it, the embedding of the answer's text: it "
        "classifies, retrieves and answers by comparing embeddings, and writes only where text is wanted.",
        """@article{vljepa2025,
  title   = {VL-JEPA: Joint Embedding Predictive Architecture for Vision-language},
  journal = {arXiv:2512.10942},
  year    = {2025}
}""",
    ),
    "llm_jepa": (
        "LLM-JEPA",
        "LLM-JEPA fine-tunes a language model with a second loss beside next-token prediction: from its embedding of "
        "a text, its embedding of the code that the text describes must be predicted.",
        """@article{huang2025llmjepa,
  title   = {LLM-JEPA: Large Language Models Meet Joint Embedding Predictive Architectures},
  author  = {Huang, Hai and LeCun, Yann and Balestriero, Randall},
  journal = {arXiv preprint arXiv:2509.14252},
  year    = {2025}
}""",
    ),
}


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


def _sampling(config: dict[str, Any], data: dict[str, Any]) -> str:
    """How clips were cut from videos, in words."""
    frames = config.get("frames_per_clip")
    clips = f"clips of {frames} frames" if frames else "clips"
    if data.get("fps"):
        return f"{clips} at {_number(data['fps'])} per second"
    return f"{clips}, one frame out of {data['frame_step']}" if data.get("frame_step") else clips


def _check(results: dict[str, Any]) -> None:
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
    name, sentence, citation = _METHODS.get(family, (family, "", ""))
    dataset = data.get("name")
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=_pipeline(results),
        license=results["licence"],
        tags=["hf-jepa", "jepa", family],
        datasets=[dataset] if dataset and _HUB_NAME.fullmatch(dataset) else None,
        base_model=results.get("base_model"),
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
        method=name,
        sentence=sentence,
        citation=citation,
        config=model.get("encoder_config") or {},
        data=data,
        sampling=_sampling(model.get("encoder_config") or {}, data),
        training=results.get("training") or {},
        conversion=results.get("conversion"),
        environment=results.get("environment") or {},
        compute_lines=_compute_lines(results.get("compute") or {}),
        table=_results_table(results),
        commands=list(dict.fromkeys(commands)),
        pictures=results.get("pictures") or [],
        limits=results.get("limits") or [],
        licence=results["licence"],
        source_licence=results.get("source_licence"),
        number=_number,
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).strip() + "\n"


def render_card_file(path: Path) -> str:
    """`render_card` of a JSON file; `ValueError` names the file if it is no valid results file."""
    try:
        return render_card(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is no results file: {error}") from error
