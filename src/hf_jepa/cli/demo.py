"""`hf-jepa demo`: one page for every family that has something to show."""

import argparse
from pathlib import Path

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "demo",
        run,
        "serve a page on this machine: features of images, surprise of videos, texts for a picture, plans",
        "hf-jepa demo outputs/demo/release outputs/demo_video/release outputs/demo_planning/release\n"
        "  hf-jepa demo my-name/my-ijepa --space my-space/",
    )
    parser.add_argument("repos", nargs="+", metavar="REPO", help="repositories or folders of releases; a tab each")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--space", type=Path, help="write the files of a Space on the Hub to this folder instead")


def run(args: argparse.Namespace) -> None:
    from ..programs.demo_page import launch, write_space

    if args.space is None:
        launch(args.repos, args.host, args.port, device=args.device)
        return
    folder = write_space(args.repos, args.space)
    print(f"wrote {folder}; `hf upload NAME/SPACE {folder} --repo-type space` publishes it")
