"""
The `hf-jepa` command. Every failure is one line on stderr and a non-zero exit; `--debug` shows the traceback.

A verb is one file with `add(commands)`, which adds its parser, and `run(args)`, which does the work and imports what
it needs: `hf-jepa --help` imports no torch.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence

from ..version import __version__
from . import (
    card,
    check_data,
    completion,
    convert,
    demo,
    demo_vl,
    env,
    evaluate,
    export,
    info,
    list_methods,
    push,
    recipes,
    record,
    report,
    train,
    visualize,
)

VERBS = (
    check_data,
    train,
    recipes,
    convert,
    export,
    info,
    evaluate,
    report,
    visualize,
    push,
    card,
    record,
    demo,
    demo_vl,
    list_methods,
    env,
    completion,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the `hf-jepa` command."""
    parser = argparse.ArgumentParser(
        prog="hf-jepa",
        description="Joint-embedding predictive architectures for the Hugging Face stack.",
        epilog="`hf-jepa COMMAND --help` shows an example of each command.",
    )
    parser.add_argument("--version", action="version", version=f"hf-jepa {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb in VERBS:
        verb.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "_ARGCOMPLETE" in os.environ:
        # The shell asks for completions; this prints them and ends the process.
        import argcomplete

        argcomplete.autocomplete(build_parser())
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(["hf-jepa", *argv])
    # Commands write pictures to files; the backend of a notebook that calls them may not import in their environment.
    os.environ["MPLBACKEND"] = "Agg"
    try:
        return args.function(args) or 0
    except KeyboardInterrupt as error:
        # An interrupted run knows by which signal.
        return getattr(error, "code", 130)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        text = str(error)
        if " in DataLoader worker process " in text:
            # torch writes the worker's traceback before what was wrong.
            text = re.split(r"\n(?=[\w.]+: )", text)[-1].partition(": ")[2]
        message = " ".join(text.split()) or type(error).__name__
        print(f"hf-jepa: error: {message}", file=sys.stderr)
        return 1
