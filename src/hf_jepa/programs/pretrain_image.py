"""
Pretrains a model on images, from a recipe (I-JEPA, C-JEPA, data2vec, LeJEPA, Rectified LpJEPA, VICReg, SimSiam; MAE as
a baseline):

    hf-jepa train ijepa_fashion_mnist --output_dir outputs/run
    hf-jepa train recipe.yaml --accelerate_config ddp

Flags override the recipe.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy

from ..data import SeededImageDataset, SeededImageStream, fit_and_score, load_image_dataset, processor_transform
from ..data.model_sizes import input_size, statistics
from ..evaluation import knn_accuracy, ridge_probe
from ..hub.processors import default_processor
from ..training import JepaTrainer, JepaTrainingArguments
from ..training.jepa.probes import probe_metrics
from .facts import licence_of, method_for, origin_of, settings
from .image_arguments import DataArguments, MaskArguments, ModelArguments
from .program import Program
from .run import run


def build_model(args: ModelArguments, seed: int = 0) -> PreTrainedModel:
    """The pretraining model a recipe describes."""
    torch.manual_seed(seed)
    method = method_for(args, __name__)
    if args.teacher is not None and method.name not in ("ijepa", "cjepa"):
        raise ValueError(f"{method.title} takes no `teacher`: I-JEPA and C-JEPA do.")
    model = method.load("build_model")(method, args)
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model


def load_rows(args: DataArguments) -> tuple[Any, Any, Any]:
    """The training images, and the labelled ones that probes are fitted and scored on (`None` without a split)."""
    if args.dataset is None:
        raise ValueError("The recipe names no `dataset`; give --dataset NAME_OR_PATH.")

    def load(dataset: str, split: str, label_column: str | None, streaming: bool = False) -> Any:
        return load_image_dataset(
            dataset,
            split,
            image_column=args.image_column,
            label_column=label_column,
            streaming=streaming,
            config_name=args.dataset_config,
            revision=args.dataset_revision,
        )

    train = load(args.dataset, args.train_split, None, args.streaming)
    if args.probe_split is None:
        return train, None, None
    probes = []
    for split in (args.probe_train_split or args.train_split, args.probe_split):
        rows = load(args.probe_dataset or args.dataset, split, args.label_column)
        probes.append(rows.shuffle(seed=0).select(range(min(args.probe_examples, len(rows)))))
    return train, *fit_and_score(*probes, args.image_column, args.label_column)


def stand_in_rows(model_args: ModelArguments, args: DataArguments) -> tuple[Any, Any, Any]:
    """A few images of noise."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    side = model_args.image_size or 224
    noise = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    rows = Dataset.from_dict(
        {args.image_column: [Image.fromarray(pixels) for pixels in noise], args.label_column: [0, 1] * 2},
        features=Features({args.image_column: ImageFeature(), args.label_column: Value("int64")}),
    )
    train = rows.to_iterable_dataset() if args.streaming else rows
    return (train, None, None) if args.probe_split is None else (train, rows, rows)


def build_processor(model: PreTrainedModel, args: DataArguments) -> Any:
    """The released encoder's processor: size and statistics of the training, and the crop that the recipe names."""
    chosen = statistics(model, args.image_mean, args.image_std)
    processor = default_processor(model, image_mean=chosen["mean"], image_std=chosen["std"])
    if args.probe_crop_pct != 1.0:
        if not 0 < args.probe_crop_pct < 1 or not isinstance(size := input_size(model), int):
            raise ValueError(f"`probe_crop_pct` is {args.probe_crop_pct}; give a share of square images, in (0, 1].")
        processor.size = {"shortest_edge": round(size / args.probe_crop_pct)}
    return processor


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    mask_args: MaskArguments,
    args: JepaTrainingArguments,
    rows: tuple[Any, Any, Any] | None = None,
    model: PreTrainedModel | None = None,
) -> JepaTrainer:
    """Everything a recipe describes, ready to train."""
    train, *probes = load_rows(data_args) if rows is None else rows
    if data_args.probe_split is None:
        # A recipe of probes that was told to leave them out.
        args.probe_every_steps, args.eval_strategy = None, IntervalStrategy.NO
    model = build_model(model_args, args.seed) if model is None else model
    method = method_for(model_args, __name__)
    transform, collator = method.load("transform"), method.load("collator")
    kind = SeededImageStream if data_args.streaming else SeededImageDataset
    train = kind(
        train,
        transform(model, **settings(transform, data_args)),
        image_column=data_args.image_column,
        seed=args.seed,
        max_bad_fraction=data_args.max_bad_fraction,
    )
    processor = build_processor(model, data_args)
    # Probes see what users of the release will see.
    seen = processor_transform(processor)
    columns = {"image_column": data_args.image_column, "label_column": data_args.label_column}
    probe_train, probe_test = (None if part is None else SeededImageDataset(part, seen, **columns) for part in probes)
    return JepaTrainer(
        model=model,
        args=args,
        data_collator=collator(model, seed=args.seed, **settings(collator, mask_args)),
        train_dataset=train,
        eval_dataset=probe_test,
        probe_train_dataset=probe_train,
        processing_class=processor,
    )


def describe(
    model_args: ModelArguments, data_args: DataArguments, mask_args: MaskArguments, args: JepaTrainingArguments
) -> dict[str, Any]:
    """Licence, data, and what probes are scored on."""
    method_for(model_args, __name__)
    origin = origin_of(*([data_args.dataset] if data_args.dataset else []))
    scored = origin_of(data_args.probe_dataset)["name"] if data_args.probe_dataset else origin["name"]
    return {
        "licence": licence_of(model_args.licence, model_args.from_encoder, model_args.teacher),
        "data": {**origin, "split": data_args.train_split},
        "scored": {"dataset": scored, "split": data_args.probe_split},
    }


def keep_untrained(trainer: JepaTrainer, model_args: ModelArguments, data_args: DataArguments, *_: Any) -> Any:
    """The model before training, if it is to be measured too."""
    return copy.deepcopy(trainer.model) if data_args.baselines and trainer.eval_dataset is not None else None


def score(trainer: JepaTrainer, untrained: PreTrainedModel | None, *_: Any) -> list[dict[str, Any]]:
    """The trainer's probes; the baselines, if the untrained model was kept."""
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    return [] if untrained is None else measure_baselines(trainer, untrained)


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


def draw(trainer: JepaTrainer, folder: Path, model_args: ModelArguments, data_args: DataArguments, *_: Any) -> Any:
    """The method's pictures; of a stream there is no first image to show."""
    return {} if data_args.streaming else method_for(model_args, __name__).load("pictures")(trainer, folder)


PROGRAM = Program(
    argument_types=(ModelArguments, DataArguments, MaskArguments, JepaTrainingArguments),
    load_rows=lambda model_args, data_args, mask_args, args: load_rows(data_args),
    stand_in_rows=lambda model_args, data_args, mask_args, args: stand_in_rows(model_args, data_args),
    build_model=lambda model_args, data_args, mask_args, args, rows: build_model(model_args, args.seed),
    build_trainer=build_trainer,
    describe=describe,
    prepare=keep_untrained,
    score=score,
    draw=draw,
)


def main(argv: list[str]) -> None:
    """Pretrains on images."""
    run(PROGRAM, argv)
