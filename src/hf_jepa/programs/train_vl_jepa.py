"""
Trains VL-JEPA from a recipe: query-free captioning, then instruction tuning, then the Y-decoder.

    hf-jepa train captions_tiny --dataset my_data/ --output_dir run
    hf-jepa train recipe.yaml --accelerate_config ddp

Flags override the recipe. `--dry_run` prints the resolved recipe, parameter counts and pairs per loss.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoTokenizer, TrainingArguments

from ..data import MixedVideoDataset, VisionTextDataset, load_vision_text_dataset
from ..models.vl_jepa import VLJepaConfig, VLJepaModel, VLJepaProcessor
from ..training import VLJepaTrainer, VLJepaTrainingArguments, train_y_decoder
from .recipes import parse_recipe, resolved
from .vl_arguments import RunArguments, VLDataArguments, VLDecoderArguments, VLModelArguments


def build_processor(args: VLModelArguments, data: VLDataArguments) -> VLJepaProcessor:
    """The parts' processor, or the checkpoint's, with the recipe's settings."""
    names = ("num_frames", "max_query_length", "max_target_length", "default_query", "target_prompt")
    settings = {name: getattr(data, name) for name in names}
    if args.checkpoint is not None:
        return VLJepaProcessor.from_pretrained(args.checkpoint, **settings)
    source = args.query_tokenizer or (args.y_encoder if mapping_of(args.predictor) else args.predictor)
    settings["query_tokenizer"] = AutoTokenizer.from_pretrained(source)
    return VLJepaProcessor.from_components(args.vision, source, args.y_encoder, args.y_decoder, **settings)


def mapping_of(text: str | None) -> dict[str, Any] | None:
    """The YAML mapping that a part of random weights is, or None for a name."""
    value = None if text is None else yaml.safe_load(text)
    return value if isinstance(value, dict) else None


def build_model(args: VLModelArguments, processor: VLJepaProcessor, seed: int) -> VLJepaModel:
    """The parts put together, or the checkpoint, with the recipe's fields of the configuration."""
    fields = mapping_of(args.config) or {}
    unknown = sorted(set(fields) - set(VLJepaConfig().to_dict()))
    if unknown:
        raise ValueError(f"`config` has {', '.join(unknown)}, which VLJepaConfig does not know.")
    torch.manual_seed(seed)
    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    if args.checkpoint is not None:
        config = AutoConfig.from_pretrained(args.checkpoint)
        config = VLJepaConfig.from_dict({**config.to_dict(), **fields})
        return VLJepaModel.from_pretrained(args.checkpoint, config=config, dtype=torch.float32, **options)
    layers, predictor = args.predictor_layers, args.predictor
    sizes = mapping_of(predictor)
    if sizes is not None:
        sizes = {"vocab_size": len(processor.query_tokenizer), **sizes}
        predictor = AutoModel.from_config(AutoConfig.for_model(**sizes))
        layers = layers or [0, predictor.config.num_hidden_layers]
    return VLJepaModel.from_components(
        args.vision,
        predictor,
        args.y_encoder,
        args.y_decoder,
        args.num_layers,
        None if layers is None else tuple(layers),
        args.y_heads,
        **options,
        **fields,
    )


def load_rows(args: VLDataArguments, name: str, split: str, seed: int) -> VisionTextDataset:
    """One dataset of a recipe."""
    rows, root = load_vision_text_dataset(name, split, args.dataset_config, args.dataset_revision)
    columns = {column: getattr(args, column) for column in ("image_column", "video_column", "target_column")}
    # A mixture may hold captions without a question beside questions.
    query_column = args.query_column if args.query_column in rows.column_names else None
    return VisionTextDataset(
        rows,
        **columns,
        query_column=query_column,
        queries=args.queries,
        num_frames=args.num_frames,
        root=root,
        seed=seed,
        max_bad_fraction=args.max_bad_fraction,
    )


def load_data(args: VLDataArguments, seed: int) -> tuple[Any, Any]:
    """The training rows, and those that are scored (None without a split)."""
    if not args.dataset:
        raise ValueError("The recipe names no `dataset`; give --dataset NAME_OR_PATH.")
    parts = [load_rows(args, name, args.train_split, seed) for name in args.dataset]
    if args.query_column is not None and not any(part.query_column for part in parts):
        raise ValueError(f"No dataset has the column {args.query_column!r}, `query_column`.")
    train = parts[0] if len(parts) == 1 else MixedVideoDataset(parts, args.dataset_weights, seed)
    scored = None if args.eval_split is None else load_rows(args, args.dataset[0], args.eval_split, seed)
    return train, scored


def check_sources(args: VLModelArguments) -> None:
    """Refuses recipes that name too many parts, or too few."""
    named = [name for name in ("vision", "predictor", "y_encoder") if getattr(args, name) is not None]
    if args.checkpoint is None and len(named) < 3:
        raise ValueError(f"Give `vision`, `predictor` and `y_encoder`, or `checkpoint`; got {named or 'none'}.")
    if args.checkpoint is not None and (named or args.y_decoder):
        raise ValueError(f"`checkpoint` holds all parts; leave {', '.join(named or ['y_decoder'])} out.")


def build_trainer(
    model_args: VLModelArguments, data_args: VLDataArguments, args: VLJepaTrainingArguments
) -> VLJepaTrainer:
    """Everything a recipe describes, ready to train."""
    check_sources(model_args)
    processor = build_processor(model_args, data_args)
    train, scored = load_data(data_args, args.seed if args.data_seed is None else args.data_seed)
    model = build_model(model_args, processor, args.seed)
    adapter = None
    if model_args.lora_rank:
        from peft import LoraConfig

        rank = model_args.lora_rank
        adapter = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=model_args.lora_dropout, target_modules="all-linear"
        )
    return VLJepaTrainer(model, args, train, scored, processor, peft_config=adapter)


def estimate(trainer: VLJepaTrainer) -> dict[str, Any]:
    """Counts that need no training."""
    args, rows = trainer.args, len(trainer.train_dataset)
    steps = args.max_steps
    if steps <= 0:
        steps = int(rows // trainer.global_batch_size * args.num_train_epochs)
    parameters = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in trainer.model.named_children()
    }
    return {
        "parameters": {name: count for name, count in parameters.items() if count},
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "training_rows": rows,
        "pairs_per_loss": args.per_device_train_batch_size * args.world_size,
        "global_batch_size": trainer.global_batch_size,
        "optimizer_steps": steps,
    }


def fit_decoder(trainer: VLJepaTrainer, args: VLDecoderArguments) -> None:
    """Trains the Y-decoder on the texts of the training rows."""
    dataset = trainer.train_dataset
    parts = dataset.datasets if isinstance(dataset, MixedVideoDataset) else [dataset]
    cells = [cell for part in parts for cell in part.rows[part.target_column]]
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell]) if text and text.strip()]
    settings = TrainingArguments(
        output_dir=trainer.args.output_dir,
        max_steps=args.y_decoder_steps,
        per_device_train_batch_size=args.y_decoder_batch_size,
        per_device_eval_batch_size=args.y_decoder_batch_size,
        learning_rate=args.y_decoder_learning_rate,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
        logging_steps=trainer.args.logging_steps,
        seed=trainer.args.seed,
        bf16=trainer.args.bf16,
        use_cpu=trainer.args.use_cpu,
        disable_tqdm=trainer.args.disable_tqdm,
        dataloader_pin_memory=trainer.args.dataloader_pin_memory,
    )
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    train_y_decoder(model, trainer.processing_class, texts, settings, args.y_decoder_noise)


def main(argv: list[str]) -> None:
    """Trains, evaluates, trains the Y-decoder if asked, releases and, if asked, pushes."""
    model_args, data_args, decoder_args, args, run_args = parse_recipe(
        (VLModelArguments, VLDataArguments, VLDecoderArguments, VLJepaTrainingArguments, RunArguments), argv
    )
    if not model_args.licence and not run_args.dry_run:
        raise ValueError("Give --licence: what is made from released parts is bound by their licences.")
    recipe = resolved(model_args, data_args, decoder_args, args)
    trainer = build_trainer(model_args, data_args, args)
    if decoder_args.y_decoder_steps and trainer.model.y_decoder is None:
        raise ValueError("`y_decoder_steps` needs a `y_decoder`.")
    if run_args.dry_run:
        print(yaml.safe_dump({"recipe": recipe, **estimate(trainer)}, sort_keys=False))
        return
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if decoder_args.y_decoder_steps:
        fit_decoder(trainer, decoder_args)
    if not trainer.is_world_process_zero():
        return
    results = trainer.measured_results()
    results["model"]["name"] = run_args.name or results["model"]["name"]
    results["licence"] = model_args.licence
    names = [Path(name).name if Path(name).exists() else name for name in data_args.dataset]
    results["data"] |= {"name": ", ".join(names), "split": data_args.train_split, "licence": data_args.data_licence}
    results["training"]["recipe"] = "`recipe.yaml`"
    for entry in results["evaluations"]:
        entry |= {"dataset": names[0], "split": data_args.eval_split}
        print(f"{entry['task']}  {entry['metric']}: {entry['value']:.4f} on {entry['num_examples']} rows")
    folder = trainer.write_release(results, recipe)
    print(f"The release is in {folder}; its card is {folder / 'README.md'}.")
    if args.push_to_hub:
        print(trainer.push_folder(folder, "Trained with hf_jepa"))
