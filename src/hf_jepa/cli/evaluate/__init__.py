"""`hf-jepa evaluate`: one file per kind of task, each with its `TASKS`, `add_options` and `run`."""

import argparse
from pathlib import Path

from .._command import add_command, add_model_options
from . import answers, features, planning, vision_language

DOMAINS = (features, answers, vision_language, planning)


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run,
        "evaluate features or a classifier of images and videos, a language model's answers, a VL-JEPA, a planner",
        "hf-jepa evaluate facebook/ijepa_vith14_1k --dataset my_images/ --task knn --imagenet-statistics\n"
        "  hf-jepa evaluate facebook/vjepa2-vitl-fpc64-256 --dataset my_videos/ --task attentive --num-frames 16\n"
        "  hf-jepa evaluate my-classifier --dataset my_images/ --task classification\n"
        "  hf-jepa evaluate my-encoder --dataset photos.csv --task ridge --holdout 0.2\n"
        "  hf-jepa evaluate my-llm --dataset pairs.jsonl --task exact-match --max-new-tokens 64\n"
        "  hf-jepa evaluate my-vl-jepa --dataset captions.jsonl --task retrieval\n"
        "  hf-jepa evaluate my-world-model --dataset maze/ --task planning --env my_package.worlds:Maze-v0",
    )
    parser.add_argument("repo", help="repository or folder of the model")
    parser.add_argument("--dataset", help="a data set's name on the Hub, a folder, a parquet file, a list of files")
    parser.add_argument("--test-dataset", help="instead of --dataset")
    parser.add_argument("--task", choices=[task for domain in DOMAINS for task in domain.TASKS], default="knn")
    parser.add_argument("--test-split", help="slices such as test[:1000] included (default: test)")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--video-column", default="video", help="videos; images become still clips")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--text-column", default="text", help="language models and vqa: questions; retrieval: texts")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-test", type=int, help="use this many rows, drawn with the seed")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=0)
    for domain in DOMAINS:
        domain.add_options(parser)
    add_model_options(parser)
    parser.add_argument("--output", type=Path, help="JSON file for the results")


def run(args: argparse.Namespace) -> None:
    if args.output is not None:  # before the work whose result it would lose
        args.output.parent.mkdir(parents=True, exist_ok=True)
    domain = next(domain for domain in DOMAINS if args.task in domain.TASKS)
    if domain is not features:
        if given := [flag for flag in features.FITTING if getattr(args, flag) is not None]:
            raise ValueError(f"--task {args.task} fits nothing: leave out --{given[0].replace('_', '-')}.")
        args.dataset = args.test_dataset or args.dataset
    domain.run(args)
