"""How a release comes to lie in its folder: written beside it, checked, and put there whole."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

from .card import eval_result_files, render_card
from .checks import ADAPTER_CONFIG, EVAL_RESULTS, PRETRAINING_FOLDER, check_release
from .replacing import recover, replace_folder, replace_text
from .sources import forget_code

logger = logging.get_logger(__name__)

# What a release without a list of its files can be made of, beside the pictures that its results name.
_MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".model"}
_MODEL_NAMES = {"README.md", "recipe.yaml", "merges.txt", "vocab.txt", PRETRAINING_FOLDER}


@contextmanager
def staged_release(
    folder: str | os.PathLike,
    results: dict[str, Any],
    recipe: dict[str, Any] | None = None,
    pictures: Sequence[str | os.PathLike] = (),
) -> Iterator[Path]:
    """
    A folder beside the release to write models and processors in. Pictures, `recipe.yaml`, `results.json` and the card
    are added at the end; all is checked, and put in the release's place at once. An earlier release there is replaced
    whole: none of its files stays behind. Files that no release has written are kept, and named in a warning.

    Args:
        folder (`str` or `PathLike`): where the release goes.
        results (`dict`): see [`~hf_jepa.hub.render_card`].
        recipe (`dict`, *optional*): the resolved recipe.
        pictures (`Sequence` of paths): copied; captions come from `results["pictures"]`.

    Raises:
        `ValueError`: for a picture that does not exist, a folder that holds a model which is no release, or a file of
            somebody's that would be lost (nothing is changed then), and for a release that fails [`check_release`].
    """
    folder, pictures = Path(folder).resolve(), [Path(picture) for picture in pictures]
    if missing := [str(picture) for picture in pictures if not picture.is_file()]:
        raise ValueError(f"These pictures do not exist: {', '.join(missing)}.")
    recover(folder)
    check_place(folder)
    captions = {entry["file"]: entry["caption"] for entry in results.get("pictures") or []}
    shown = [
        {"file": picture.name, "caption": captions.get(picture.name, picture.stem.replace("_", " "))}
        for picture in pictures
    ]
    results = {**results, "pictures": shown}
    staged = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed
    staged.mkdir(parents=True)
    try:
        yield staged
        for picture in pictures:
            shutil.copyfile(picture, staged / picture.name)
        if recipe is not None:
            (staged / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        forget_code(staged)
        for name, content in eval_result_files(results).items():
            (staged / EVAL_RESULTS).mkdir(exist_ok=True)
            (staged / EVAL_RESULTS / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        results["files"] = sorted({item.name for item in staged.iterdir()} | {"README.md", "results.json"})
        (staged / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (staged / "README.md").write_text(render_card(results), encoding="utf-8")
        check_release(staged)
        # safetensors writes for its owner's eyes alone; who may read the card may read the weights.
        mode = (staged / "README.md").stat().st_mode
        for weights in staged.rglob("*.safetensors"):
            weights.chmod(mode)
        kept = _foreign(folder)
        _refuse_loss(folder, sorted(set(kept) & {*results["files"]}))
        replace_folder(staged, folder, kept)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    if visible := [name for name in kept if not name.startswith(".")]:
        logger.warning(f"Kept in {str(folder)!r}, as no part of the release: {', '.join(visible)}.")


def update_release(
    folder: str | os.PathLike, results: dict[str, Any], pictures: Sequence[str | os.PathLike] = ()
) -> Path:
    """
    Puts what was measured or drawn later into a release: `results.json`, pictures and card are written again, models
    and processors stay.

    Args:
        folder (`str` or `PathLike`): the release.
        results (`dict`): see [`~hf_jepa.hub.render_card`]; what the release knows of its model is kept.
        pictures (`Sequence` of paths): copied; captions come from `results["pictures"]`.

    Returns:
        The folder.

    Raises:
        `ValueError`: for a release that fails [`check_release`] afterwards.
    """
    folder, pictures = Path(folder), [Path(picture) for picture in pictures]
    known = _recorded(folder) or {"model": {}, "files": _names(folder)}
    results = known | results | {"model": known["model"] | results.get("model", {})}
    results["files"] = sorted({*known.get("files", _names(folder)), *(picture.name for picture in pictures)})
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)
    texts = {"results.json": json.dumps(results, indent=2) + "\n", "README.md": render_card(results)}
    for name, text in texts.items():
        replace_text(folder / name, text)
    return check_release(folder)


def check_place(folder: str | os.PathLike) -> None:
    """
    Whether a release can be written to a folder, which costs nothing to know before a model is trained or converted.

    Raises:
        `ValueError`: for a file, a folder that cannot be replaced, or one that holds a model which is no release.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; a release is a folder.")
    if folder.exists() and (os.path.ismount(folder) or folder == Path.cwd()):
        raise ValueError(
            f"{str(folder)!r} is a mount point or the working directory, which cannot be replaced whole; name a "
            "folder inside it."
        )
    if _recorded(folder) is None:
        _refuse_loss(folder, [name for name in _names(folder) if _is_of_a_model(folder / name)])


def _refuse_loss(folder: Path, names: list[str]) -> None:
    if names:
        listed = ", ".join(names[:5]) + " ..." * (len(names) > 5)
        raise ValueError(
            f"{str(folder)!r} holds {listed}, which no release of this package has written and a release would "
            "replace; choose another folder, or move them away."
        )


def _names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []


def _is_of_a_model(path: Path) -> bool:
    return path.suffix in _MODEL_SUFFIXES or path.name in {*_MODEL_NAMES, ADAPTER_CONFIG}


def _recorded(folder: Path) -> dict[str, Any] | None:
    """The results of the release in a folder; `None` where there is none."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return results if results["model"]["name"] and (folder / "README.md").is_file() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _foreign(folder: Path) -> list[str]:
    """Names in a folder that the release there, if there is one, did not write."""
    results = _recorded(folder)
    if results is None:
        return _names(folder)
    if "files" in results:
        return [name for name in _names(folder) if name not in results["files"]]
    pictures = {picture["file"] for picture in results.get("pictures") or []}
    return [name for name in _names(folder) if not _is_of_a_model(folder / name) and name not in pictures]
