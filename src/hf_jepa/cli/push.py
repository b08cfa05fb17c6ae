"""`hf-jepa push`."""

import argparse
from pathlib import Path

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands, "push", run, "check a release and upload it to the Hub", "hf-jepa push my-release my-name/my-model"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("repo_id", help="organisation/name")
    parser.add_argument("--private", action="store_true", help="if the repository has to be created")
    parser.add_argument("--revision", help="branch to upload to")


def run(args: argparse.Namespace) -> None:
    from ..hub.release import push_release

    print(push_release(args.folder, args.repo_id, private=args.private or None, revision=args.revision))
