"""The `hf-jepa` command. Every failure is one line on stderr and a non-zero exit; `--debug` shows the traceback."""

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..version import __version__

_SIZES = ("num_attention_heads", "predictor_num_attention_heads", "image_size")
# Family -> the flags that its converter takes beside --which and --license.
CONVERTERS = {
    "data2vec_vision": ("target_layers",),
    "ijepa": _SIZES,
    "vjepa": (*_SIZES, "num_frames", "encoder"),
    "vjepa2": (*_SIZES, "num_frames", "encoder", "generation", "hierarchical_layers"),
}


def _convert(args: argparse.Namespace) -> None:
    module = importlib.import_module(f"..conversion.{args.family}", __package__)
    given = {
        name: value
        for name in sorted({name for names in CONVERTERS.values() for name in names})
        if (value := getattr(args, name)) is not None
    }
    if foreign := sorted(given.keys() - set(CONVERTERS[args.family])):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ValueError(f"{args.family} checkpoints do not take {flags}: that is read off the file, or not theirs.")
    if args.reverse:
        print(f"wrote {module.export_original_checkpoint(args.source, args.output)}")
        return
    if "image_size" in given:
        size = given["image_size"]
        if len(size) > 2:
            raise ValueError(f"--image-size takes one number or two (height width), got {len(size)}.")
        given["image_size"] = size[0] if len(set(size)) == 1 else tuple(size)
    # Each family has a default of its own for these.
    given |= {name: value for name in ("which", "licence") if (value := getattr(args, name)) is not None}
    print(f"wrote {getattr(module, f'convert_{args.family}_checkpoint')(args.source, args.output, **given)}")


def _export(args: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    from ..hub.processors import default_processor, saved_processor
    from ..hub.release import load_pretraining, save_release
    from ..hub.text_release import save_text_release

    model = load_pretraining(args.checkpoint, **({"subfolder": args.subfolder} if args.subfolder else {}))
    source = Path(args.checkpoint, args.subfolder)
    # A checkpoint keeps its processor and results beside its weights, a release one floor up.
    folders = (source, source.parent)
    recorded = next((file for folder in folders if (file := folder / "results.json").is_file()), None)
    results = {"licence": args.licence, "source_licence": None}
    if args.results is not None:
        results |= json.loads(args.results.read_text(encoding="utf-8"))
    elif recorded is not None:
        # What was measured there was measured on another encoder perhaps; whose work it is stays the same.
        known = json.loads(recorded.read_text(encoding="utf-8"))
        results |= {name: known[name] for name in (*results, "data", "conversion") if name in known}
    if not results["licence"]:
        raise ValueError("The licence of the weights is not known: pass --license, e.g. --license apache-2.0.")
    results["model"] = {"name": args.output.resolve().name} | results.get("model", {})
    if model.config.model_type == "llm_jepa":
        tokenizer = AutoTokenizer.from_pretrained(args.checkpoint, subfolder=args.subfolder)
        keep = args.keep_predictor_tokens
        folder = save_text_release(model, args.output, tokenizer, results, keep_predictor_tokens=keep)
        print(f"wrote {folder} (a causal language model for plain transformers)")
        return
    processor = saved_processor(model, folders)
    if processor is None:
        processor = default_processor(model, image_mean=args.image_mean, image_std=args.image_std)
    folder = save_release(model, args.output, results=results, processor=processor, which=args.which)
    print(f"wrote {folder} ({args.which} encoder at the root, composite in pretraining/)")


# As in hf_jepa.evaluation.TASKS and, for generated answers, SCORERS, which take torch to import.
FEATURE_TASKS = ("knn", "linear", "attentive", "lowshot", "collapse")
ANSWER_TASKS = ("exact-match", "startswith", "contains", "final-answer", "sqlite-match")
VISION_LANGUAGE_TASKS = ("zero-shot", "retrieval", "vqa")


# Fields of hf_jepa.evaluation.ClipProtocol.
CLIP_OPTIONS = ("num_frames", "frame_step", "frames_per_second", "segments", "views")


def _evaluate_language(args: argparse.Namespace) -> None:
    from ..evaluation import evaluate_language_model

    names = (
        "dataset", "task", "text_column", "code_column", "messages_column", "system_prompt", "max_new_tokens",
        "batch_size", "seed", "device", "bf16", "revision", "subfolder", "database",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    if args.no_thinking:
        options["template_options"] = {"enable_thinking": False}
    results = evaluate_language_model(
        args.repo, split=args.test_split, limit=args.max_test, command=args.command_line, **options
    )
    answers = results["answers"]
    for answer in answers[:3]:
        print(f"{answer['question']}\n  answer:    {answer['answer']}\n  reference: {answer['reference']}")
    entry = results["evaluations"][0]
    print(f"{entry['metric']}: {entry['value']:.4f} ({entry['num_examples']} answers)")
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {args.output}")


def _evaluate_vision_language(args: argparse.Namespace) -> None:
    from ..evaluation.vision_language import evaluate_vision_language

    names = (
        "dataset", "task", "image_column", "video_column", "label_column", "text_column", "answer_column",
        "candidates_column", "query", "template", "batch_size", "seed", "device", "revision", "subfolder",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    results = evaluate_vision_language(
        args.repo, split=args.test_split, limit=args.max_test, command=args.command_line, **options
    )
    for entry in results["evaluations"]:
        print(f"{entry['task']}  {entry['metric']}: {entry['value']:.4f} ({entry['num_examples']} examples)")
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {args.output}")


def _evaluate(args: argparse.Namespace) -> None:
    from ..evaluation import ClipProtocol, evaluate_model

    names = (
        "dataset", "task", "train_split", "test_split", "image_column", "label_column", "batch_size", "max_train",
        "max_test", "device", "bf16", "num_workers", "seed", "k", "revision", "subfolder", "imagenet_statistics",
        "num_probe_blocks", "video_column",
    )  # fmt: skip
    if args.output is not None:  # before the work whose result it would lose
        args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.task in ANSWER_TASKS:
        _evaluate_language(args)
        return
    if args.task in VISION_LANGUAGE_TASKS:
        _evaluate_vision_language(args)
        return
    clips = None
    protocol = {name: getattr(args, name) for name in CLIP_OPTIONS}
    if args.num_frames is not None:
        clips = ClipProtocol(**{name: value for name, value in protocol.items() if value is not None})
    elif any(value is not None for value in protocol.values()):
        raise ValueError("--frame-step, --frames-per-second, --segments and --views are of clips: give --num-frames.")
    options = {name: getattr(args, name) for name in names}
    results = evaluate_model(args.repo, clips=clips, command=args.command_line, **options)
    for entry in results["evaluations"]:
        value = "no number" if entry["value"] is None else f"{entry['value']:.4f}"
        print(f"{entry['task']}  {entry['metric']} ({entry['features']}): {value}")
    if verdict := results["evaluations"][0].get("verdict"):
        print(verdict)
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {args.output}")


def _visualize(args: argparse.Namespace) -> None:
    from ..visualization.run import visualize

    names = ("kind", "output", "num_frames", "seed", "revision", "subfolder", "imagenet_statistics")
    print(f"wrote {visualize(args.repo, args.files, **{name: getattr(args, name) for name in names})}")


def _push(args: argparse.Namespace) -> None:
    from ..hub.release import push_release

    print(push_release(args.folder, args.repo_id, private=args.private or None, revision=args.revision))


def _card(args: argparse.Namespace) -> None:
    from ..hub.card import render_card_file

    card = render_card_file(args.results)
    if args.output is None:
        sys.stdout.write(card)
    else:
        args.output.write_text(card, encoding="utf-8")
        print(f"wrote {args.output}")


def _demo_vl(args: argparse.Namespace) -> None:
    from ..programs.vl_app import launch

    launch(args.repo, args.host, args.port, device=args.device)


def _list(args: argparse.Namespace) -> None:
    from ..methods import METHODS

    rows = [("method", "model type", "config", "model", "loads with")]
    for method in METHODS.values():
        for classes in method.model_classes():
            config, model = classes.load("config"), classes.load("model")
            loads_with = ", ".join(classes.auto_classes)
            rows.append((method.title, config.model_type, config.__name__, model.__name__, loads_with))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _env(args: argparse.Namespace) -> None:
    from ..hub.environment import environment_report

    report = environment_report()
    if args.json:
        print(json.dumps(report, indent=2))
        return
    for key, value in report.items():
        print(f"- {key}: {value if value is not None else 'none'}")


def _add_command(
    commands: argparse._SubParsersAction,
    name: str,
    function: Callable[[argparse.Namespace], None],
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.set_defaults(function=function)
    return parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of the `hf-jepa` command."""
    parser = argparse.ArgumentParser(
        prog="hf-jepa",
        description="Joint-embedding predictive architectures for the Hugging Face stack.",
        epilog="`hf-jepa COMMAND --help` shows an example of each command.",
    )
    parser.add_argument("--version", action="version", version=f"hf-jepa {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = _add_command(
        commands,
        "convert",
        _convert,
        "turn an original training checkpoint into a release, or back",
        "hf-jepa convert ijepa IN1K-vit.h.14-300e.pth.tar ijepa-vith14\n"
        "  hf-jepa convert ijepa ijepa-vith14 IN1K-vit.h.14-300e.pth.tar --reverse\n"
        "  hf-jepa convert vjepa2 vitl.pt vjepa2-vitl\n"
        "  hf-jepa convert vjepa2 ssv2-vitl-16x2x3.pt vjepa2-vitl-ssv2 --encoder vjepa2-vitl",
    )
    convert.add_argument("family", choices=sorted(CONVERTERS))
    convert.add_argument("source", type=Path, help="the checkpoint file (with --reverse: the release folder)")
    convert.add_argument("output", type=Path, help="the folder to write (with --reverse: the file)")
    convert.add_argument("--reverse", action="store_true", help="write the original layout back")
    convert.add_argument("--which", choices=["target", "context"], help="the encoder at the root (default: target)")
    convert.add_argument("--num-attention-heads", type=int, help="of the encoders; known for the published sizes")
    convert.add_argument("--predictor-num-attention-heads", type=int, help="known for the published sizes")
    convert.add_argument("--image-size", type=int, nargs="+", help="pixels, or HEIGHT WIDTH; needed if not square")
    convert.add_argument("--num-frames", type=int, help="V-JEPA: of a clip (default: 64, V-JEPA 1's files tell)")
    convert.add_argument(
        "--generation", choices=["2", "2.1"], help="V-JEPA 2: needed where a file looks like V-JEPA 1"
    )
    convert.add_argument("--hierarchical-layers", type=int, nargs="+", help="V-JEPA 2.1: known for published depths")
    convert.add_argument("--encoder", help="V-JEPA: for a probe file, the release of the encoder it was trained on")
    convert.add_argument("--target-layers", type=int, nargs="+", help="data2vec: the teacher's (default: the top 6)")
    convert.add_argument(
        "--license",
        dest="licence",
        help="of the checkpoint, for the card (default: of the published files, cc-by-nc-4.0; V-JEPA 2: mit)",
    )

    export = _add_command(
        commands,
        "export",
        _export,
        "write a release from a training checkpoint: the encoder (or language model) for plain transformers, a card",
        "hf-jepa export outputs/run/checkpoint-1000 my-release --license apache-2.0",
    )
    export.add_argument("checkpoint", help="folder or repository of the composite")
    export.add_argument("output", type=Path, help="the folder to write")
    export.add_argument("--which", choices=["target", "context"], default="target")
    export.add_argument("--subfolder", default="", help="where in the repository the composite is, e.g. pretraining")
    export.add_argument("--results", type=Path, help="results.json of the run, for the card")
    export.add_argument("--license", dest="licence", help="of the weights; known where the source has a results.json")
    export.add_argument("--keep-predictor-tokens", action="store_true", help="LLM-JEPA: of the vocabulary, if any")
    statistics = "for a checkpoint without an image processor (default: ImageNet's)"
    export.add_argument(
        "--image-mean", type=float, nargs="+", default=[0.485, 0.456, 0.406], metavar="M", help=statistics
    )
    export.add_argument(
        "--image-std", type=float, nargs="+", default=[0.229, 0.224, 0.225], metavar="S", help=statistics
    )

    evaluate = _add_command(
        commands,
        "evaluate",
        _evaluate,
        "evaluate the frozen features of a vision checkpoint, the answers of a causal language model, or a VL-JEPA",
        "hf-jepa evaluate facebook/ijepa_vith14_1k --dataset my_images/ --task knn --imagenet-statistics\n"
        "  hf-jepa evaluate facebook/vjepa2-vitl-fpc64-256 --dataset my_videos/ --task attentive --num-frames 16\n"
        "  hf-jepa evaluate my-llm --dataset pairs.jsonl --task exact-match --max-new-tokens 64\n"
        "  hf-jepa evaluate my-vl-jepa --dataset captions.jsonl --task retrieval",
    )
    evaluate.add_argument("repo", help="repository or folder of the model")
    evaluate.add_argument("--dataset", required=True, help="a data set's name on the Hub, a folder, or a parquet file")
    evaluate.add_argument("--task", choices=[*FEATURE_TASKS, *ANSWER_TASKS, *VISION_LANGUAGE_TASKS], default="knn")
    evaluate.add_argument("--train-split", default="train", help="slices such as train[:1000] included")
    evaluate.add_argument("--test-split", default="test")
    evaluate.add_argument("--image-column", default="image")
    evaluate.add_argument("--label-column", default="label")
    evaluate.add_argument("--batch-size", type=int, default=64)
    evaluate.add_argument("--max-train", type=int, help="use this many images, drawn with the seed")
    evaluate.add_argument("--max-test", type=int)
    evaluate.add_argument("--device", help="default: the GPU if there is one")
    evaluate.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    evaluate.add_argument("--num-workers", type=int, default=0)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--k", type=int, default=20, help="neighbours of --task knn")
    evaluate.add_argument(
        "--num-probe-blocks", type=int, default=1, help="--task attentive: 1 is quick, V-JEPA 2 published 4"
    )
    evaluate.add_argument("--video-column", default="video", help="videos; images become still clips")
    evaluate.add_argument("--num-frames", type=int, help="evaluate on videos, with clips of this many frames")
    evaluate.add_argument("--frame-step", type=int, help="videos: every so many frames (default: 4)")
    evaluate.add_argument("--frames-per-second", type=int, help="videos: of the clip, instead of a step")
    evaluate.add_argument("--segments", type=int, help="videos: clips per video, pooled together (default: 1)")
    evaluate.add_argument("--views", type=int, help="videos: crops per test clip (default: 1)")
    evaluate.add_argument("--text-column", default="text", help="language models and vqa: questions; retrieval: texts")
    evaluate.add_argument("--answer-column", default="answer", help="vqa: right answers")
    evaluate.add_argument("--candidates-column", default="candidates", help="vqa: lists (default: all answers)")
    evaluate.add_argument("--query", help="zero-shot, retrieval: what is asked of every image or video")
    evaluate.add_argument("--template", default="{}", help="zero-shot: what is encoded of a class name")
    evaluate.add_argument("--code-column", default="code", help="language models: right answers")
    evaluate.add_argument("--messages-column", default="messages", help="language models: chats with both")
    evaluate.add_argument("--system-prompt", help="language models: put before two-column rows")
    evaluate.add_argument("--max-new-tokens", type=int, default=128, help="language models: the longest answer")
    evaluate.add_argument("--no-thinking", action="store_true", help="language models: enable_thinking=False (Qwen3)")
    evaluate.add_argument(
        "--database", type=Path, help="sqlite-match: an SQLite file, or a folder of NAME/NAME.sqlite"
    )
    evaluate.add_argument("--output", type=Path, help="JSON file for the results")

    visualize = _add_command(
        commands,
        "visualize",
        _visualize,
        "draw features, masks or predictions on images or videos",
        "hf-jepa visualize my-release cat.jpg dog.jpg --output pca.png\n"
        "  hf-jepa visualize my-release cat.jpg --kind similarity --subfolder pretraining\n"
        "  hf-jepa visualize my-video-release juggling.mp4 --kind surprise --subfolder pretraining",
    )
    visualize.add_argument("repo", help="repository or folder of the model")
    visualize.add_argument("files", type=Path, nargs="+", help="images, or videos for a video model")
    visualize.add_argument("--kind", choices=["pca", "masks", "similarity", "surprise"], default="pca")
    visualize.add_argument("--num-frames", type=int, help="videos: of a clip, spread over the video")
    visualize.add_argument("--seed", type=int, default=0, help="of the masks")
    visualize.add_argument("--output", type=Path, help="default: KIND.png")

    for command in (evaluate, visualize):
        command.add_argument("--revision", help="of the model's repository")
        command.add_argument("--subfolder", default="", help="of the model in its repository, e.g. pretraining")
        command.add_argument(
            "--imagenet-statistics", action="store_true", help="instead of the processor's (Meta's I-JEPA needs it)"
        )

    push = _add_command(
        commands, "push", _push, "check a release and upload it to the Hub", "hf-jepa push my-release my-name/my-model"
    )
    push.add_argument("folder", type=Path)
    push.add_argument("repo_id", help="organisation/name")
    push.add_argument("--private", action="store_true", help="if the repository has to be created")
    push.add_argument("--revision", help="branch to upload to")

    card = _add_command(
        commands,
        "card",
        _card,
        "render a model card from results.json",
        "hf-jepa card results.json --output README.md",
    )
    card.add_argument("results", type=Path)
    card.add_argument("--output", type=Path, help="default: print it")

    demo_vl = _add_command(
        commands,
        "demo-vl",
        _demo_vl,
        "serve a page on this machine where a VL-JEPA ranks texts for an image or a video",
        "hf-jepa demo-vl outputs/demo_vl/model",
    )
    demo_vl.add_argument("repo", help="repository or folder of a VL-JEPA with its processor")
    demo_vl.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    demo_vl.add_argument("--port", type=int, default=7860)
    demo_vl.add_argument("--device", help="default: the GPU if there is one")

    _add_command(commands, "list", _list, "print the model types of this package", "hf-jepa list")
    env = _add_command(commands, "env", _env, "print versions and hardware, for bug reports", "hf-jepa env --json")
    env.add_argument("--json", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)
    args.command_line = shlex.join(["hf-jepa", *argv])
    try:
        args.function(args)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"hf-jepa: error: {message}", file=sys.stderr)
        return 1
    return 0
