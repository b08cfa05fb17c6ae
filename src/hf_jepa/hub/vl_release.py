"""What a published VL-JEPA repository holds: the whole model, its processor, and a card."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..models.vl_jepa import VLJepaModel, VLJepaProcessor
from .sources import carry_sources, forget_folders, source_names
from .staging import staged_release

_NAMES = {
    "vision": "X-encoder",
    "predictor": "predictor",
    "y_encoder": "Y-encoder",
    "y_decoder": "Y-decoder",
}


def describe_vl_model(model: VLJepaModel) -> dict[str, Any]:
    """The facts of `results["model"]` that a VL-JEPA itself knows."""
    config, sources = model.config, model.config.sources or {}
    loss = {"infonce": "bidirectional InfoNCE", "cosine": "cosine distance", "l1": "L1", "l2": "L2"}[config.loss]
    target = {"shared": "trained", "frozen": "frozen", "ema": "followed by moving average"}[config.target]
    objective = f"Objective: {loss} in {config.projection_dim} dimensions, the Y-encoder {target}"
    if config.regularizer != "none":
        objective += f", with {config.regularizer} of weight {config.regularizer_weight}"
    left_out = set() if config.save_frozen else set(model.frozen_parts())
    components = []
    for part, name in _NAMES.items():
        module = getattr(model, part)
        if module is None:
            continue
        inner = {"y_encoder": "model", "y_decoder": "language_model"}.get(part)
        inner = module if inner is None else getattr(module, inner)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        origin = f"from `{_public(sources[part]['name_or_path'])}`" if part in sources else "from no named place"
        components.append(
            {
                "name": name,
                "class": type(inner).__name__,
                "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
                "origin": origin + (", loaded from there" if part in left_out else ""),
            }
        )
    return {
        "family": config.model_type,
        "modality": "vision-language",
        "model_type": config.model_type,
        "class": type(model).__name__,
        "objective": f"{objective}.",
        "components": components,
        "has_decoder": model.y_decoder is not None,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _public(name: str) -> str:
    """A folder's own name instead of where it lay on somebody's disk."""
    return Path(name).name if os.path.isabs(name) else name


def save_vl_release(
    model: VLJepaModel,
    folder: str | os.PathLike,
    processor: VLJepaProcessor,
    results: dict[str, Any],
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
) -> Path:
    """
    Writes a release of a VL-JEPA: the model (without frozen parts if its config keeps them by reference), the
    processor, `results.json`, `recipe.yaml`, pictures and the card. Staged beside `folder` and moved in at the end.

    Args:
        model ([`~hf_jepa.VLJepaModel`]): the trained model.
        folder (`str` or `PathLike`): where to write; files of an earlier release are replaced.
        processor ([`~hf_jepa.VLJepaProcessor`]).
        results (`dict`): what was measured (see [`~hf_jepa.hub.render_card`]); the model's own facts are added.
        recipe (`dict`, *optional*): the resolved recipe.
        pictures (`Sequence` of paths): copied; captions come from `results["pictures"]`.

    Returns:
        The folder.

    Raises:
        `ValueError`: for a picture that does not exist, a part kept by reference to a local folder, which nobody else
            has, or a release that fails [`~hf_jepa.hub.check_release`].
    """
    if not model.config.save_frozen:
        sources = model.config.sources or {}
        local = [part for part in model.frozen_parts() if os.path.isabs(sources.get(part, {}).get("name_or_path", ""))]
        if local:
            raise ValueError(
                f"`{local[0]}` is kept by reference to the folder {sources[local[0]]['name_or_path']!r}, which nobody "
                "else has; set `config.save_frozen=True`, or name a repository in `config.sources`."
            )
    facts = {"model": {**results.get("model", {}), **describe_vl_model(model)}}
    results = carry_sources(results, source_names(model))
    with staged_release(folder, results | facts, recipe, pictures) as staged:
        model.save_pretrained(staged)
        forget_folders(staged / "config.json")
        processor.save_pretrained(staged)
    return Path(folder)
