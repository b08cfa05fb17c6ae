"""
Trains VL-JEPA from a recipe: query-free captioning, then instruction tuning, then the Y-decoder.

    hf-jepa train captions_tiny --dataset my_data/ --output_dir run
    hf-jepa train recipe.yaml --accelerate_config ddp

Flags override the recipe.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoTokenizer, TrainingArguments

from ..data import MixedVideoDataset, VisionTextDataset, load_vision_text_dataset
from ..models.vl_jepa import VLJepaConfig, VLJepaModel, VLJepaProcessor
from ..parts import load_auto
from ..training import VLJepaTrainer, VLJepaTrainingArguments, train_y_decoder
from .facts import licence_of, method_for, origin_of
from .image_models import mapping, refuse_unread
from .program import Program
from .run import run
from .vl_arguments import VLDataArguments, VLDecoderArguments, VLModelArguments


def build_processor(args: VLModelArguments, data: VLDataArguments) -> VLJepaProcessor:
    """The parts' processor, or the checkpoint's, with the recipe's settings."""
    names = ("num_frames", "max_query_length", "max_target_length", "default_query", "target_prompt")
    settings = {name: getattr(data, name) for name in names}
    if args.checkpoint is not None:
        return VLJepaProcessor.from_pretrained(args.checkpoint, **settings)
    source = args.query_tokenizer or (args.y_encoder if isinstance(args.predictor, dict) else args.predictor)
    settings["query_tokenizer"] = load_auto(AutoTokenizer, source)
    return VLJepaProcessor.from_components(args.vision, source, args.y_encoder, args.y_decoder, **settings)


def build_model(args: VLModelArguments, processor: VLJepaProcessor, seed: int) -> VLJepaModel:
    """The parts put together, or the checkpoint, with the recipe's fields of the configuration."""
    fields = mapping(args.config, "config")
    unknown = sorted(set(fields) - set(VLJepaConfig().to_dict()))
    if unknown:
        raise ValueError(f"`config` has {', '.join(unknown)}, which VLJepaConfig does not know.")
    torch.manual_seed(seed)
    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    if args.checkpoint is not None:
        config = load_auto(AutoConfig, args.checkpoint)
        config = VLJepaConfig.from_dict({**config.to_dict(), **fields})
        return VLJepaModel.from_pretrained(args.checkpoint, config=config, dtype=torch.float32, **options)
    layers, predictor = args.predictor_layers, args.predictor
    if isinstance(predictor, dict):
        sizes = {"vocab_size": len(processor.query_tokenizer), **predictor}
        predictor = AutoModel.from_config(AutoConfig.for_model(**sizes))
        layers = layers or [0, predictor.config.num_hidden_layers]
    return VLJepaModel.from_components(
        args.vision,
        predictor,
        args.y_encoder,
        args.y_decoder,
        8 if args.num_layers is None else args.num_layers,
        None if layers is None else tuple(layers),
        args.y_heads,
        **options,
        **fields,
    )


def load_part(args: VLDataArguments, name: str, split: str, seed: int) -> VisionTextDataset:
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


def load_rows(args: VLDataArguments, training: VLJepaTrainingArguments) -> tuple[Any, Any]:
    """The training rows, and those that are scored (None without a split)."""
    seed = training.seed if training.data_seed is None else training.data_seed
    if not args.dataset:
        raise ValueError("The recipe names no `dataset`; give --dataset NAME_OR_PATH.")
    parts = [load_part(args, name, args.train_split, seed) for name in args.dataset]
    if args.query_column is not None and not any(part.query_column for part in parts):
        raise ValueError(f"No dataset has the column {args.query_column!r}, `query_column`.")
    train = parts[0] if len(parts) == 1 else MixedVideoDataset(parts, args.dataset_weights, seed)
    scored = None if args.eval_split is None else load_part(args, args.dataset[0], args.eval_split, seed)
    return train, scored


def check_sources(args: VLModelArguments) -> None:
    """Refuses recipes that name too many parts, or too few."""
    named = [name for name in ("vision", "predictor", "y_encoder") if getattr(args, name) is not None]
    if args.checkpoint is None and len(named) < 3:
        raise ValueError(f"Give `vision`, `predictor` and `y_encoder`, or `checkpoint`; got {named or 'none'}.")
    if args.checkpoint is not None and (named or args.y_decoder):
        raise ValueError(f"`checkpoint` holds all parts; leave {', '.join(named or ['y_decoder'])} out.")
    if args.checkpoint is not None:
        refuse_unread(args, "checkpoint", "config", "lora_rank")
    if args.num_layers is not None and (args.predictor_layers or isinstance(args.predictor, dict)):
        raise ValueError(
            "`num_layers` is not read beside `predictor_layers` or a `predictor` that is a mapping, whose layers are "
            "all taken; leave `num_layers` out (the flag `--num_layers null` takes back what a recipe says)."
        )


def build_trainer(
    model_args: VLModelArguments,
    data_args: VLDataArguments,
    decoder_args: VLDecoderArguments,
    args: VLJepaTrainingArguments,
    rows: tuple[Any, Any] | None = None,
    model: VLJepaModel | None = None,
) -> VLJepaTrainer:
    """Everything a recipe describes, ready to train."""
    check_sources(model_args)
    processor = build_processor(model_args, data_args)
    train, scored = load_rows(data_args, args) if rows is None else rows
    model = build_model(model_args, processor, args.seed) if model is None else model
    if decoder_args.y_decoder_steps and model.y_decoder is None:
        raise ValueError("`y_decoder_steps` needs a `y_decoder`.")
    adapter = None
    if model_args.lora_rank:
        from peft import LoraConfig

        rank = model_args.lora_rank
        adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return VLJepaTrainer(model, args, train, scored, processor, peft_config=adapter)


def fit_decoder(
    trainer: VLJepaTrainer, model_args: VLModelArguments, data_args: VLDataArguments, args: VLDecoderArguments, *_: Any
) -> bool:
    """Trains the Y-decoder on the texts of the training rows; whether it did."""
    if not args.y_decoder_steps:
        return False
    dataset = trainer.train_dataset
    parts = dataset.datasets if isinstance(dataset, MixedVideoDataset) else [dataset]
    cells = [cell for part in parts for cell in part.rows[part.target_column]]
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell]) if text and text.strip()]
    settings = TrainingArguments(
        output_dir=trainer.args.output_dir,
        max_steps=args.y_decoder_steps,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=1e-3,
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
    train_y_decoder(model, trainer.processing_class, texts, settings, noise=0.5)
    return True


def stand_in_rows(
    model_args: VLModelArguments,
    data_args: VLDataArguments,
    decoder_args: VLDecoderArguments,
    args: VLJepaTrainingArguments,
) -> tuple[Any, Any]:
    """A few images of noise with texts."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    noise = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), dtype=np.uint8)
    columns = {data_args.image_column: [Image.fromarray(pixels) for pixels in noise]}
    texts = [name for name in (data_args.target_column, data_args.query_column) if name is not None]
    columns |= {name: [f"{name} of image {row}" for row in range(8)] for name in texts}
    features = Features({data_args.image_column: ImageFeature(), **{name: Value("string") for name in texts}})
    rows = VisionTextDataset(
        Dataset.from_dict(columns, features=features),
        image_column=data_args.image_column,
        target_column=data_args.target_column,
        query_column=data_args.query_column,
        queries=data_args.queries,
        num_frames=data_args.num_frames,
        seed=args.seed,
    )
    return rows, None if data_args.eval_split is None else rows


def build_from(
    model_args: VLModelArguments,
    data_args: VLDataArguments,
    decoder_args: VLDecoderArguments,
    args: VLJepaTrainingArguments,
    rows: Any,
) -> VLJepaModel:
    """The model of a recipe."""
    check_sources(model_args)
    return build_model(model_args, build_processor(model_args, data_args), args.seed)


def score(trainer: VLJepaTrainer, *_: Any) -> None:
    """The trainer's retrieval."""
    if trainer.eval_dataset is not None:
        trainer.evaluate()


def describe(
    model_args: VLModelArguments,
    data_args: VLDataArguments,
    decoder_args: VLDecoderArguments,
    args: VLJepaTrainingArguments,
) -> dict[str, Any]:
    """Licence, data, and what is scored."""
    method_for(model_args, __name__)
    check_sources(model_args)
    sources = [model_args.checkpoint, model_args.vision, model_args.predictor, model_args.y_encoder]
    sources = [source for source in (*sources, model_args.y_decoder) if isinstance(source, str)]
    names = data_args.dataset
    return {
        "licence": licence_of(model_args.licence, *sources),
        "data": {**origin_of(*names, licence=data_args.data_licence), "split": data_args.train_split},
        "scored": {"dataset": origin_of(*names[:1])["name"], "split": data_args.eval_split},
    }


PROGRAM = Program(
    argument_types=(VLModelArguments, VLDataArguments, VLDecoderArguments, VLJepaTrainingArguments),
    load_rows=lambda model_args, data_args, decoder_args, args: load_rows(data_args, args),
    stand_in_rows=stand_in_rows,
    build_model=build_from,
    build_trainer=build_trainer,
    describe=describe,
    finish=fit_decoder,
    score=score,
    count=lambda trainer, batch_size, *_: {"pairs_per_loss": batch_size * trainer.args.world_size},
)


def main(argv: list[str]) -> None:
    """Trains VL-JEPA."""
    run(PROGRAM, argv)
