"""`hf-jepa train`."""

import argparse
from typing import Any

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        "train from a recipe, by name or file; flags of the recipe's keys override it",
        "hf-jepa train ijepa_in1k_vits16 --dataset my_images/ --output_dir outputs/run\n"
        "  hf-jepa train recipe.yaml --dry_run\n"
        "  hf-jepa train ijepa_in1k_vits16 --accelerate_config ddp --num_processes 8",
    )
    recipe = parser.add_argument(
        "recipe", help="`hf-jepa recipes` lists them; `hf-jepa train RECIPE --help` lists its keys"
    )
    recipe.completer = _recipes
    parser.add_argument("--accelerate_config", metavar="NAME", help="ddp, fsdp2, zero2, gpu, cpu, or a file")
    parser.add_argument("--num_processes", type=int, help="default: one per GPU")
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="--key value", help="keys of the recipe")


def _recipes(prefix: str, **_: Any) -> list[str]:
    """Names and files that a shell completes."""
    from argcomplete.completers import FilesCompleter

    from ..programs.recipe_files import recipe_names

    names = [name for name in recipe_names() if name.startswith(prefix)]
    return names + list(FilesCompleter(("yaml", "yml"))(prefix))


def run(args: argparse.Namespace) -> int | None:
    from ..programs.launch import launch, train

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--accelerate_config", default=args.accelerate_config)
    own.add_argument("--num_processes", type=int, default=args.num_processes)
    own.add_argument("--debug", action="store_true", default=args.debug)
    options, flags = own.parse_known_args(args.flags)
    args.debug = options.debug
    if options.accelerate_config is None and options.num_processes is None:
        return train([args.recipe, *flags])
    return launch([args.recipe, *flags], options.accelerate_config, options.num_processes)
