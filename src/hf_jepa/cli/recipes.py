"""`hf-jepa recipes`."""

import argparse
from itertools import takewhile

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    add_command(commands, "recipes", run, "list the recipes of this package", "hf-jepa recipes")


def first_sentence(text: str) -> str:
    """What the comment at the top of a recipe says first, in one line."""
    lines = (line.removeprefix("#").strip() for line in takewhile(lambda line: line[:1] == "#", text.splitlines()))
    comment = " ".join(lines)
    end = next((place for mark in (". ", ": ", "; ") if (place := comment.find(mark)) > 0), len(comment))
    return comment[:end].rstrip(".")


def run(args: argparse.Namespace) -> None:
    from ..programs.recipe_files import RECIPES, recipe_names

    names = recipe_names()
    width = max(map(len, names))
    room = None
    for name, path in sorted(names.items(), key=lambda item: (item[1].parent, item[0])):
        if path.parent != room:
            room = path.parent
            print(f"\n{'images' if room == RECIPES else room.name}")
        print(f"  {name.ljust(width)}  {first_sentence(path.read_text(encoding='utf-8'))}")
