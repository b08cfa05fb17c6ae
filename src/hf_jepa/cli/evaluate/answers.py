"""Generated answers of causal language models."""

import argparse
from pathlib import Path

from .._command import given, write_results

# As in hf_jepa.evaluation.SCORERS, which takes torch to import.
TASKS = ("exact-match", "startswith", "contains", "final-answer", "sqlite-match")
OPTIONS = (
    "dataset", "task", "text_column", "code_column", "messages_column", "system_prompt", "max_new_tokens",
    "batch_size", "seed", "device", "bf16", "revision", "subfolder", "database",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--code-column", default="code", help="language models: right answers")
    parser.add_argument("--messages-column", default="messages", help="language models: chats with both")
    parser.add_argument("--system-prompt", help="language models: put before two-column rows")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="language models: the longest answer")
    parser.add_argument("--no-thinking", action="store_true", help="language models: enable_thinking=False (Qwen3)")
    parser.add_argument("--database", type=Path, help="sqlite-match: an SQLite file, or a folder of NAME/NAME.sqlite")


def run(args: argparse.Namespace) -> None:
    from ...evaluation import evaluate_language_model

    options = given(args, OPTIONS)
    if args.no_thinking:
        options["template_options"] = {"enable_thinking": False}
    results = evaluate_language_model(
        args.repo, split=args.test_split, limit=args.max_test, command=args.command_line, **options
    )
    for answer in results["answers"][:3]:
        print(f"{answer['question']}\n  answer:    {answer['answer']}\n  reference: {answer['reference']}")
    entry = results["evaluations"][0]
    print(f"{entry['metric']}: {entry['value']:.4f} ({entry['num_examples']} answers)")
    write_results(results, args.output)
