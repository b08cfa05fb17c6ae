"""Checkpoints as people keep them: which state dicts a file holds, whatever was wrapped around them."""

import os
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from ..file_errors import naming

Groups = dict[str, dict[str, torch.Tensor]]

# What distributed training, compilation and the video methods' multi-mask wrapper put before every key.
_WRAPPERS = ("module.", "_orig_mod.", "backbone.")
# Where training programs put the state dict of the whole model, or of the encoder, beside their own state.
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_MOST_NAMED = 8


def listed(names: Iterable[Any]) -> str:
    """Names for a message, cut after some."""
    names = list(map(str, names))
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def common_prefix(keys: Iterable[str]) -> str:
    """The wrappers' names that every key starts with, such as `module.backbone.`."""
    keys, prefix = list(keys), ""
    while keys and (name := next((w for w in _WRAPPERS if all(key.startswith(prefix + w) for key in keys)), None)):
        prefix += name
    return prefix


def names_file(convert: Callable[..., Path]) -> Callable[..., Path]:
    """A converter, whose first argument is a file, with errors that all name it."""

    @wraps(convert)
    def naming_it(path: str | os.PathLike, *args: Any, **kwargs: Any) -> Path:
        with naming(path):
            return convert(path, *args, **kwargs)

    return naming_it


def holds_tensors(value: Any) -> bool:
    """Whether there is a tensor somewhere within a value of a checkpoint."""
    if isinstance(value, dict | list | tuple):
        return any(map(holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, torch.Tensor)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, torch.Tensor) for entry in value.values())


def find_groups(
    content: dict[str, Any], names: Iterable[str], encoder: str = "encoder"
) -> tuple[dict[str, Any], bool]:
    """
    The state dicts of a family in a file: under their names; within `state_dict` or `model`; as one state dict of the
    whole model, whose keys start with the names; or the encoder's alone.

    Args:
        content (`dict`): as read from the file.
        names (`Iterable[str]`): of the family's groups.
        encoder (`str`): the group that a state dict without names is.

    Returns:
        Those groups that are there, and whether the file has the released layout, which can be written again.

    Raises:
        `ValueError`: for the state dict of a whole model that has more parts than the family's.
    """
    names, found, is_original = list(names), content, True
    while not any(name in found and isinstance(found[name], dict | list) for name in names):
        inner = next((found[key] for key in _CONTAINERS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found, is_original = inner, False
    if _is_state_dict(found):
        prefix = common_prefix(map(str, found))
        keys = {str(key).removeprefix(prefix): value for key, value in found.items()}
        parts: dict[str, Any] = {}
        for key, value in keys.items():
            name, _, rest = key.partition(".")
            parts.setdefault(name if name in names and rest else "", {})[rest if name in names and rest else key] = (
                value
            )
        if len(parts) > 1 and "" in parts:
            raise ValueError(f"The state dict has keys of no known part ({', '.join(names)}): {listed(parts[''])}.")
        return (parts if "" not in parts else {encoder: keys}), False
    return {name: found[name] for name in names if name in found}, is_original


def read_groups(
    checkpoint: dict[str, Any], names: Iterable[str], what: str, encoder: str = "encoder"
) -> tuple[Groups, dict[str, str], bool]:
    """
    The state dicts of a checkpoint, with what wrappers put before their keys taken off.

    Args:
        checkpoint (`dict`): as read from the file.
        names (`Iterable[str]`): the groups of the family.
        what (`str`): what was expected, for the message.
        encoder (`str`): see [`find_groups`].

    Returns:
        Group -> key -> tensor; group -> the prefix that its keys had; and whether the file has the released layout.

    Raises:
        `ValueError`: for a file without any of the groups, or one of them that is empty or holds something else than
            tensors.
    """
    found, is_original = find_groups(checkpoint, names, encoder)
    if not found:
        raise ValueError(f"The checkpoint holds {listed(map(repr, checkpoint))}. Expected {what}.")
    if "ema_encoder" in found:  # which the released loader of distilled models reads
        found.pop("target_encoder", None)
    groups, prefixes = {}, {}
    for name, state_dict in found.items():
        if not isinstance(state_dict, dict):
            raise ValueError(f"`{name}` of the checkpoint is a {type(state_dict).__name__}. Expected {what}.")
        prefix = common_prefix(map(str, state_dict))
        tensors = {str(key).removeprefix(prefix): value for key, value in state_dict.items()}
        wrong = [key for key, value in tensors.items() if not isinstance(value, torch.Tensor)]
        if wrong or not tensors:
            raise ValueError(
                f"`{name}` of the checkpoint must hold tensors only; these are none: {listed(wrong) or 'it is empty'}."
            )
        groups[name], prefixes[name] = tensors, prefix
    return groups, prefixes, is_original


# Which encoder a state dict is. The distilled checkpoints of V-JEPA 2.1 name the moving average differently.
ENCODERS = {"context": ("encoder",), "target": ("target_encoder", "ema_encoder")}


def chosen_encoder(groups: Groups, which: str | None, path: Path) -> tuple[str, str]:
    """
    The group of the encoder that a release's root is to be, and which one that is: by default the target, which the
    papers evaluate, or the only one of the file.

    Raises:
        `ValueError`: if the file does not have it.
    """
    held = {kind: name for kind, names in ENCODERS.items() for name in names if name in groups}
    if not held:
        raise ValueError(f"{path.name!r} has no encoder but only {listed(map(repr, groups))}.")
    which = which or ("target" if "target" in held else "context")
    if which not in held:
        raise ValueError(
            f"{path.name!r} has no {which} encoder but only {listed(map(repr, groups))}; leave out `which` (--which)."
        )
    return held[which], which


def refuse_class_token(groups: Groups, method: str) -> None:
    """
    Names a ViT of another kind for what it is, instead of listing all that is wrong with it.

    Raises:
        `ValueError`: for a group with a class token.
    """
    for name, tensors in groups.items():
        if "cls_token" in tensors:
            raise ValueError(
                f"`{name}` of the checkpoint has a `cls_token`: it is a ViT with a class token, such as DINO, MAE, "
                f"DeiT or a supervised one, and {method} has none. Load it as what it is (timm, or ViTModel of "
                "transformers); such an encoder can be trained further with `LeJepaForPreTraining.from_encoder`."
            )


def widen(groups: Groups) -> str | None:
    """
    Makes half precision float32, which every program can use and continue; that loses nothing.

    Args:
        groups: changed in place, where all of their floating tensors have one type of 16 bits.

    Returns:
        `str`, *optional*: the type's name, for the way back.
    """
    dtypes = {tensor.dtype for tensors in groups.values() for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) != 1 or not dtypes <= {torch.float16, torch.bfloat16}:
        return None
    for tensors in groups.values():
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.float()
    return str(dtypes.pop()).removeprefix("torch.")


def licence_of(path: Path, licence: str | None, published: str, names: Iterable[str], is_published_size: bool) -> str:
    """
    The licence of a file: the given one, or the published files' where it is one of them.

    Args:
        path (`Path`): the file.
        licence (`str`, *optional*): as the caller knows it.
        published (`str`): of the published files.
        names (`Iterable[str]`): what the published files are called.
        is_published_size (`bool`): whether the model is as large as a published one.

    Raises:
        `ValueError`: for a file of somebody's own.
    """
    if licence:
        return licence
    if path.name in set(names) and is_published_size:
        return published
    raise ValueError(
        f"{path.name!r} is none of the published files (those are {published}): say under which licence its weights "
        "are, with `licence` (--license), e.g. apache-2.0."
    )


def check_output(path: str | os.PathLike, overwrite: bool) -> None:
    """
    Whether the way is free, before any work.

    Raises:
        `ValueError`: for a file or a folder with something in it.
    """
    path = Path(path)
    if not overwrite and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{str(path)!r} exists: choose another name, or say `overwrite` (--overwrite) to replace it.")
