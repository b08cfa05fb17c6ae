"""Reading and writing original training checkpoints (files of `torch.save`) without running anything they hold."""

import argparse
import hashlib
import json
import os
import pickle
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


class UnsafeCheckpointError(ValueError):
    """The file holds Python objects other than tensors, plain values, containers and parsed arguments of them."""


def _numpy_scalar_globals() -> list:
    # Loggers put numpy scalars beside the weights; building one runs no code from the file. Both module names occur:
    # numpy 1 wrote `numpy.core`, numpy 2 writes `numpy._core`.
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")]
    names = ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]
    return [*((scalar, name) for name in names), np.dtype, *dtypes]


def load_original_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a `.pth` / `.pth.tar` file that `torch.save` wrote, with `weights_only=True` and memory-mapped tensors.

    Args:
        path: The checkpoint file.

    Returns:
        The dictionary in the file; its tensors stay on disk until they are read.

    Raises:
        FileNotFoundError: no such file.
        UnsafeCheckpointError: the pickle asks for anything but tensors and plain values. There is no way around it.
        ValueError: the file is damaged, or does not hold a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint file at {str(path)!r}.")
    _refuse_bombs(path)
    try:
        # Programs put their parsed arguments beside the weights: a bag of attributes, whose building runs no code.
        with torch.serialization.safe_globals([*_numpy_scalar_globals(), argparse.Namespace]):
            # Files older than torch 1.6 are no zip archives and cannot be memory-mapped.
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"{str(path)!r} cannot be loaded safely: it holds objects other than tensors and plain values, or is "
            f"damaged. Such a file can run code when it is loaded, so it is refused. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{str(path)!r} is damaged or no file of torch.save: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{str(path)!r} holds a {type(checkpoint).__name__}; expected a dictionary of state dicts.")
    for tensor in _tensors(checkpoint):
        if (
            tensor.layout != torch.strided
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ValueError(
                f"{str(path)!r} has a tensor that claims shape {tuple(tensor.shape)} over fewer stored numbers, or is "
                "not dense: save dense weights of their own (`tensor.contiguous()`, `tensor.to_dense()`)."
            )
    return checkpoint


def _refuse_bombs(path: Path) -> None:
    """torch.save compresses nothing; what is squeezed could unfold to any size."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            squeezed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{str(path)!r} is damaged or no file of torch.save: {error}") from error
    if squeezed:
        raise ValueError(f"{str(path)!r} holds compressed parts ({squeezed[0]}), which torch.save does not write.")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file as hexadecimal text, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _metadata_of(state_dict: dict) -> dict | None:
    """Version numbers that `Module.state_dict` attaches to its result, where they are plain enough to keep."""
    try:
        return json.loads(json.dumps(getattr(state_dict, "_metadata", None)))
    except TypeError:
        return None


def _is_plain_namespace(value: Any) -> bool:
    """Whether these are parsed arguments that JSON keeps as they are."""
    if not isinstance(value, argparse.Namespace):
        return False
    try:
        return json.loads(json.dumps(vars(value))) == vars(value)
    except (TypeError, ValueError):
        return False


def first_of_list(key: str) -> str:
    """The name of the group that is the first state dict of the list under `key`."""
    return f"{key}.0"


def _shared_names(checkpoint: dict[str, Any], groups: set[str]) -> list[str]:
    """Strings that several keys share as one object; pickle writes those once and then refers to them."""
    names = list(checkpoint)
    for key, value in checkpoint.items():
        if first_of_list(key) in groups:
            value = value[0]
        if {key, first_of_list(key)} & groups:
            names += [*value, *(getattr(value, "_metadata", None) or ())]
    for value in checkpoint.values():
        if _is_plain_namespace(value):
            names += [text for text in (*vars(value), *vars(value).values()) if isinstance(text, str)]
    seen: set[int] = set()
    return sorted({name for name in names if id(name) in seen or seen.add(id(name))})


def describe_layout(checkpoint: dict[str, Any], groups: Iterable[str], path: str | os.PathLike) -> dict[str, Any]:
    """What `write_original_checkpoint` needs, beside the tensors, to write the same file again.

    Args:
        checkpoint: The dictionary read from `path`.
        groups: Keys of `checkpoint` that hold state dicts; `KEY.0` for the first of a list of them, the only one that
            is kept.
        path: The file; the name of the archive inside it is kept, as torch derives it from the file's name.

    Returns:
        A JSON-ready dictionary: `entries` in order (names of tensors, plain values, or parsed arguments), `dropped`,
        the keys whose content is not kept (optimizer and gradient-scaler state), and what the bytes depend on beside:
        `archive_name` and `shared_names`.
    """
    groups = set(groups)
    entries: list[dict[str, Any]] = []
    dropped = []
    for key, value in checkpoint.items():
        in_list = first_of_list(key) in groups
        if in_list:
            dropped += [f"{key}.{index}" for index in range(1, len(value))]
            value = value[0]
        if in_list or key in groups:
            kind = "OrderedDict" if isinstance(value, OrderedDict) else "dict"
            entry = {"key": key, "kind": kind, "names": list(value), "metadata": _metadata_of(value)}
            entries.append(entry | ({"in_list": True} if in_list else {}))
            continue
        value = value.item() if isinstance(value, np.generic) else value
        if value is None or isinstance(value, bool | int | float | str):
            entries.append({"key": key, "value": value})
        elif _is_plain_namespace(value):
            entries.append({"key": key, "namespace": dict(vars(value))})
        else:
            dropped.append(key)
    archive_name = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            archive_name = archive.namelist()[0].split("/")[0]
    shared = _shared_names(checkpoint, groups)
    return {"archive_name": archive_name, "entries": entries, "dropped": dropped, "shared_names": shared}


def _group_of(entry: dict[str, Any]) -> str:
    return first_of_list(entry["key"]) if entry.get("in_list") else entry["key"]


def write_original_checkpoint(
    path: str | os.PathLike, layout: dict[str, Any], tensors: dict[str, dict[str, torch.Tensor]]
) -> Path:
    """Write a checkpoint file with `torch.save`, byte for byte the file that `describe_layout` saw.

    Args:
        path: Where to write. An existing file is replaced only once the new one is complete.
        layout: The result of `describe_layout`.
        tensors: Group -> name -> tensor.

    Returns:
        `path`.

    Raises:
        ValueError: the layout does not name exactly these tensors.
    """
    path = Path(path)
    named = {_group_of(entry): set(entry["names"]) for entry in layout["entries"] if "names" in entry}
    if named != {group: set(state_dict) for group, state_dict in tensors.items()}:
        raise ValueError("The recorded layout does not name the tensors of this model; delete it or convert again.")
    checkpoint: dict[str, Any] = {}
    shared = {name: name for name in layout["shared_names"]}

    def name_object(name: str) -> str:
        # Pickle writes a string object that it has seen before as a reference, and an equal but other one in full.
        return shared.get(name) or name[:1] + name[1:]

    for entry in layout["entries"]:
        if "namespace" in entry:
            arguments = argparse.Namespace()
            for name, value in entry["namespace"].items():
                vars(arguments)[name_object(name)] = name_object(value) if isinstance(value, str) else value
            checkpoint[name_object(entry["key"])] = arguments
            continue
        if "names" not in entry:
            checkpoint[name_object(entry["key"])] = entry["value"]
            continue
        state_dict = OrderedDict() if entry["kind"] == "OrderedDict" else {}
        for name in entry["names"]:
            state_dict[name_object(name)] = tensors[_group_of(entry)][name].contiguous()
        if entry["metadata"] is not None and isinstance(state_dict, OrderedDict):
            state_dict._metadata = OrderedDict(
                (name_object(name), {sys.intern(key): value for key, value in versions.items()})
                for name, versions in entry["metadata"].items()
            )
        checkpoint[name_object(entry["key"])] = [state_dict] if entry.get("in_list") else state_dict
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch.save names the archive inside the file after the file, so the file is born under its original name.
    archive_name = Path(layout["archive_name"] or path.name.partition(".")[0]).name
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        temporary = Path(folder) / f"{archive_name}.pth"
        torch.save(checkpoint, temporary)
        os.replace(temporary, path)
    return path
