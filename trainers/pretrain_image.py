"""
Pretrains I-JEPA or C-JEPA on images, from a recipe:

    python trainers/pretrain_image.py trainers/recipes/ijepa_fashion_mnist.yaml --output_dir outputs/run
    accelerate launch --config_file trainers/accelerate/ddp.yaml trainers/pretrain_image.py recipe.yaml

Flags override the recipe. `--dry_run` prints the resolved recipe, parameter counts, steps and a memory estimate.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import IJepaConfig

from hf_jepa import CJepaForPreTraining, CJepaPreTrainingConfig, IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.data import MaskCollator, SeededImageDataset, SeededImageStream, eval_transform, load_image_dataset
from hf_jepa.data import train_transform as make_train_transform
from hf_jepa.hub.release import default_image_processor
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.models.ijepa.configuration_ijepa import IJEPA_SIZES
from hf_jepa.objectives import normalize_targets
from hf_jepa.training import JepaTrainer, JepaTrainingArguments
from hf_jepa.training.publishing import measured_results, push_folder, write_release
from hf_jepa.training.recipes import parse_recipe, resolved

FAMILIES = {
    "ijepa": (IJepaPreTrainingConfig, IJepaForPreTraining),
    "cjepa": (CJepaPreTrainingConfig, CJepaForPreTraining),
}

CAPTIONS = [
    {"file": "curves.png", "caption": "The run: loss, schedules, feature statistics, speed."},
    {"file": "masks.png", "caption": "What the context encoder sees, and the blocks the predictor is asked for."},
    {"file": "feature_pca.png", "caption": "First three principal components of the patch features as colours."},
    {
        "file": "prediction_similarity.png",
        "caption": "Similarity of the block predicted for the outlined place with every patch of the image.",
    },
]


@dataclass
class ModelArguments:
    family: Literal["ijepa", "cjepa"] = field(default="ijepa", metadata={"help": "ijepa or cjepa."})
    size: str | None = field(default=None, metadata={"help": f"Published size: {', '.join(IJEPA_SIZES)}."})
    from_encoder: str | None = field(default=None, metadata={"help": "Continue from a released encoder (id or path)."})
    licence: str | None = field(
        default=None, metadata={"help": "Of the weights; default: the source's, or apache-2.0."}
    )
    image_size: int = field(default=224, metadata={"help": "Side of the square input, in pixels."})
    patch_size: int | None = field(default=None, metadata={"help": "Side of a patch, in pixels."})
    num_channels: int = field(default=3, metadata={"help": "1 for grey images, 3 for RGB."})
    hidden_size: int | None = field(default=None, metadata={"help": "Encoder width; sizes of your own."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Encoder depth."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Encoder heads."})
    predictor_hidden_size: int | None = field(default=None, metadata={"help": "Predictor width."})
    predictor_num_hidden_layers: int | None = field(default=None, metadata={"help": "Predictor depth."})
    predictor_num_attention_heads: int | None = field(default=None, metadata={"help": "Predictor heads."})
    loss_type: str | None = field(default=None, metadata={"help": "smooth_l1, l2 or l1."})
    initialization: str | None = field(default=None, metadata={"help": "original or fan_in."})
    vicreg_weight: float | None = field(default=None, metadata={"help": "C-JEPA: weight of VICReg."})
    regularized: str | None = field(default=None, metadata={"help": "C-JEPA: predicted_blocks or context."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, ..."})


@dataclass
class DataArguments:
    dataset: str | None = field(default=None, metadata={"help": "Hub name, folder of images, saved dataset, parquet."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split to pretrain on."})
    probe_split: str | None = field(default=None, metadata={"help": "Labelled split that the probes are scored on."})
    probe_examples: int = field(default=5000, metadata={"help": "Most images that probes are fitted and scored on."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    label_column: str = field(default="label", metadata={"help": "Column of labels; needed for probes only."})
    streaming: bool = field(default=False, metadata={"help": "Read the dataset as it goes."})
    crop_scale: list[float] = field(default_factory=lambda: [0.3, 1.0], metadata={"help": "Area kept by the crop."})
    horizontal_flip: bool = field(default=False, metadata={"help": "Mirror half of the images."})
    image_mean: list[float] | None = field(default=None, metadata={"help": "Per channel; default ImageNet's."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Per channel; default ImageNet's."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Share of unreadable images that stops the run."})


@dataclass
class MaskArguments:
    mask_mode: Literal["reference", "balanced"] = field(default="balanced", metadata={"help": "See the generator."})
    context_scale: list[float] = field(default_factory=lambda: [0.85, 1.0], metadata={"help": "Context block area."})
    target_scale: list[float] = field(default_factory=lambda: [0.15, 0.2], metadata={"help": "Target block area."})
    target_aspect_ratio: list[float] = field(default_factory=lambda: [0.75, 1.5], metadata={"help": "Its shape."})
    num_target_masks: int = field(default=4, metadata={"help": "Target blocks per image."})
    min_keep: int = field(default=10, metadata={"help": "A mask keeps more tokens than this."})


@dataclass
class RunArguments:
    dry_run: bool = field(default=False, metadata={"help": "Print what would be run, and stop."})


def build_model(args: ModelArguments) -> IJepaForPreTraining:
    """The pretraining model a recipe describes: a published size, sizes of its own, or a released encoder."""
    config_class, model_class = FAMILIES[args.family]
    chosen = {
        name: value
        for name in (
            "predictor_hidden_size",
            "predictor_num_hidden_layers",
            "predictor_num_attention_heads",
            "loss_type",
            "initialization",
            "vicreg_weight",
            "regularized",
        )
        if (value := getattr(args, name)) is not None
    }
    if args.family == "ijepa" and {"vicreg_weight", "regularized"} & chosen.keys():
        raise ValueError("`vicreg_weight` and `regularized` are C-JEPA's; set `family: cjepa` or leave them out.")
    own = (args.hidden_size, args.num_hidden_layers, args.num_attention_heads)
    if sum([args.size is not None, args.from_encoder is not None, any(own)]) != 1:
        raise ValueError("Give one of `size`, `from_encoder`, or `hidden_size` with its layers and heads.")
    if args.from_encoder is not None:
        model = model_class.from_encoder(args.from_encoder, **chosen)
    elif args.size is not None:
        shape = {"image_size": args.image_size, "patch_size": args.patch_size, "num_channels": args.num_channels}
        model = model_class(config_class.from_size(args.size, **shape, **chosen))
    else:
        if not all(own) or args.patch_size is None:
            raise ValueError("Own sizes need `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `patch_size`.")
        encoder = IJepaConfig(
            hidden_size=args.hidden_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.num_attention_heads,
            intermediate_size=4 * args.hidden_size,
            layer_norm_eps=1e-6,
            image_size=args.image_size,
            patch_size=args.patch_size,
            num_channels=args.num_channels,
        )
        model = model_class(config_class(encoder_config=encoder, **chosen))
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model


def licence_of(args: ModelArguments) -> str:
    """The licence the release will carry: weights that continue from others keep theirs."""
    if args.licence is not None or args.from_encoder is None:
        return args.licence or "apache-2.0"
    results = Path(args.from_encoder) / "results.json"
    if results.is_file():
        return json.loads(results.read_text(encoding="utf-8"))["licence"]
    raise ValueError(
        f"{args.from_encoder} does not say its licence, which the release must carry on; give --licence "
        "(facebook/ijepa_*: cc-by-nc-4.0)."
    )


def build_collator(model: IJepaForPreTraining, args: MaskArguments, seed: int) -> MaskCollator:
    """The collator that makes a recipe's masks for the model's grid."""
    encoder = model.config.encoder_config
    generator = MultiBlockMaskGenerator(
        encoder.image_size,
        encoder.patch_size,
        context_scale=tuple(args.context_scale),
        target_scale=tuple(args.target_scale),
        target_aspect_ratio=tuple(args.target_aspect_ratio),
        num_target_masks=args.num_target_masks,
        min_keep=args.min_keep,
        mode=args.mask_mode,
        seed=seed,
    )
    return MaskCollator(generator)


def build_datasets(model: IJepaForPreTraining, args: DataArguments, seed: int) -> tuple[Any, Any, Any]:
    """The training images, and the labelled images that probes are fitted and scored on (`None` without a split)."""
    if args.dataset is None:
        raise ValueError("The recipe names no `dataset`; give --dataset NAME_OR_PATH.")
    image_size = model.config.encoder_config.image_size
    statistics = {"mean": args.image_mean, "std": args.image_std}
    statistics = {name: value for name, value in statistics.items() if value is not None}

    def load(split: str, label_column: str | None, streaming: bool = False) -> Any:
        return load_image_dataset(
            args.dataset,
            split,
            image_column=args.image_column,
            label_column=label_column,
            streaming=streaming,
            config_name=args.dataset_config,
            revision=args.dataset_revision,
        )

    transform = make_train_transform(
        image_size, crop_scale=tuple(args.crop_scale), hflip=args.horizontal_flip, **statistics
    )
    kind = SeededImageStream if args.streaming else SeededImageDataset
    train = kind(
        load(args.train_split, None, args.streaming),
        transform,
        image_column=args.image_column,
        seed=seed,
        max_bad_fraction=args.max_bad_fraction,
    )
    if args.probe_split is None:
        return train, None, None
    probes = []
    for split in (args.train_split, args.probe_split):
        rows = load(split, args.label_column)
        rows = rows.shuffle(seed=0).select(range(min(args.probe_examples, len(rows))))
        probes.append(
            SeededImageDataset(
                rows,
                eval_transform(image_size, **statistics),
                image_column=args.image_column,
                label_column=args.label_column,
            )
        )
    return train, *probes


def build_processor(model: IJepaForPreTraining, args: DataArguments) -> Any:
    """The image processor that goes with the released encoder: the statistics the recipe trained with."""
    processor = default_image_processor(model.config.encoder_config)
    for name in ("image_mean", "image_std"):
        if getattr(args, name) is not None:
            setattr(processor, name, list(getattr(args, name)))
    return processor


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, mask_args: MaskArguments, args: JepaTrainingArguments
) -> JepaTrainer:
    """Everything a recipe describes, ready to train."""
    torch.manual_seed(args.seed)
    model = build_model(model_args)
    train, probe_train, probe_test = build_datasets(model, data_args, args.seed)
    return JepaTrainer(
        model=model,
        args=args,
        data_collator=build_collator(model, mask_args, args.seed),
        train_dataset=train,
        eval_dataset=probe_test,
        probe_train_dataset=probe_train,
        processing_class=build_processor(model, data_args),
    )


def estimate(trainer: JepaTrainer) -> dict[str, Any]:
    """Counts that need no training: parameters, steps, and the least memory that weights and optimizer take."""
    model = trainer.model
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # float32 weights, and gradient plus two Adam moments for what is trained.
    fixed = 4 * (sum(counts.values()) + 3 * trainable)
    encoder = model.config.encoder_config
    tokens = model.config.grid_size[0] * model.config.grid_size[1]
    width = encoder.hidden_size
    # About 17 values per token, width and layer are kept for the backward pass of a pre-norm block with a 4x MLP.
    kept = 4 * 17 * tokens * width * encoder.num_hidden_layers * trainer.args.per_device_train_batch_size * 0.3
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    steps = trainer.args.max_steps
    if steps <= 0 and rows is not None:
        steps = int(rows // trainer.global_batch_size * trainer.args.num_train_epochs)
    return {
        "parameters": counts,
        "trainable_parameters": trainable,
        "training_images": rows,
        "global_batch_size": trainer.global_batch_size,
        "optimizer_steps": steps if steps > 0 else None,
        "memory_estimate_mib": {
            "weights_gradients_optimizer": round(fixed / 2**20),
            "activations_per_device_rough": round(kept / 2**20),
        },
    }


def draw_pictures(trainer: JepaTrainer, folder: Path) -> list[Path]:
    """Training curves, masks of the first batch, PCA maps and a prediction similarity map."""
    from hf_jepa.visualization import (
        plot_feature_pca,
        plot_masks,
        plot_prediction_similarity,
        plot_training_curves,
    )

    folder.mkdir(parents=True, exist_ok=True)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False).eval()
    source = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    samples = [{**source[index], "draw": index} for index in range(8)]
    batch = trainer.data_collator(samples)
    batch = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else [mask.to(model.device) for mask in value]
        for name, value in batch.items()
    }
    grid_size = model.config.grid_size
    images = batch["pixel_values"].cpu()
    images = (images - images.amin()) / (images.amax() - images.amin())
    with torch.no_grad():
        output = model(**batch)
        features = model.get_features(batch["pixel_values"]).cpu()
    # Predictions live in the space of normalised targets; without each position's mean, content alone is compared.
    targets = normalize_targets(features)
    mean = targets.mean(dim=0)
    block = batch["target_mask"][0].cpu()
    return [
        plot_training_curves(trainer.state.log_history, folder / "curves.png"),
        plot_masks(
            images,
            [mask.cpu() for mask in batch["context_mask"]],
            [mask.cpu() for mask in batch["target_mask"]],
            grid_size,
            folder / "masks.png",
        ),
        plot_feature_pca(images, features, grid_size, folder / "feature_pca.png"),
        plot_prediction_similarity(
            images,
            output.predictions[0].float().cpu() - mean[block],
            targets - mean,
            block,
            grid_size,
            folder / "prediction_similarity.png",
        ),
    ]


def main(argv: list[str]) -> None:
    """Trains, draws, releases and, if asked, pushes."""
    model_args, data_args, mask_args, training_args, run_args = parse_recipe(
        (ModelArguments, DataArguments, MaskArguments, JepaTrainingArguments, RunArguments), argv
    )
    recipe = resolved(model_args, data_args, mask_args, training_args)
    licence = licence_of(model_args)
    trainer = build_trainer(model_args, data_args, mask_args, training_args)
    if run_args.dry_run:
        print(yaml.safe_dump({"recipe": recipe, **estimate(trainer)}, sort_keys=False))
        return
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if not trainer.is_world_process_zero():
        return
    results = measured_results(trainer)
    results["data"] |= {"name": data_args.dataset, "split": data_args.train_split}
    for entry in results["evaluations"]:
        entry |= {"dataset": data_args.dataset, "split": data_args.probe_split}
    results["training"]["recipe"] = "`recipe.yaml`"
    results["pictures"] = CAPTIONS
    results["licence"] = licence
    pictures = [] if data_args.streaming else draw_pictures(trainer, Path(training_args.output_dir) / "pictures")
    folder = write_release(trainer, results=results, recipe=recipe, pictures=pictures)
    print(f"The release is in {folder}; its card is {folder / 'README.md'}.")
    print(json.dumps(results["evaluations"], indent=2))
    if training_args.push_to_hub:
        print(push_folder(trainer, folder, "Trained with hf_jepa"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
