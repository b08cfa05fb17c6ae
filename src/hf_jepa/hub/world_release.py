"""What a published world model's repository holds: the whole model, with what its actions mean, and a card."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .processors import default_processor, fit_processor
from .staging import staged_release

_STATISTICS = ("frameskip", "action_mean", "action_std", "action_low", "action_high", "proprio_names")


def describe_world_model(model: PreTrainedModel) -> dict[str, Any]:
    """The facts of `results["model"]` that a world model itself knows."""
    config = model.config
    parts = [(name, module) for name, module in model.named_children() if any(True for _ in module.parameters())]
    weights = {name: value for name, value in config.to_dict().items() if name.endswith("_weight") and value}
    return {
        "family": config.model_type,
        "modality": "world-model",
        "model_type": config.model_type,
        "class": type(model).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "objective": {name.removesuffix("_weight").replace("_", " "): value for name, value in weights.items()},
        "components": [
            {
                "name": name.replace("_", " "),
                "class": type(module).__name__,
                "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
            }
            for name, module in parts
        ],
        "statistics": {
            name: value for name in _STATISTICS if (value := getattr(config, name, None)) not in (None, [])
        },
    }


def save_world_model(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    results: dict[str, Any],
    processor: Any | None = None,
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
) -> Path:
    """
    Writes a world model as a release of one floor, which `AutoModel.from_pretrained` loads after `import hf_jepa`: the
    model, whose config has the statistics that planners need, its image processor, `results.json` and the card.

    Args:
        model (`PreTrainedModel`): whose class is a [`~hf_jepa.world_model.WorldModelMixin`].
        folder (`str` or `PathLike`): where to write; files of an earlier release are replaced.
        results (`dict`): as for [`~hf_jepa.hub.save_release`]; the model's own facts are added.
        processor (*optional*): the image processor; by default, and if it makes another size, the encoder's size with
            the config's pixel statistics.
        recipe (`dict`, *optional*): the resolved recipe.
        pictures (`Sequence` of paths): copied to the root.

    Returns:
        The folder.

    Raises:
        `ValueError`: for a processor of another number of channels, a picture that does not exist, or a release that
            fails [`~hf_jepa.hub.check_release`].
    """
    if processor is None:
        statistics = {name: getattr(model.config, name, None) for name in ("image_mean", "image_std")}
        processor = default_processor(model, **statistics)
    processor = fit_processor(processor, model)
    results = results | {"model": {**results.get("model", {}), **describe_world_model(model)}}
    with staged_release(folder, results, recipe, pictures) as staged:
        model.save_pretrained(staged)
        processor.save_pretrained(staged)
    return Path(folder)
