"""The recipes of this package, by name. Nothing here imports torch: the command completes names with it."""

from importlib.resources import files
from pathlib import Path

RECIPES = Path(str(files(__package__.rpartition(".")[0]) / "recipes"))


def recipe_names() -> dict[str, Path]:
    """The recipes of this package by name."""
    return {path.stem: path for path in sorted(RECIPES.rglob("*.yaml"))}
