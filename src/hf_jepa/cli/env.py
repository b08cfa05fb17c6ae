"""`hf-jepa env`."""

import argparse
import json

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "env", run, "print versions and hardware, for bug reports", "hf-jepa env --json")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> None:
    from ..hub.environment import environment_report

    report = environment_report()
    if args.json:
        print(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        print(f"- {key}: {value if value is not None else 'none'}")
