"""
YAML recipes: found by name, read into dataclasses, overridden by flags, refused when a key is misspelt, and written
back so that what was run can be run again.
"""

import argparse
import contextlib
import dataclasses
import difflib
import enum
import functools
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..file_errors import naming
from .recipe_files import recipe_names

# What a published recipe must not say, and what only this run was asked.
_SECRETS = {"hub_token", "push_to_hub_token"}
# Values with all that aliases repeat; a recipe has some dozens.
MAX_RECIPE_VALUES = 100_000
_NOT_THE_RUN = {"resume_from_checkpoint", "local_rank", "dry_run", "overwrite_output_dir"}


def find_recipe(name_or_path: str | Path) -> Path:
    """
    The file of a recipe: a path, or the name of a recipe of this package.

    Raises:
        ValueError: if there is neither, naming the nearest names.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = recipe_names()
    name = path.name.removesuffix(".yaml")
    # `llm/nl_rx_synth_tiny`: the folder may be said.
    if name in known and known[name].with_name(name).parts[-len(path.parts) :] == path.with_name(name).parts:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"There is no recipe {str(name_or_path)!r}; {hint}`hf-jepa recipes` lists those of this package.")


def read_recipe(path: str | Path, hints: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Reads a recipe file: a flat mapping, or one level of sections (`model:`, `data:`, ...) that only group keys.

    Args:
        path (`str` or `Path`): of the file, or the name of a recipe of this package.
        hints (`dict[str, type]`, *optional*): the known keys; a mapping at the top that is the value of one of them is
            no section.

    Raises:
        ValueError: for a file that is absent or no mapping, for one that unfolds to more than `MAX_RECIPE_VALUES`, and
            for a key given twice.
    """
    path = find_recipe(path)
    values: dict[str, Any] = {}
    for name, value in _content(path).items():
        is_section = isinstance(value, dict) and not _takes_mapping((hints or {}).get(name))
        for key, item in value.items() if is_section else [(name, value)]:
            if key in values:
                raise ValueError(f"{path} gives {key!r} twice; keep one.")
            values[key] = item
    return values


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        count = _count_values(content, {})
    # PyYAML lets through what Python says of dates, numbers, bytes and depth.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if count > MAX_RECIPE_VALUES:
        raise ValueError(f"{path} unfolds to more than MAX_RECIPE_VALUES, {MAX_RECIPE_VALUES}.")
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(content).__name__}.")
    return content


def _count_values(value: Any, known: dict[int, int]) -> int:
    """How many values there are when every alias is written out; `RecursionError` for one within itself."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        known[id(value)] = -1
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(part, known) for part in parts)
    if known[id(value)] < 0:
        raise RecursionError("an alias stands within what it stands for")
    return known[id(value)]


def family_in(path: str | Path) -> str | None:
    """The method that a recipe file names, whatever else it holds; errors as of [`read_recipe`]."""
    path = find_recipe(path)
    content = _content(path)
    sections = [content, *(value for value in content.values() if isinstance(value, dict))]
    family = next((section["family"] for section in sections if "family" in section), None)
    if not isinstance(family, str | None):
        raise ValueError(f"`family` in {path} must be the name of a method, got {family!r}.")
    return family


def parse_recipe(dataclass_types: Sequence[type], argv: Sequence[str], **forced: Any) -> tuple[Any, ...]:
    """
    Fills dataclasses from a recipe and flags; flags win. `argv` is `[recipe] [--key value ...]`.

    Args:
        dataclass_types (`Sequence[type]`): their fields are the known keys.
        argv (`Sequence[str]`): the command line without the program's name; the recipe is a path, or a name.
        forced: values that win over both.

    Returns:
        One instance per type, in order.

    Raises:
        ValueError: for unknown keys, naming the nearest known one, and for values of the wrong type.
    """
    values = given_values(dataclass_types, argv) | forced
    has_recipe = bool(argv) and not argv[0].startswith("-")
    with naming(argv[0]) if has_recipe else contextlib.nullcontext():
        return tuple(
            cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})
            for cls in dataclass_types
        )


def given_values(dataclass_types: Sequence[type], argv: Sequence[str]) -> dict[str, Any]:
    """What a recipe and flags say, as the types of the fields; arguments and errors as of [`parse_recipe`]."""
    hints = _hints(dataclass_types)
    flags, recipe = given_flags(dataclass_types, argv), {}
    if argv and not argv[0].startswith("-"):
        recipe = read_recipe(argv[0], hints)
        with naming(argv[0]):
            _refuse_unknown(recipe, hints)
            recipe = {key: _fitted(value, hints[key], f"`{key}`") for key, value in recipe.items() if key not in flags}
    return recipe | {key: _fitted(value, hints[key], f"`--{key}`") for key, value in flags.items()}


def _hints(dataclass_types: Sequence[type]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for cls in dataclass_types:
        known = typing.get_type_hints(cls)
        hints |= {field.name: known[field.name] for field in dataclasses.fields(cls) if field.init}
    return hints


def given_flags(dataclass_types: Sequence[type], argv: Sequence[str]) -> dict[str, Any]:
    """The flags that are given, as transformers' parser reads them; arguments and errors as of [`parse_recipe`]."""
    hints = _hints(dataclass_types)
    arguments = list(argv[1:] if argv and not argv[0].startswith("-") else argv)
    names = [item.split("=")[0].lstrip("-").replace("-", "_") for item in arguments if _is_flag(item)]
    _refuse_unknown((name for name in names if name.removeprefix("no_") not in hints), {*hints, "h", "help"}, "--")
    parser = HfArgumentParser(list(dataclass_types), exit_on_error=False, allow_abbrev=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        if action.nargs is None and action.choices is None and types.NoneType in _options(hints.get(action.dest)):
            action.type = _or_null(action.type or str)
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"A flag cannot be read: {error}.") from error
    except SystemExit as error:
        if error.code == 0:
            raise
        raise ValueError(f"The flags cannot be read: {' '.join(arguments)}") from error
    if rest:
        raise ValueError(f"Cannot place {' '.join(rest)!r}; flags look like --key value.")
    return vars(found)


def _or_null(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """What `read` makes of a flag's text, and of a number too the `null` that takes back what a recipe says."""

    # Errors tell its name.
    @functools.wraps(read)
    def read_or_leave(text: str) -> Any:
        return text if text == "null" else read(text)

    return read_or_leave


def _refuse_unknown(keys: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"; did you mean {prefix + near[0]!r}?" if near else "; `--help` lists the keys."
            raise ValueError(f"Unknown {'flag' if prefix else 'key of the recipe'} {prefix + str(key)!r}{hint}")


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and not argument.lstrip("-")[:1].isdigit()


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _takes_mapping(hint: Any) -> bool:
    return any((typing.get_origin(option) or option) is dict for option in _options(hint))


def _fitted(value: Any, hint: Any, name: str) -> Any:
    try:
        return _fit(value, hint)
    except (TypeError, ValueError, OverflowError, yaml.YAMLError) as error:
        raise ValueError(f"{name} is {reprlib.repr(value)}; {error}.") from error


def _fit(value: Any, hint: Any) -> Any:
    """The value as one of the hint's types; `ValueError` says what would fit."""
    options = _options(hint)
    if len(options) > 1:
        # Flags are text, and `--probe_split null` takes back what a recipe says.
        if types.NoneType in options and (value is None or value == "null"):
            return None
        if isinstance(value, str) and _takes_mapping(hint):
            # Flags are text: `--method '{weight: 1}'`. What is no mapping may be a name.
            mapping = yaml.safe_load(value)
            value = mapping if isinstance(mapping, dict) else value
        if isinstance(value, str) and str in options:
            return value
        faults = []
        for option in options:
            try:
                return _fit(value, option)
            except (TypeError, ValueError, OverflowError) as error:
                faults.append(str(error))
        raise ValueError(faults[0])
    (hint,) = options
    kind = typing.get_origin(hint) or hint
    if kind is typing.Literal:
        choices = typing.get_args(hint)
        if str(value) not in map(str, choices):
            raise ValueError(f"choose one of {', '.join(map(str, choices))}")
        return next(choice for choice in choices if str(choice) == str(value))
    if kind in (list, tuple):
        item = (typing.get_args(hint) or (Any,))[0]
        return [_fit(part, item) for part in (value if isinstance(value, list | tuple) else [value])]
    if kind is dict:
        if not isinstance(value, dict):
            raise ValueError("give a mapping such as {key: value}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("give true or false")
        return value
    if kind in (int, float):
        # YAML reads 1e-4 as text.
        number = None if isinstance(value, bool | list | dict | None) else float(value)
        if number is None or (kind is int and number != int(number)):
            raise ValueError(f"give {'a whole number' if kind is int else 'a number'}")
        return value if isinstance(value, kind) else kind(number)
    if kind is str:
        if isinstance(value, bool):
            raise ValueError("YAML reads yes, no, on and off as true and false: put it in quotes")
        if not isinstance(value, str | int | float):
            raise ValueError("give text")
        return str(value)
    if kind is types.NoneType:
        raise ValueError("it can only be left out")
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    return value


def resolved(*parts: Any) -> dict[str, Any]:
    """
    The recipe as it was run: the method, and every field of the dataclasses that differs from its default, as values
    of YAML, so that it can be run again. Tokens are left out by the names of their fields. Of an absolute path, which
    would tell of this machine, only the last part is kept.
    """
    values: dict[str, Any] = {}
    for part in parts:
        # transformers' own arguments take another form when they are made; what an untouched one has is no setting.
        stock = type(part)() if isinstance(part, TrainingArguments) else None
        inherited = {field.name for field in dataclasses.fields(TrainingArguments)} if stock else ()
        for field in dataclasses.fields(part):
            if not field.init or field.name in _SECRETS | _NOT_THE_RUN:
                continue
            if field.name in inherited:
                default = getattr(stock, field.name)
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            else:
                default = field.default
            value = _plain(getattr(part, field.name))
            if value != _plain(default) or field.name == "family":
                values[field.name] = without_folders(value)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return _plain(value.to_dict()) if hasattr(value, "to_dict") else value


def without_folders(value: Any) -> Any:
    """A value, or the values of a list or mapping, with only the last part of absolute paths; also in `--key=PATH`."""
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    flag, equals, text = value.partition("=") if value.startswith("--") else ("", "", value)
    return flag + equals + PurePath(text).name if os.path.isabs(text) or text.startswith("~") else value
