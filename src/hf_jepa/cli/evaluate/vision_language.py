"""VL-JEPA: zero-shot classification, retrieval, visual questions."""

import argparse

from .._command import given, write_results

# As in hf_jepa.evaluation.VISION_LANGUAGE_TASKS, which takes torch to import.
TASKS = ("zero-shot", "retrieval", "vqa")
OPTIONS = (
    "dataset", "task", "image_column", "video_column", "label_column", "text_column", "answer_column",
    "candidates_column", "query", "template", "batch_size", "seed", "device", "revision", "subfolder",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--answer-column", default="answer", help="vqa: right answers")
    parser.add_argument("--candidates-column", default="candidates", help="vqa: lists (default: all answers)")
    parser.add_argument("--query", help="zero-shot, retrieval: what is asked of every image or video")
    parser.add_argument("--template", default="{}", help="zero-shot: what is encoded of a class name")


def run(args: argparse.Namespace) -> None:
    from ...evaluation.vision_language import evaluate_vision_language

    results = evaluate_vision_language(
        args.repo, split=args.test_split, limit=args.max_test, command=args.command_line, **given(args, OPTIONS)
    )
    for entry in results["evaluations"]:
        print(f"{entry['task']}  {entry['metric']}: {entry['value']:.4f} ({entry['num_examples']} examples)")
    write_results(results, args.output)
