"""`hf-jepa convert`."""

import argparse
import importlib
from pathlib import Path

from ..methods import METHODS
from ._command import add_command

# Name -> the flags that this converter takes beside --which and --license.
CONVERTERS = {converter.name: converter.flags for method in METHODS.values() for converter in method.converters}


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "convert",
        run,
        "turn an original training checkpoint into a release, or back",
        "hf-jepa convert ijepa IN1K-vit.h.14-300e.pth.tar ijepa-vith14\n"
        "  hf-jepa convert ijepa ijepa-vith14 IN1K-vit.h.14-300e.pth.tar --reverse\n"
        "  hf-jepa convert vjepa2 vitl.pt vjepa2-vitl\n"
        "  hf-jepa convert vjepa2 ssv2-vitl-16x2x3.pt vjepa2-vitl-ssv2 --encoder vjepa2-vitl\n"
        "  hf-jepa convert vjepa2_ac vjepa2-ac-vitg.pt vjepa2-ac-vitg\n"
        "  hf-jepa convert lewm lewm-pusht lewm-pusht-hf --statistics pusht.json",
    )
    parser.add_argument("family", choices=sorted(CONVERTERS))
    parser.add_argument("source", type=Path, help="the checkpoint file, LeWM's folder (with --reverse: the release)")
    parser.add_argument("output", type=Path, help="the folder to write (with --reverse: the file)")
    parser.add_argument("--reverse", action="store_true", help="write the original layout back")
    parser.add_argument("--which", choices=["target", "context"], help="the encoder at the root (default: target)")
    parser.add_argument("--num-attention-heads", type=int, help="of the encoders; known for the published sizes")
    parser.add_argument("--predictor-num-attention-heads", type=int, help="known for the published sizes")
    parser.add_argument("--image-size", type=int, nargs="+", help="pixels, or HEIGHT WIDTH; needed if not square")
    parser.add_argument("--num-frames", type=int, help="V-JEPA: of a clip (default: 64, V-JEPA 1's files tell)")
    parser.add_argument("--generation", choices=["2", "2.1"], help="V-JEPA 2: needed where a file looks like V-JEPA 1")
    parser.add_argument("--hierarchical-layers", type=int, nargs="+", help="V-JEPA 2.1: known for published depths")
    parser.add_argument("--encoder", help="V-JEPA: for a probe file, the release of the encoder it was trained on")
    parser.add_argument("--statistics", type=Path, help="LeWM: JSON with action_mean and action_std per raw column")
    parser.add_argument("--target-layers", type=int, nargs="+", help="data2vec: the teacher's (default: the top 6)")
    parser.add_argument(
        "--license",
        dest="licence",
        help="of the weights, for the card; known of published files only (cc-by-nc-4.0; V-JEPA 2 and 2-AC: mit)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUTPUT")


def run(args: argparse.Namespace) -> None:
    module = importlib.import_module(f"..conversion.{args.family}", __package__)
    given = {
        name: value
        for name in sorted({name for names in CONVERTERS.values() for name in names})
        if (value := getattr(args, name)) is not None
    }
    if foreign := sorted(given.keys() - set(CONVERTERS[args.family])):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ValueError(f"{args.family} checkpoints do not take {flags}: that is read off the file, or not theirs.")
    if args.which is not None and args.family == "lewm":
        raise ValueError("lewm checkpoints do not take --which: they hold one encoder.")
    if args.reverse:
        if args.output.exists() and not args.overwrite:
            raise ValueError(f"{str(args.output)!r} exists: choose another name, or pass --overwrite to replace it.")
        print(f"wrote {module.export_original_checkpoint(args.source, args.output)}")
        return
    if "image_size" in given:
        size = given["image_size"]
        if len(size) > 2:
            raise ValueError(f"--image-size takes one number or two (height width), got {len(size)}.")
        given["image_size"] = size[0] if len(set(size)) == 1 else tuple(size)
    # Each family has a default of its own for these.
    given |= {name: value for name in ("which", "licence") if (value := getattr(args, name)) is not None}
    convert = getattr(module, f"convert_{args.family}_checkpoint")
    print(f"wrote {convert(args.source, args.output, **given, overwrite=args.overwrite)}")
