"""`hf-jepa report`: one page on an encoder's features."""

import argparse
from pathlib import Path

from ._command import add_clip_options, add_command, add_model_options, clip_protocol, given

OPTIONS = (
    "train_split", "test_split", "train_dataset", "test_dataset", "holdout", "max_train", "max_test", "image_column",
    "label_column", "unlabelled", "k", "batch_size", "num_workers", "seed", "device", "revision", "subfolder",
    "imagenet_statistics", "video_column",
)  # fmt: skip


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "report",
        run,
        "write one page on an encoder of images or videos: probes, few labels, collapse, robustness, pictures",
        "hf-jepa report outputs/demo/release --dataset demo_data --output outputs/report\n"
        "  hf-jepa report my-encoder --dataset my_photos/ --holdout 0.2\n"
        "  hf-jepa report my-encoder --dataset my_photos/ --unlabelled\n"
        "  hf-jepa report my-video-encoder --dataset my_clips/ --num-frames 16 --holdout 0.2",
    )
    parser.add_argument("repo", help="repository or folder of the encoder")
    parser.add_argument("--dataset", help="a data set's name on the Hub, a folder, a parquet file, a list of files")
    parser.add_argument("--train-dataset", help="instead of --dataset")
    parser.add_argument("--test-dataset", help="instead of --dataset")
    parser.add_argument("--train-split", help="slices such as train[:80%%] included (default: train)")
    parser.add_argument("--test-split", help="slices included (default: test)")
    parser.add_argument("--holdout", type=float, help="score this share of the train split, drawn from every class")
    parser.add_argument("--max-train", type=int, default=5000, help="rows that probes are fitted on")
    parser.add_argument("--max-test", type=int, default=1000, help="rows that are scored")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--video-column", default="video", help="videos; images become still clips")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--unlabelled", action="store_true", help="only what needs no labels, on the test split")
    parser.add_argument("--k", type=int, default=20, help="neighbours")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder (default: report)")
    add_clip_options(parser, several=False)
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    from ..programs.feature_report import write_report

    options = {"clips": clip_protocol(args), **given(args, OPTIONS)}
    page = write_report(args.repo, args.dataset, args.output, command=args.command_line, **options)
    print(page.read_text(encoding="utf-8"))
    print(f"wrote {page}")
