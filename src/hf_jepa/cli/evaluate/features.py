"""Probes of frozen features: images and videos."""

import argparse

from .._command import given, write_results

# As in hf_jepa.evaluation.TASKS, which takes torch to import.
TASKS = ("knn", "linear", "ridge", "attentive", "lowshot", "collapse", "classification")
# Flags that only make sense where something is fitted.
FITTING = ("train_split", "train_dataset", "max_train", "holdout")
# Fields of hf_jepa.evaluation.ClipProtocol.
CLIP_OPTIONS = ("num_frames", "frame_step", "frames_per_second", "segments", "views")
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
    parser.add_argument("--num-frames", type=int, help="evaluate on videos, with clips of this many frames")
    parser.add_argument("--frame-step", type=int, help="videos: every so many frames (default: 4)")
    parser.add_argument("--frames-per-second", type=int, help="videos: of the clip, instead of a step")
    parser.add_argument("--segments", type=int, help="videos: clips per video, pooled together (default: 1)")
    parser.add_argument("--views", type=int, help="videos: crops per test clip (default: 1)")


def run(args: argparse.Namespace) -> None:
    from ...evaluation import ClipProtocol, evaluate_model

    clips = None
    protocol = given(args, CLIP_OPTIONS)
    if args.num_frames is not None:
        clips = ClipProtocol(**{name: value for name, value in protocol.items() if value is not None})
    elif any(value is not None for value in protocol.values()):
        raise ValueError("--frame-step, --frames-per-second, --segments and --views are of clips: give --num-frames.")
    results = evaluate_model(args.repo, clips=clips, command=args.command_line, **given(args, OPTIONS))
    for entry in results["evaluations"]:
        value = "no number" if entry["value"] is None else f"{entry['value']:.4f}"
        print(f"{entry['task']}  {entry['metric']} ({entry['features']}): {value}")
    if verdict := results["evaluations"][0].get("verdict"):
        print(verdict)
    write_results(results, args.output)
