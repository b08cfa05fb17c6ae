"""`hf-jepa record`."""

import argparse
from pathlib import Path

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "record",
        run,
        "record episodes of a gymnasium environment, for world models to learn from",
        "hf-jepa record Pendulum-v1 pendulum/ --episodes 200 --max-steps 50\n"
        "  hf-jepa record my_package.worlds:Maze-v0 maze/",
    )
    parser.add_argument("env", help="what gymnasium.make takes: NAME, or MODULE:NAME, which imports the module first")
    parser.add_argument("output", type=Path, help="new folder, in LeRobot's layout")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--max-steps", type=int, default=100, help="per episode")
    parser.add_argument("--fps", type=int, default=10, help="frames per second to be noted")
    parser.add_argument("--state-key", help="entry of the environment's infos to record as the state")
    parser.add_argument("--seed", type=int, default=0, help="episode i is reset with this + i")


def run(args: argparse.Namespace) -> None:
    from ..data.recording import make_environment, record_episodes

    environment = make_environment(args.env)
    try:
        folder = record_episodes(
            environment,
            args.output,
            args.episodes,
            max_steps=args.max_steps,
            seed=args.seed,
            fps=args.fps,
            state_key=args.state_key,
        )
    finally:
        environment.close()
    print(f"wrote {args.episodes} episodes to {folder}")
