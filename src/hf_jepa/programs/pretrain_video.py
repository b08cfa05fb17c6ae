"""
Pretrains V-JEPA, V-JEPA 2 or V-JEPA 2.1 on videos (and images), from a recipe:

    hf-jepa train vjepa2_vitl16_pretrain --dataset my_videos/
    hf-jepa train recipe.yaml --accelerate_config ddp

Flags override the recipe. A later phase, with more frames or pixels, names the last checkpoint of the one before as
`start_from_checkpoint`.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import MixedVideoDataset, SeededVideoDataset, fit_and_score, load_video_dataset, video_eval_transform
from ..data.clip_batches import clip_sampler, one_for_each
from ..data.model_sizes import input_size, statistics
from ..hub.processors import default_processor
from ..methods import Method
from ..models.vjepa import VJepa2ForPreTraining, VJepaConfig, VJepaForPreTraining
from ..models.vjepa.configuration_vjepa import GENERATION_FIELDS
from ..training import JepaTrainer, JepaTrainingArguments
from .facts import licence_of, method_for, origin_of, settings
from .image_arguments import DataArguments, ModelArguments
from .image_models import from_released, mapping, refuse_unknown, with_teacher
from .pretrain_image import stand_in_rows as stand_in_images
from .program import Program
from .run import run
from .video_arguments import VideoDataArguments, VideoMaskArguments, VideoModelArguments

GENERATIONS = {"vjepa": "1", "vjepa2": "2", "vjepa2_1": "2.1"}


def build_vjepa(method: Method, args: VideoModelArguments, num_frames: int) -> VJepaForPreTraining:
    """A published size, a size of its own, or a released model."""
    generation = GENERATIONS[method.name]
    model_class = VJepaForPreTraining if generation == "1" else VJepa2ForPreTraining
    config_class = model_class.config_class
    encoder = refuse_unknown("encoder_args", mapping(args.encoder_args, "encoder_args"), VJepaConfig)
    chosen = refuse_unknown("method", mapping(args.method, "method"), config_class)
    if sum([args.size is not None, args.from_encoder is not None, "hidden_size" in encoder]) != 1:
        raise ValueError(
            "Give one of `size`, `from_encoder`, or `encoder_args` with `hidden_size` and its layers; "
            "the flag `--size null` takes back what a recipe says."
        )
    if args.from_encoder is not None and encoder:
        raise ValueError(f"`from_encoder` brings its own sizes; leave out `encoder_args`: {', '.join(encoder)}.")
    encoder = {"crop_size": args.image_size or 256, "frames_per_clip": num_frames, **encoder}

    def build(fields: dict[str, Any]) -> VJepaForPreTraining:
        if args.from_encoder is not None:
            return from_released(model_class, args, fields)
        if args.size is not None:
            return model_class(config_class.from_size(args.size, generation, **encoder, **fields))
        return model_class(
            config_class(encoder_config=VJepaConfig(**{**GENERATION_FIELDS[generation], **encoder}), **fields)
        )

    return build(chosen) if args.teacher is None else with_teacher(model_class, args.teacher, build, chosen)


def build_model(args: VideoModelArguments, num_frames: int, seed: int = 0) -> PreTrainedModel:
    """The pretraining model a recipe describes."""
    torch.manual_seed(seed)
    method = method_for(args, __name__)
    model = method.load("build_model")(method, args, num_frames)
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model


def load_rows(args: VideoDataArguments) -> tuple[list[Any], Any, Any]:
    """The videos of each dataset, and the labelled ones for probes (`None` without such a dataset)."""
    if not args.dataset:
        raise ValueError("The recipe names no `dataset`; give --dataset PATH.")
    columns = one_for_each(args.video_column, len(args.dataset), "video_column")
    train = [
        load_video_dataset(path, args.train_split, video_column=column)
        for path, column in zip(args.dataset, columns, strict=True)
    ]
    if args.probe_dataset is None:
        return train, None, None
    probes = []
    for split in (args.probe_train_split, args.probe_split):
        rows = load_video_dataset(args.probe_dataset, split, args.video_column[0], args.label_column)
        probes.append(rows.shuffle(seed=0).select(range(min(args.probe_examples, len(rows)))))
    return train, *fit_and_score(*probes, args.video_column[0], args.label_column)


def stand_in_rows(model_args: VideoModelArguments, args: VideoDataArguments) -> tuple[list[Any], Any, Any]:
    """Images of noise as videos that do not move, for each dataset."""
    args.dataset = args.dataset or ["none"]
    size = ModelArguments(image_size=model_args.image_size or 256)
    columns = one_for_each(args.video_column, len(args.dataset), "video_column")
    train = [stand_in_images(size, DataArguments(image_column=column))[0] for column in columns]
    if args.probe_dataset is None:
        return train, None, None
    labels = DataArguments(image_column=columns[0], label_column=args.label_column)
    probes = stand_in_images(size, labels)[0]
    return train, probes, probes


def build_train_dataset(
    args: VideoDataArguments, rows: list[Any], model: PreTrainedModel, transform: Any, batch_size: int, seed: int
) -> Any:
    """The training clips of one dataset, or of a mixture."""
    names = ("num_frames", "fps", "frame_step", "video_column")
    columns = [one_for_each(getattr(args, name), len(rows), name) for name in names]
    parts = [
        SeededVideoDataset(
            part,
            clip_sampler(num_frames, fps, frame_step),
            transform,
            video_column=video_column,
            seed=seed,
            max_bad_fraction=args.max_bad_fraction,
        )
        for part, num_frames, fps, frame_step, video_column in zip(rows, *columns, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    return MixedVideoDataset(parts, args.dataset_weights, seed, 1 if args.mix_within_batches else batch_size)


def build_trainer(
    model_args: VideoModelArguments,
    data_args: VideoDataArguments,
    mask_args: VideoMaskArguments,
    args: JepaTrainingArguments,
    rows: tuple[list[Any], Any, Any] | None = None,
    model: PreTrainedModel | None = None,
) -> JepaTrainer:
    """Everything a recipe describes, ready to train."""
    train, *probes = load_rows(data_args) if rows is None else rows
    model = build_model(model_args, max(data_args.num_frames), args.seed) if model is None else model
    method = method_for(model_args, __name__)
    transform, collator = method.load("transform"), method.load("collator")
    chosen = statistics(model, data_args.image_mean, data_args.image_std)
    clips = build_train_dataset(
        data_args,
        train,
        model,
        transform(model, **settings(transform, data_args)),
        args.per_device_train_batch_size,
        args.seed,
    )
    rate = [one_for_each(getattr(data_args, name), len(train), name)[0] for name in ("fps", "frame_step")]
    # As `hf-jepa evaluate` takes them.
    sampler = clip_sampler(max(data_args.num_frames), *rate, random_start=False, allow_overlap=True)
    seen = video_eval_transform(input_size(model), **chosen)
    columns = (data_args.video_column[0], data_args.label_column)
    probe_train, probe_test = (
        None if part is None else SeededVideoDataset(part, sampler, seen, *columns) for part in probes
    )
    return JepaTrainer(
        model=model,
        args=args,
        data_collator=collator(model, seed=args.seed, **settings(collator, mask_args, data_args)),
        train_dataset=clips,
        eval_dataset=probe_test,
        probe_train_dataset=probe_train,
        processing_class=default_processor(model, image_mean=chosen["mean"], image_std=chosen["std"]),
    )


def describe(
    model_args: VideoModelArguments,
    data_args: VideoDataArguments,
    mask_args: VideoMaskArguments,
    args: JepaTrainingArguments,
) -> dict[str, Any]:
    """Licence, data, and what probes are scored on."""
    method_for(model_args, __name__)
    scored = data_args.probe_dataset
    return {
        "licence": licence_of(model_args.licence, model_args.from_encoder, model_args.teacher),
        "data": {**origin_of(*(data_args.dataset or [])), "split": data_args.train_split},
        "scored": {"dataset": scored and origin_of(scored)["name"], "split": data_args.probe_split},
    }


def score(trainer: JepaTrainer, *_: Any) -> None:
    """The trainer's probes."""
    if trainer.eval_dataset is not None:
        trainer.evaluate()


def draw(trainer: JepaTrainer, folder: Path, model_args: VideoModelArguments, *_: Any) -> dict[Path, str]:
    """The method's pictures."""
    return method_for(model_args, __name__).load("pictures")(trainer, folder)


PROGRAM = Program(
    argument_types=(VideoModelArguments, VideoDataArguments, VideoMaskArguments, JepaTrainingArguments),
    load_rows=lambda model_args, data_args, mask_args, args: load_rows(data_args),
    stand_in_rows=lambda model_args, data_args, mask_args, args: stand_in_rows(model_args, data_args),
    build_model=lambda model_args, data_args, mask_args, args, rows: build_model(
        model_args, max(data_args.num_frames), args.seed
    ),
    build_trainer=build_trainer,
    describe=describe,
    score=score,
    draw=draw,
)


def main(argv: list[str]) -> None:
    """Pretrains on videos."""
    run(PROGRAM, argv)
