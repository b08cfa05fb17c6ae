"""`hf-jepa demo-vl`: the page of `hf-jepa demo` for a VL-JEPA alone."""

import argparse

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "demo-vl",
        run,
        "serve a page on this machine where a VL-JEPA ranks texts for an image or a video",
        "hf-jepa demo-vl outputs/demo_vl/model",
    )
    parser.add_argument("repo", help="repository or folder of a VL-JEPA with its processor")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="default: the GPU if there is one")


def run(args: argparse.Namespace) -> None:
    from ..programs.demo_page import launch

    launch([args.repo], args.host, args.port, device=args.device)
