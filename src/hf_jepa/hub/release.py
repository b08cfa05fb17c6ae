"""What a published repository holds, and how it gets to the Hub."""

import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForPreTraining, PreTrainedModel
from transformers.utils import logging

from ..encoders import is_video_encoder
from ..regularized import deviations
from .card import render_card
from .processors import PROCESSOR_FILES, default_image_processor, default_processor, default_video_processor

__all__ = [
    "PushError",
    "check_release",
    "default_image_processor",
    "default_video_processor",
    "load_pretraining",
    "push_release",
    "save_release",
    "save_video_classifier",
]

logger = logging.get_logger(__name__)

PRETRAINING_FOLDER = "pretraining"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar", ".npy", ".npz"}
_TEXTS = {".json", ".yaml", ".yml", ".md", ".txt"}
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
_CARD_FIELDS = ("architecture", "hidden_size", "hidden_sizes", "depths", "num_hidden_layers", "num_attention_heads")
_CARD_FIELDS += ("image_size", "crop_size", "frames_per_clip", "patch_size", "tubelet_size")
# What reads a release's inputs: one of these must be there.
_PROCESSORS = ("tokenizer_config.json", *PROCESSOR_FILES)
_TRANSIENT = {408, 429, 500, 502, 503, 504}


class PushError(RuntimeError):
    """The upload failed. The message ends with the command that finishes it; the release is still on disk."""


def _family_of(model: PreTrainedModel) -> str:
    """The method's name on cards. V-JEPA's generations are one type of encoder, told apart by its positions."""
    encoder_config = getattr(model.config, "encoder_config", None) or model.config
    if getattr(encoder_config, "rope_layout", None) is None:
        return model.config.model_type.removesuffix("_pretraining")
    if encoder_config.position_embedding_type == "sincos":
        return "vjepa"
    return "vjepa2_1" if encoder_config.rope_layout == "interleaved" else "vjepa2"


def _describe_video(model: PreTrainedModel, root: PreTrainedModel) -> dict[str, Any]:
    """What a card must know of models that read clips; nothing of others."""
    if not is_video_encoder(model):
        return {}
    return {"modality": "video", "needs_hf_jepa": type(root).__module__.startswith("hf_jepa.")}


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
        | ({"image_size": model.config.image_size} if hasattr(model.config, "image_size") else {}),
        "pooling": getattr(model.config, "pooling", None),
        **deviations(model.config),
        **_describe_video(model, encoder),
    }


def _move_into(staged: Path, folder: Path) -> None:
    for item in sorted(staged.iterdir()):
        destination = folder / item.name
        if destination.is_dir() and not destination.is_symlink():
            shutil.rmtree(destination)
        os.replace(item, destination)


@contextmanager
def staged_release(
    folder: str | os.PathLike,
    results: dict[str, Any],
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
) -> Iterator[Path]:
    """
    A folder beside the release to write models and processors in. Pictures, `recipe.yaml`, `results.json` and the card
    are added at the end; all is checked, and moved into place.

    Args:
        folder (`str` or `PathLike`): where the release goes; files of an earlier one are replaced.
        results (`dict`): see [`~hf_jepa.hub.render_card`].
        recipe (`dict`, *optional*): the resolved recipe.
        pictures (`Sequence` of paths): copied; captions come from `results["pictures"]`.

    Raises:
        `ValueError`: for a picture that does not exist, or a release that fails [`check_release`].
    """
    folder, pictures = Path(folder), [Path(picture) for picture in pictures]
    if missing := [str(picture) for picture in pictures if not picture.is_file()]:
        raise ValueError(f"These pictures do not exist: {', '.join(missing)}.")
    captions = {entry["file"]: entry["caption"] for entry in results.get("pictures") or []}
    shown = [
        {"file": picture.name, "caption": captions.get(picture.name, picture.stem.replace("_", " "))}
        for picture in pictures
    ]
    results = {**results, "pictures": shown}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".release-") as temporary:
        staged = Path(temporary)
        yield staged
        for picture in pictures:
            shutil.copyfile(picture, staged / picture.name)
        if recipe is not None:
            (staged / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        (staged / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (staged / "README.md").write_text(render_card(results), encoding="utf-8")
        check_release(staged)
        _move_into(staged, folder)


def save_release(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    results: dict[str, Any],
    processor: Any | None = None,
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
    which: Literal["target", "context"] = "target",
) -> Path:
    """
    Writes the two-floor folder. Root: one encoder in its in-tree format, its processor, `results.json`, `recipe.yaml`,
    the pictures and the card, all that plain `transformers` needs. `pretraining/`: the whole composite, for continuing
    with this package. Everything is staged beside `folder` and moved in at the end, so a killed process leaves no
    half-written release.

    Args:
        model (`JepaPreTrainedModel`): the trained composite.
        folder (`str` or `PathLike`): where to write; files of an earlier release are replaced.
        results (`dict`): what was measured (see [`~hf_jepa.hub.card.render_card`]); the model's own facts are added.
        processor (*optional*): the image or video processor to save; by default the encoder's size with ImageNet
            statistics.
        recipe (`dict`, *optional*): the resolved recipe.
        pictures (`Sequence` of paths): copied to the root. Captions come from `results["pictures"]`.
        which (`str`): the encoder at the root; without an EMA target there is the context encoder alone.

    Returns:
        The folder.

    Raises:
        `ValueError`: for a picture that does not exist, or a release that fails [`check_release`].
    """
    if not model.has_target_encoder:
        which = "context"
    encoder = model.export_encoder(which)
    encoder.config.jepa_encoder = which
    facts = {"model": {**results.get("model", {}), **describe_model(model, encoder, which)}}
    with staged_release(folder, results | facts, recipe, pictures) as staged:
        encoder.save_pretrained(staged)
        (processor or default_processor(model)).save_pretrained(staged)
        model.save_pretrained(staged / PRETRAINING_FOLDER)
    return Path(folder)


def save_video_classifier(
    model: PreTrainedModel, folder: str | os.PathLike, *, results: dict[str, Any], processor: Any | None = None
) -> Path:
    """
    Writes an encoder with its classifier as a release of one floor: model, video processor, `results.json`, card.

    Args:
        model (`PreTrainedModel`): the classifier.
        folder (`str` or `PathLike`): where to write; files of an earlier release are replaced.
        results (`dict`): as for [`save_release`]; the model's own facts are added.
        processor (*optional*): the video processor; by default that of the config's size.

    Returns:
        The folder.
    """
    facts = {
        "family": _family_of(model),
        "model_type": model.config.model_type,
        "encoder_class": type(model).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_labels": model.config.num_labels,
        "encoder_config": {key: value for key, value in model.config.to_dict().items() if key in _CARD_FIELDS},
        **_describe_video(model, model),
    }
    results = results | {"model": {**results.get("model", {}), **facts}}
    with staged_release(folder, results) as staged:
        model.save_pretrained(staged)
        (processor or default_video_processor(model.config.crop_size)).save_pretrained(staged)
    return Path(folder)


def _check_weights(folder: Path) -> list[str]:
    """Faults of the safetensors files in one folder: absent shards and truncated files included."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    single = "adapter_model.safetensors" if (folder / "adapter_config.json").is_file() else "model.safetensors"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {single}
    faults = [f"{folder.name}/{name} is missing" for name in sorted(named - {file.name for file in files})]
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            faults.append(f"{folder.name}/{file.name} is damaged ({error})")
    return faults


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
    if Path(repo).is_dir():
        folder = Path(repo, kwargs.get("subfolder", ""))
        faults = [] if (folder / "config.json").is_file() else ["config.json is missing"]
        if faults := faults + _check_weights(folder):
            raise ValueError(f"{str(folder)!r} is no saved model, or was not written to the end: {'; '.join(faults)}.")
    model, info = AutoModelForPreTraining.from_pretrained(repo, output_loading_info=True, **kwargs)
    faults = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if faults:
        raise ValueError(f"{repo!r} does not hold a whole {type(model).__name__}: {faults}")
    return model


def check_release(folder: str | os.PathLike) -> Path:
    """
    Checks that a folder is fit to be published: card, config, processor and results are there, weights are whole
    safetensors files, and it holds no pickles and no access tokens.

    Args:
        folder (`str` or `PathLike`): the release.

    Returns:
        The folder.

    Raises:
        `ValueError`: naming every fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder.")
    config = "adapter_config.json" if (folder / "adapter_config.json").is_file() else "config.json"
    required = [config, "README.md", "results.json"]
    models = [folder]
    if (folder / PRETRAINING_FOLDER).is_dir():
        required.append(f"{PRETRAINING_FOLDER}/config.json")
        models.append(folder / PRETRAINING_FOLDER)
    faults = [f"{name} is missing" for name in required if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _PROCESSORS):
        faults.append(f"{' or '.join(_PROCESSORS)} is missing")
    for model in models:
        faults += _check_weights(model)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if file.suffix.lower() in _PICKLES:
            faults.append(f"{name} is a pickle or an archive, which nobody should load")
        elif file.suffix.lower() in _TEXTS and _TOKEN.search(file.read_text(encoding="utf-8", errors="replace")):
            faults.append(f"{name} holds a Hugging Face access token")
    if faults:
        raise ValueError(f"{str(folder)!r} is not ready to be published:\n  " + "\n  ".join(faults))
    return folder


def _is_transient(error: Exception) -> bool:
    response = getattr(error, "response", None)
    if isinstance(error, HfHubHTTPError) and response is not None:
        return response.status_code in _TRANSIENT
    # httpx's timeouts and connection errors (OSError does not cover them) share this base's name across its versions.
    names = {base.__name__ for base in type(error).__mro__}
    return isinstance(error, TimeoutError | ConnectionError) or "TransportError" in names


def _push_error(
    error: Exception, folder: Path, repo_id: str, private: bool | None, revision: str | None, attempt: int
) -> PushError:
    command = f"hf upload {shlex.quote(repo_id)} {shlex.quote(str(folder))}"
    command += " --private" * bool(private) + (f" --revision {shlex.quote(revision)}" if revision else "")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = " after `hf auth login`" if status in (401, 403) else ""
    tries = "1 try" if attempt == 1 else f"{attempt} tries"
    return PushError(
        f"Could not upload to {repo_id} ({tries}): {reason} "
        f"The release is complete in {str(folder)!r}; finish{login} with: {command}"
    )


def _name_repository(folder: Path, repo_id: str) -> None:
    """Puts the repository's name into the card's snippets, unless somebody has edited the card."""
    results_file, card_file = folder / "results.json", folder / "README.md"
    results = json.loads(results_file.read_text(encoding="utf-8"))
    if card_file.read_text(encoding="utf-8") != render_card(results):
        return
    results["model"]["repo_id"] = repo_id
    results_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    card_file.write_text(render_card(results), encoding="utf-8")


def push_release(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload release",
    attempts: int = 5,
    wait_seconds: float = 2.0,
    api: HfApi | None = None,
) -> str:
    """
    Uploads a release. The folder is checked first, and stays as it is whatever happens. Rate limits, server errors and
    timeouts are retried, waiting twice as long each time.

    Args:
        folder (`str` or `PathLike`): the release, on disk.
        repo_id (`str`): `organisation/name`.
        private (`bool`, *optional*): for a repository that is created; `None` follows the organisation's default.
        revision (`str`, *optional*): the branch to upload to.
        commit_message (`str`): first line of the commit.
        attempts (`int`): tries in all, at least 1.
        wait_seconds (`float`): seconds before the second try.
        api (`HfApi`, *optional*): the client to use.

    Returns:
        The address of the commit or repository.

    Raises:
        `ValueError`: if the folder is not fit to be published; nothing was sent.
        `PushError`: if the upload failed; the message holds the command that finishes it.
    """
    folder = check_release(folder)
    if attempts < 1:
        raise ValueError(f"`attempts` must be at least 1, got {attempts}.")
    _name_repository(folder, repo_id)
    api = api or HfApi()
    attempt = 0
    while True:
        attempt += 1
        try:
            # The answer holds the full name where only a repository's own was given.
            full_name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=full_name,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                ignore_patterns=["checkpoint-*", ".*"],
            )
            return str(commit)
        except Exception as error:
            if attempt >= attempts or not _is_transient(error):
                raise _push_error(error, folder, repo_id, private, revision, attempt) from error
            wait = wait_seconds * 2 ** (attempt - 1)
            logger.warning(f"Upload failed ({type(error).__name__}); trying again in {wait:g} s.")
            time.sleep(wait)
