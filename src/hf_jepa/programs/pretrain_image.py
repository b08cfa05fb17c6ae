"""
Pretrains a model on images, from a recipe (I-JEPA, C-JEPA, data2vec, LeJEPA, Rectified LpJEPA, VICReg, SimSiam; MAE as
a baseline):

    hf-jepa train ijepa_fashion_mnist --output_dir outputs/run
    hf-jepa train recipe.yaml --accelerate_config ddp

Flags override the recipe. `--dry_run` prints the resolved recipe, parameter counts, steps and a memory estimate.
"""

import copy
import json
import shlex
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel

from ..data import SeededImageDataset, SeededImageStream, eval_transform, load_image_dataset
from ..evaluation import knn_accuracy, ridge_probe
from ..hub.release import default_image_processor
from ..training import JepaTrainer, JepaTrainingArguments
from ..training.jepa.probes import probe_metrics
from .image_arguments import DataArguments, MaskArguments, ModelArguments, RunArguments
from .image_families import family_of
from .image_pictures import MASK_CAPTIONS as CAPTIONS
from .image_pictures import draw_mask_pictures as draw_pictures
from .recipes import parse_recipe, resolved

__all__ = ["CAPTIONS", "build_trainer", "draw_pictures", "main"]


def build_model(args: ModelArguments) -> PreTrainedModel:
    """The pretraining model a recipe describes."""
    model = family_of(args).build_model(args)
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model


def input_size(model: PreTrainedModel) -> int:
    """Side of the images that the model was built for."""
    config = model.config
    return config.image_size if hasattr(config, "image_size") else config.encoder_config.image_size


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


def origin_of(dataset: str) -> dict[str, str]:
    """Name and licence of the data; `scripts/make_demo_data.py` leaves a note of them beside what it makes."""
    note = Path(dataset) / "provenance.json"
    if not note.is_file():
        return {"name": dataset}
    origin = json.loads(note.read_text(encoding="utf-8"))
    return {"name": origin["name"], "licence": origin["licence"].lower()}


def build_datasets(
    model: PreTrainedModel, model_args: ModelArguments, args: DataArguments, seed: int
) -> tuple[Any, Any, Any]:
    """The training images, and the labelled images that probes are fitted and scored on (`None` without a split)."""
    if args.dataset is None:
        raise ValueError("The recipe names no `dataset`; give --dataset NAME_OR_PATH.")
    image_size = input_size(model)
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

    kind = SeededImageStream if args.streaming else SeededImageDataset
    train = kind(
        load(args.train_split, None, args.streaming),
        family_of(model_args).build_transform(args, image_size, statistics),
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
        transform = eval_transform(image_size, crop_pct=args.probe_crop_pct, **statistics)
        probes.append(
            SeededImageDataset(rows, transform, image_column=args.image_column, label_column=args.label_column)
        )
    return train, *probes


def build_processor(model: PreTrainedModel, args: DataArguments) -> Any:
    """The image processor that goes with the released encoder: the size and statistics the recipe trained with."""
    processor = default_image_processor(
        model.config if hasattr(model.config, "image_size") else model.config.encoder_config
    )
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
    train, probe_train, probe_test = build_datasets(model, model_args, data_args, args.seed)
    return JepaTrainer(
        model=model,
        args=args,
        data_collator=family_of(model_args).build_collator(model, mask_args, args.seed),
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
    memory = {"weights_gradients_optimizer": round(4 * (sum(counts.values()) + 3 * trainable) / 2**20)}
    if hasattr(model.config, "grid_size"):
        encoder = model.config.encoder_config
        tokens = model.config.grid_size[0] * model.config.grid_size[1]
        # About 17 values per token, width and layer are kept for the backward pass of a pre-norm block with a 4x MLP.
        kept = 4 * 17 * tokens * encoder.hidden_size * encoder.num_hidden_layers
        kept *= trainer.args.per_device_train_batch_size * 0.3
        memory["activations_per_device_rough"] = round(kept / 2**20)
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    steps = trainer.args.max_steps
    if steps <= 0 and rows is not None:
        steps = int(rows // trainer.global_batch_size * trainer.args.num_train_epochs)
    return {
        "parameters": counts,
        "trainable_parameters": trainable,
        "training_examples": rows,
        "global_batch_size": trainer.global_batch_size,
        "optimizer_steps": steps if steps > 0 else None,
        "memory_estimate_mib": memory,
    }


def measure_baselines(trainer: JepaTrainer, untrained: PreTrainedModel) -> list[dict[str, Any]]:
    """The trainer's probes on raw pixels and on the encoder before training, as entries of `results.json`."""
    splits = []
    for rows in (trainer.probe_train_dataset, trainer.eval_dataset):
        samples = [rows[index] for index in range(len(rows))]
        splits.append(torch.stack([sample["pixel_values"] for sample in samples]).flatten(1))
        splits.append(torch.tensor([sample["label"] for sample in samples]))
    pixels = {
        "knn": knn_accuracy(*splits, k=trainer.args.probe_num_neighbors),
        "ridge": ridge_probe(*splits).accuracy,
    }
    sets = (trainer.probe_train_dataset, trainer.eval_dataset)
    found = probe_metrics(untrained.to(trainer.args.device), *sets, trainer.args, trainer.accelerator)
    fresh = {task: found[f"{task}_accuracy"] for task in pixels}
    return [
        {**entry, "name": name, "value": values[entry["task"]]}
        for name, values in (("raw pixels", pixels), ("untrained encoder", fresh))
        for entry in trainer.measured_results()["evaluations"]
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
    untrained = copy.deepcopy(trainer.model) if data_args.baselines and trainer.eval_dataset is not None else None
    started = time.process_time()
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    seconds = time.process_time() - started
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    baselines = [] if untrained is None else measure_baselines(trainer, untrained)
    if not trainer.is_world_process_zero():
        return
    results = trainer.measured_results()
    results["data"] |= {**origin_of(data_args.dataset), "split": data_args.train_split}
    results["baselines"] = baselines
    results["compute"] = {"cpu_seconds": seconds} if training_args.device.type == "cpu" else {}
    command = shlex.join(["hf-jepa", "train", *argv])
    for entry in [*results["evaluations"], *baselines]:
        entry |= {"dataset": results["data"]["name"], "split": data_args.probe_split, "command": command}
    results["training"]["recipe"] = "`recipe.yaml`"
    family = family_of(model_args)
    results["pictures"] = family.captions
    results["licence"] = licence
    pictures = []
    if not data_args.streaming:
        pictures = family.draw_pictures(trainer, Path(training_args.output_dir) / "pictures")
    folder = trainer.write_release(results=results, recipe=recipe, pictures=pictures)
    print(f"The release is in {folder}; its card is {folder / 'README.md'}.")
    print(json.dumps(results["evaluations"] + baselines, indent=2))
    if training_args.push_to_hub:
        print(trainer.push_folder(folder, "Trained with hf_jepa"))
