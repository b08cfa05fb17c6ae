"""Probes of frozen features: images and videos."""

import argparse

from .._command import add_clip_options, clip_protocol, given, write_results

# As in hf_jepa.evaluation.TASKS, which takes torch to import.
TASKS = ("knn", "linear", "ridge", "attentive", "lowshot", "collapse", "classification")
# Flags that only make sense where something is fitted.
FITTING = ("train_split", "train_dataset", "max_train", "holdout")
OPTIONS = (
    "dataset", "task", "train_split", "test_split", "image_column", "label_column", "batch_size", "max_train",
    "max_test", "device", "bf16", "num_workers", "seed", "k", "revision", "subfolder", "imagenet_statistics",
    "num_probe_blocks", "video_column", "train_dataset", "test_dataset", "holdout",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-split", help="slices such as train[:80%%] included (default: train)")
    parser.add_argument("--train-dataset", help="instead of --dataset")
    parser.add_argument(
        "--holdout", type=float, help="score this share of the train split, drawn from every class with the seed"
    )
    parser.add_argument("--max-train", type=int, help="use this many images, drawn with the seed")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--k", type=int, default=20, help="neighbours of --task knn")
    parser.add_argument(
        "--num-probe-blocks", type=int, default=1, help="--task attentive: 1 is quick, V-JEPA 2 published 4"
    )
    add_clip_options(parser)


def run(args: argparse.Namespace) -> None:
    from ...evaluation import evaluate_model

    results = evaluate_model(args.repo, clips=clip_protocol(args), command=args.command_line, **given(args, OPTIONS))
    for entry in results["evaluations"]:
        value = "no number" if entry["value"] is None else f"{entry['value']:.4f}"
        print(f"{entry['task']}  {entry['metric']} ({entry['features']}): {value}")
    if verdict := results["evaluations"][0].get("verdict"):
        print(verdict)
    write_results(results, args.output)
