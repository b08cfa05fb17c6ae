"""What a published repository holds, and how it gets to the Hub."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForPreTraining, PreTrainedModel

from ..encoders import is_video_encoder
from ..file_errors import naming
from ..parts import load_auto
from ..regularized import deviations
from ..world_model import WorldModelConfig
from .checks import PRETRAINING_FOLDER, check_release, check_weights
from .pooling import save_cls_pooling
from .processors import default_image_processor, default_video_processor, fit_processor
from .push import PushError, push_release
from .sizes import channels_of, check_releasable, released_size, resize_encoder, view_size
from .sources import carry_sources, forget_folders, source_names
from .staging import staged_release

__all__ = [
    "PushError",
    "check_release",
    "default_image_processor",
    "default_video_processor",
    "load_pretraining",
    "push_release",
    "save_encoder",
    "save_release",
    "save_video_classifier",
    "save_whole",
    "staged_release",
]

_CARD_FIELDS = ("architecture", "hidden_size", "hidden_sizes", "depths", "num_hidden_layers", "num_attention_heads")
_CARD_FIELDS += ("image_size", "crop_size", "frames_per_clip", "patch_size", "tubelet_size")


def _family_of(model: PreTrainedModel) -> str:
    """The method's name on cards. V-JEPA's generations are one type of encoder, told apart by its positions."""
    encoder_config = getattr(model.config, "encoder_config", None) or model.config
    if getattr(encoder_config, "rope_layout", None) is None or isinstance(model.config, WorldModelConfig):
        return model.config.model_type.removesuffix("_pretraining")
    if encoder_config.position_embedding_type == "sincos":
        return "vjepa"
    return "vjepa2_1" if encoder_config.rope_layout == "interleaved" else "vjepa2"


def _describe_video(model: PreTrainedModel, root: PreTrainedModel) -> dict[str, Any]:
    """What a card must know of models that read clips; nothing of others."""
    if not is_video_encoder(model):
        return {}
    return {"modality": "video", "needs_hf_jepa": type(root).__module__.startswith("hf_jepa.")}


def _trained_at(model: PreTrainedModel) -> dict[str, Any]:
    """The size of images or clips that the release is for, as card fields."""
    height, width = released_size(model)
    size = height if height == width else [height, width]
    if not is_video_encoder(model):
        return {"image_size": size}
    frames = getattr(model.config, "trained_frames", None)
    return {"crop_size": size, **({"frames_per_clip": frames} if frames else {})}


def _describe_actions(model: PreTrainedModel) -> dict[str, Any]:
    """What a card must know of world models, which can be planned with; nothing of others."""
    if not isinstance(model.config, WorldModelConfig):
        return {}
    return {"action_dim": model.config.action_dim, "state_dim": getattr(model.config, "state_dim", None)}


def describe_model(model: PreTrainedModel, encoder: PreTrainedModel, which: str) -> dict[str, Any]:
    """The facts of `results["model"]` that the model itself knows."""
    model_type = model.config.model_type
    return {
        "family": _family_of(model),
        "model_type": model_type,
        "class": type(model).__name__,
        "encoder": which,
        "encoder_class": type(encoder).__name__,
        "parts": [name.replace("_", " ") for name, _ in model.named_children()],
        "num_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "num_parameters_pretraining": sum(parameter.numel() for parameter in model.parameters()),
        "encoder_config": {key: value for key, value in encoder.config.to_dict().items() if key in _CARD_FIELDS}
        | _trained_at(model),
        "num_channels": channels_of(model),
        "pooling": getattr(model.config, "pooling", None),
        **deviations(model.config),
        **({"needs_hf_jepa": True} if type(encoder).__module__.startswith("hf_jepa.") else {}),
        **_describe_video(model, encoder),
        **_describe_actions(model),
    }


def note_trained_size(
    model: PreTrainedModel, pixels: torch.Tensor | Sequence[torch.Tensor], processor: Any | None = None
) -> None:
    """
    Notes in a composite's config (`trained_size`, of clips `trained_frames`) what size it is trained at, so that every
    checkpoint tells its release. For a run's first batch: what no release could express is refused before there is
    anything to lose.

    Args:
        model ([`~hf_jepa.modeling_jepa.JepaPreTrainedModel`]): that trains.
        pixels (`torch.Tensor` of shape `(..., height, width)`, or several): its main input.
        processor (*optional*): that the release is to have.

    Raises:
        `ValueError`: naming the size, or the processor's statistics, and the way out.
    """
    # A world model makes frames of any size its encoder's, or takes them as its encoder does.
    if not hasattr(model, "export_encoder") or isinstance(model.config, WorldModelConfig):
        return
    size = view_size(pixels)
    check_releasable(model, size)
    model.config.trained_size = list(size)
    fit_processor(processor, model)
    if is_video_encoder(model):
        groups = [pixels] if isinstance(pixels, torch.Tensor) else pixels
        model.config.trained_frames = max(group.shape[1] for group in groups)


def save_release(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    results: dict[str, Any],
    processor: Any | None = None,
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
    which: Literal["target", "context"] = "target",
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """
    Writes the two-floor folder. Root: one encoder in its in-tree format, its processor, `results.json`, `recipe.yaml`,
    the pictures and the card, all that plain `transformers` needs. `pretraining/`: the whole composite, for continuing
    with this package. A model whose encoder is another release's, frozen (`released_whole`), is whole at the root
    instead, which `AutoModel` loads after `import hf_jepa`. Everything is staged beside `folder` and moved in at the
    end, so a killed process leaves no half-written release.

    Args:
        model (`JepaPreTrainedModel`): the trained composite.
        folder (`str` or `PathLike`): where to write; files of an earlier release are replaced.
        results (`dict`): what was measured (see [`~hf_jepa.hub.card.render_card`]); the model's own facts are added.
        processor (*optional*): the image or video processor to save; by default the encoder's size with ImageNet
            statistics.
        recipe (`dict`, *optional*): the resolved recipe.
        pictures (`Sequence` of paths): copied to the root. Captions come from `results["pictures"]`.
        which (`str`): the encoder at the root; without an EMA target there is the context encoder alone.
        finish (`Callable`, *optional*): gets the staged folder, to add what belongs to it.

    Returns:
        The folder.

    Raises:
        `ValueError`: for a picture that does not exist, or a release that fails [`check_release`].
    """
    if getattr(model, "released_whole", False):
        content = {"results": results, "processor": processor, "recipe": recipe, "pictures": pictures}
        return save_whole(model, folder, **content, finish=finish)
    if not model.has_target_encoder:
        which = "context"
    size = released_size(model)
    check_releasable(model, size)
    encoder = resize_encoder(model.export_encoder(which), model, size)
    encoder.config.jepa_encoder = which
    processor = fit_processor(processor, model)
    facts = {"model": {**results.get("model", {}), **describe_model(model, encoder, which)}}
    results = carry_sources(results, source_names(model))
    with staged_release(folder, results | facts, recipe, pictures) as staged:
        encoder.save_pretrained(staged)
        processor.save_pretrained(staged)
        if getattr(model.config, "pooling", None) == "cls":
            save_cls_pooling(staged, encoder.config.hidden_size)
        model.save_pretrained(staged / PRETRAINING_FOLDER)
        forget_folders(staged / PRETRAINING_FOLDER / "config.json")
        if finish is not None:
            finish(staged)
    return Path(folder)


def save_encoder(
    encoder: PreTrainedModel, folder: str | os.PathLike, *, results: dict[str, Any], processor: Any | None = None
) -> Path:
    """
    Writes an encoder alone as a release of one floor: model, processor, `results.json`, card.

    Args:
        encoder (`PreTrainedModel`): an in-tree encoder, or a [`~hf_jepa.VJepaModel`].
        folder (`str` or `PathLike`): where to write; an earlier release is replaced.
        results (`dict`): as for [`save_release`]; the model's own facts are added.
        processor (*optional*): the image or video processor; by default that of the config's size.

    Returns:
        The folder.
    """
    return _save_one_floor(encoder, folder, results, processor, {"floors": 1})


def save_whole(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    results: dict[str, Any],
    processor: Any | None = None,
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """
    Writes a composite whose encoder is of no use without it as a release of one floor, which `AutoModel` loads after
    `import hf_jepa`. Arguments as for [`save_release`].

    Returns:
        The folder.
    """
    parts = [name.replace("_", " ") for name, _ in model.named_children()]
    facts = {"family": _family_of(model), "floors": 1, "parts": parts, "needs_hf_jepa": True}
    return _save_one_floor(
        model, folder, results, processor, facts | _describe_actions(model), finish, recipe, pictures
    )


def save_video_classifier(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    results: dict[str, Any],
    processor: Any | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """
    Writes an encoder with its classifier as a release of one floor: model, video processor, `results.json`, card.

    Args:
        model (`PreTrainedModel`): the classifier.
        folder (`str` or `PathLike`): where to write; an earlier release is replaced.
        results (`dict`): as for [`save_release`]; the model's own facts are added.
        processor (*optional*): the video processor; by default that of the config's size.
        finish (`Callable`, *optional*): gets the staged folder, to add what belongs to it.

    Returns:
        The folder.
    """
    facts = {"family": _family_of(model), "num_labels": model.config.num_labels}

    def finish_classifier(staged: Path) -> None:
        # The pipeline of transformers asks for it.
        config = json.loads((staged / "config.json").read_text(encoding="utf-8"))
        config["num_frames"] = model.config.frames_per_clip
        (staged / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if finish is not None:
            finish(staged)

    return _save_one_floor(model, folder, results, processor, facts, finish_classifier)


def _save_one_floor(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    results: dict[str, Any],
    processor: Any | None,
    facts: dict[str, Any],
    finish: Callable[[Path], None] | None = None,
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
) -> Path:
    facts = {
        "model_type": model.config.model_type,
        "encoder_class": type(model).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "encoder_config": {key: value for key, value in model.config.to_dict().items() if key in _CARD_FIELDS},
        "num_channels": channels_of(model),
        **_describe_video(model, model),
        **facts,
    }
    results = results | {"model": {**results.get("model", {}), **facts}}
    with staged_release(folder, results, recipe, pictures) as staged:
        model.save_pretrained(staged)
        fit_processor(processor, model).save_pretrained(staged)
        if finish is not None:
            finish(staged)
    return Path(folder)


def load_pretraining(repo: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """
    Loads a composite, every key of it.

    Args:
        repo (`str` or `PathLike`): a folder or repository that holds a composite at its root; for a release, its
            `pretraining` folder or `subfolder="pretraining"`.
        kwargs: passed to `from_pretrained`.

    Returns:
        The model, in eval mode.

    Raises:
        `ValueError`: for missing, unexpected or mis-shaped keys, or a folder without a composite.
    """
    repo = str(repo)
    if not Path(repo).is_dir():
        return _load_whole(repo, **kwargs)
    folder = Path(repo, kwargs.get("subfolder", ""))
    with naming(folder):
        faults = [] if (folder / "config.json").is_file() else ["config.json is missing"]
        if faults := faults + check_weights(folder):
            raise ValueError(f"{str(folder)!r} is no saved model, or was not written to the end: {'; '.join(faults)}.")
        return _load_whole(repo, **kwargs)


def _load_whole(repo: str, **kwargs: Any) -> PreTrainedModel:
    try:
        model, info = load_auto(AutoModelForPreTraining, repo, output_loading_info=True, **kwargs)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"{repo!r} holds no model to train further. A release has an encoder at its root, which `AutoModel` "
            'loads; the composite is in "pretraining": name that folder, or pass `subfolder="pretraining"`.'
        ) from error
    faults = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if faults:
        raise ValueError(f"{repo!r} does not hold a whole {type(model).__name__}: {faults}")
    return model
