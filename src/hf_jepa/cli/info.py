"""`hf-jepa info`: what a release holds, and the lines that load it."""

import argparse

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "info",
        run,
        "say what a release holds and print the lines that load it",
        "hf-jepa info outputs/demo/release\n  hf-jepa info facebook/vjepa2-vitl-fpc64-256",
    )
    parser.add_argument("repo", help="repository or folder")
    parser.add_argument("--revision", help="of the repository")


def run(args: argparse.Namespace) -> None:
    from ..hub.inspection import describe_facts, inspect_release, loading_lines

    facts = inspect_release(args.repo, args.revision)
    print(facts["name"])
    for name, text in describe_facts(facts):
        print(f"  {name:<12}{text}")
    print("\n" + "\n".join(loading_lines(facts)))
