"""`hf-jepa export`."""

import argparse
import json
from pathlib import Path

from ._command import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "export",
        run,
        "write a release from a training checkpoint: the encoder (or language model) for plain transformers, a card",
        "hf-jepa export outputs/run/checkpoint-1000 my-release --license apache-2.0",
    )
    parser.add_argument("checkpoint", help="folder or repository of the composite")
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument("--which", choices=["target", "context"], default="target")
    parser.add_argument("--subfolder", default="", help="where in the repository the composite is, e.g. pretraining")
    parser.add_argument("--results", type=Path, help="results.json of the run, for the card")
    parser.add_argument("--license", dest="licence", help="of the weights; known where the source has a results.json")
    parser.add_argument("--keep-predictor-tokens", action="store_true", help="LLM-JEPA: of the vocabulary, if any")
    parser.add_argument("--merge-adapter", action="store_true", help="LLM-JEPA: a whole model, not the adapter alone")
    statistics = "for a checkpoint without an image processor (default: ImageNet's; 0.5 of other than three channels)"
    parser.add_argument("--image-mean", type=float, nargs="+", metavar="M", help=statistics)
    parser.add_argument("--image-std", type=float, nargs="+", metavar="S", help=statistics)


def run(args: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    from ..hub.checks import PRETRAINING_FOLDER
    from ..hub.processors import default_processor, saved_processor
    from ..hub.release import load_pretraining, save_release
    from ..hub.sources import carry_sources, source_names
    from ..hub.text_release import save_text_release
    from ..parts import load_auto
    from ..training.results import checkpoint_results

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
        results |= {name: known[name] for name in (*results, "base_model", "data", "conversion") if name in known}
    else:
        facts = checkpoint_results(source)
        if args.which == "context" and getattr(model, "has_target_encoder", False):
            facts.pop("evaluations", None)  # of the target encoder
        results |= facts
    results = carry_sources(results, source_names(model))
    results["licence"] = args.licence or results["licence"]
    if not results["licence"]:
        raise ValueError("The licence of the weights is not known: pass --license, e.g. --license apache-2.0.")
    results["model"] = {"name": args.output.resolve().name} | results.get("model", {})
    if model.config.model_type == "llm_jepa":
        tokenizer = load_auto(AutoTokenizer, args.checkpoint, subfolder=args.subfolder)
        options = {"merge_adapter": args.merge_adapter, "keep_predictor_tokens": args.keep_predictor_tokens}
        folder = save_text_release(model, args.output, tokenizer, results, **options)
        print(f"wrote {folder} (a causal language model for plain transformers)")
        return
    processor = saved_processor(model, folders)
    if processor is None:
        processor = default_processor(model, image_mean=args.image_mean, image_std=args.image_std)
    folder = save_release(model, args.output, results=results, processor=processor, which=args.which)
    has_floors = (folder / PRETRAINING_FOLDER).is_dir()
    content = f"{args.which} encoder at the root, composite in pretraining/" if has_floors else "the whole model"
    print(f"wrote {folder} ({content})")
