"""`hf-jepa check-data`: every bad file of a dataset, at once."""

import argparse

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "check-data",
        run,
        "read every image, video or pair of a dataset and list what is bad, short or in two splits",
        "hf-jepa check-data my_images/\n  hf-jepa check-data clips.csv --min-frames 64 --num-workers 4",
    )
    parser.add_argument("dataset", help="a folder, a list of files, a parquet or jsonl file, a data set on the Hub")
    parser.add_argument("--kind", choices=["images", "videos", "pairs", "texts"], help="default: what the files show")
    parser.add_argument("--column", help="of images or videos (default: image or video); texts: of Code (code)")
    parser.add_argument("--text-column", default="text", help="pairs and texts: of the texts")
    parser.add_argument("--min-frames", type=int, default=2, help="videos: fewer are short; a clip spans 16 x 4, say")
    parser.add_argument("--num-workers", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    from ..data.checking import check_data

    faults, count = check_data(
        args.dataset, args.kind, args.column, args.text_column, args.min_frames, args.num_workers
    )
    for fault in faults:
        print(fault)
    if faults:
        kinds = [fault.kind for fault in faults]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        raise ValueError(f"{counts} of {count} rows.")
    print(f"{count} rows, all of them usable, none in two splits.")
