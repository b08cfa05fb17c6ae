"""`hf-jepa card`."""

import argparse
import sys
from pathlib import Path

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands, "card", run, "render a model card from results.json", "hf-jepa card results.json --output README.md"
    )
    parser.add_argument("results", type=Path, help="results.json, or the folder of a release")
    parser.add_argument("--output", type=Path, help="default: print it")


def run(args: argparse.Namespace) -> None:
    from ..hub.card import render_card_file

    card = render_card_file(args.results)
    if args.output is None:
        sys.stdout.write(card)
    else:
        args.output.write_text(card, encoding="utf-8")
        print(f"wrote {args.output}")
