"""How a verb is added: its summary, an example that `--help` shows, and what it runs."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """The parser of the new verb, for its own arguments."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.set_defaults(function=run)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Where in a repository the model is, and how its pixels are normalised."""
    parser.add_argument("--revision", help="of the model's repository")
    parser.add_argument("--subfolder", default="", help="of the model in its repository, e.g. pretraining")
    parser.add_argument(
        "--imagenet-statistics", action="store_true", help="instead of the processor's (Meta's I-JEPA needs it)"
    )


def add_clip_options(parser: argparse.ArgumentParser, several: bool = True) -> None:
    """Which clips of videos; [`clip_protocol`] reads them. `several`: more than one per video may be asked for."""
    parser.add_argument("--num-frames", type=int, help="read videos, in clips of this many frames")
    parser.add_argument("--frame-step", type=int, help="videos: every so many frames (default: 4)")
    parser.add_argument("--frames-per-second", type=int, help="videos: of the clip, instead of a step")
    if several:
        parser.add_argument("--segments", type=int, help="videos: clips per video, pooled together (default: 1)")
        parser.add_argument("--views", type=int, help="videos: crops per test clip (default: 1)")


def clip_protocol(args: argparse.Namespace) -> Any:
    """The `ClipProtocol` that was asked for, or `None` where images are read."""
    names = ("num_frames", "frame_step", "frames_per_second", "segments", "views")
    chosen = {name: getattr(args, name, None) for name in names}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if not chosen:
        return None
    if args.num_frames is None:
        flags = ", ".join("--" + name.replace("_", "-") for name in chosen)
        raise ValueError(f"{flags}: of clips; give --num-frames too.")
    from ..evaluation import ClipProtocol

    return ClipProtocol(**chosen)


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options of these names, as keyword arguments."""
    return {name: getattr(args, name) for name in names}


def write_results(results: dict[str, Any], output: Path | None) -> None:
    """Writes results as JSON where the user wants them."""
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {output}")
