"""YAML recipes: dataclasses filled from a file, overridden by flags, refused when a key is misspelt."""

import dataclasses
import difflib
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def read_recipe(path: str | Path) -> dict[str, Any]:
    """
    Reads a recipe file: a flat mapping, or one level of sections (`model:`, `data:`, ...) that only group keys.

    Raises:
        ValueError: for a file that is absent or no mapping, and for a key given twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no recipe {str(path)!r}; src/hf_jepa/recipes/ holds some to start from.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(content).__name__}.")
    values: dict[str, Any] = {}
    for name, value in content.items():
        for key, item in (
            value.items() if isinstance(value, dict) and name != "accelerator_config" else [(name, value)]
        ):
            if key in values:
                raise ValueError(f"{path} gives {key!r} twice; keep one.")
            values[key] = item
    return values


def parse_recipe(dataclass_types: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """
    Fills dataclasses from a recipe and flags; flags win. `argv` is `[recipe.yaml] [--key value ...]`.

    Args:
        dataclass_types (`Sequence[type]`): their fields are the known keys.
        argv (`Sequence[str]`): the command line without the program's name.

    Returns:
        One instance per type, in order.

    Raises:
        ValueError: for unknown keys, naming the nearest known one, and for values of the wrong type.
    """
    arguments = list(argv)
    recipe = read_recipe(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else {}
    known = [field.name for cls in dataclass_types for field in dataclasses.fields(cls) if field.init]
    flags = [
        argument.split("=")[0].removeprefix("--").replace("-", "_") for argument in arguments if _is_flag(argument)
    ]
    for key in [*recipe, *flags]:
        if key not in known and key.removeprefix("no_") not in known and key not in ("h", "help"):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown key {key!r} in the recipe or flags{hint}")

    parser = HfArgumentParser(list(dataclass_types), exit_on_error=False)
    # As string defaults, values go through the same conversion as flags: YAML reads 1e-4 as a string.
    flattened = [item for key, value in recipe.items() for item in _as_flag(key, value)]
    try:
        *parsed, rest = parser.parse_args_into_dataclasses([*flattened, *arguments], return_remaining_strings=True)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == 0:
            raise
        raise ValueError(f"The recipe cannot be read: {error}") from error
    if rest:
        raise ValueError(f"Cannot place {' '.join(rest)!r}; flags look like --key value.")
    return tuple(parsed)


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and not argument.lstrip("-")[:1].isdigit()


def _as_flag(key: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={yaml.safe_dump(value).strip() if isinstance(value, dict) else value}"]


def resolved(*parts: Any) -> dict[str, Any]:
    """
    The recipe as it was run: every field of the given dataclasses that differs from its default or says what was run,
    as plain YAML values. Secrets (`*token*`) are left out.
    """
    values: dict[str, Any] = {}
    for part in parts:
        defaults = {
            field.name: field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            for field in dataclasses.fields(part)
        }
        for name, default in defaults.items():
            value = getattr(part, name, None)
            value = value.value if isinstance(value, enum.Enum) else value
            plain = isinstance(value, str | int | float | bool | list | tuple)
            if plain and value != default and "token" not in name and not name.startswith("_"):
                values[name] = list(value) if isinstance(value, tuple) else value
    return values
