"""`hf-jepa list`."""

import argparse

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    add_command(commands, "list", run, "print the model types of this package", "hf-jepa list")


def run(args: argparse.Namespace) -> None:
    from ..methods import METHODS

    rows = [("method", "model type", "config", "model", "loads with")]
    for method in METHODS.values():
        for classes in method.model_classes():
            config, model = classes.load("config"), classes.load("model")
            loads_with = ", ".join(classes.auto_classes)
            rows.append((method.title, config.model_type, config.__name__, model.__name__, loads_with))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
