"""
Pretrains V-JEPA, V-JEPA 2 or V-JEPA 2.1 on videos (and images), from a recipe:

    hf-jepa train vjepa2_vitl16_pretrain --dataset my_videos/
    hf-jepa train recipe.yaml --accelerate_config ddp

Flags override the recipe. A later phase, with more frames or pixels, names the last checkpoint of the one before as
`start_from_checkpoint`. `--dry_run` prints the resolved recipe, parameter counts, steps and a memory estimate.
"""

import json
import shlex
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml

from ..data import (
    ClipSampler,
    MixedVideoDataset,
    SeededVideoDataset,
    VideoMaskCollator,
    load_video_dataset,
    video_eval_transform,
    video_train_transform,
)
from ..hub.release import default_video_processor
from ..masking import IMAGE_BLOCKS, MultiBlock3DMaskGenerator, TubeMaskGenerator
from ..models.vjepa import VJepa2ForPreTraining, VJepaConfig, VJepaForPreTraining
from ..models.vjepa.configuration_vjepa import GENERATION_FIELDS
from ..training import JepaTrainer, JepaTrainingArguments
from .image_families import mapping
from .pretrain_image import estimate, licence_of, origin_of
from .recipes import parse_recipe, resolved
from .video_arguments import VideoDataArguments, VideoMaskArguments, VideoModelArguments, VideoRunArguments
from .video_pictures import CAPTIONS, draw_pictures


def build_model(args: VideoModelArguments, num_frames: int) -> VJepaForPreTraining:
    """The pretraining model a recipe describes: a published size, a size of its own, or a released model."""
    model_class = VJepaForPreTraining if args.generation == "1" else VJepa2ForPreTraining
    config_class = model_class.config_class
    encoder, method = mapping(args.encoder_args, "encoder_args"), mapping(args.method, "method")
    for name, chosen, known in (("encoder_args", encoder, VJepaConfig), ("method", method, config_class)):
        if unknown := sorted(chosen.keys() - {field.name for field in fields(known)}):
            raise ValueError(f"`{name}` names {', '.join(unknown)}, which {known.__name__} has not.")
    if sum([args.size is not None, args.from_encoder is not None, "hidden_size" in encoder]) != 1:
        raise ValueError("Give one of `size`, `from_encoder`, or `encoder_args` with `hidden_size` and its layers.")
    if args.from_encoder is not None:
        if encoder:
            raise ValueError(f"`from_encoder` brings its own sizes; leave out `encoder_args`: {', '.join(encoder)}.")
        model = model_class.from_encoder(args.from_encoder, **method)
    else:
        encoder = {"crop_size": args.image_size, "frames_per_clip": num_frames, **encoder}
        if args.size is not None:
            config = config_class.from_size(args.size, args.generation, **encoder, **method)
        else:
            config = config_class(
                encoder_config=VJepaConfig(**{**GENERATION_FIELDS[args.generation], **encoder}), **method
            )
        model = model_class(config)
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model


def one_for_each(values: list | None, count: int, name: str) -> list:
    """A recipe's list with one entry per dataset or mask; a single one, or none, counts for all."""
    values = [None] if values is None else values
    if len(values) not in (1, count):
        raise ValueError(f"`{name}` has {len(values)} entries for {count}; give one, or one for each.")
    return values * (count // len(values))


def build_sampler(num_frames: int, fps: int | None, frame_step: int | None, **options: Any) -> ClipSampler:
    """How clips are taken; of one frame, which needs no rate, and at V-JEPA 2's rate if the recipe gives none."""
    if num_frames == 1:
        return ClipSampler(1, frame_step=1, **options)
    return ClipSampler(num_frames, frame_step, fps if fps or frame_step else 4, **options)


def build_train_dataset(args: VideoDataArguments, image_size: int, batch_size: int, seed: int) -> Any:
    """The training clips of one dataset, or of a mixture."""
    if not args.dataset:
        raise ValueError("The recipe names no `dataset`; give --dataset PATH.")
    count = len(args.dataset)
    columns = {
        name: one_for_each(getattr(args, name), count, name)
        for name in ("num_frames", "fps", "frame_step", "video_column")
    }
    transform = video_train_transform(
        image_size, tuple(args.crop_scale), tuple(args.crop_ratio), args.horizontal_flip, **statistics(args)
    )
    parts = [
        SeededVideoDataset(
            load_video_dataset(path, args.train_split, video_column=video_column),
            build_sampler(num_frames, fps, frame_step),
            transform,
            video_column=video_column,
            seed=seed,
            max_bad_fraction=args.max_bad_fraction,
        )
        for path, num_frames, fps, frame_step, video_column in zip(args.dataset, *columns.values(), strict=True)
    ]
    if count == 1:
        return parts[0]
    return MixedVideoDataset(parts, args.dataset_weights, seed, 1 if args.mix_within_batches else batch_size)


def build_probe_datasets(args: VideoDataArguments, image_size: int) -> list[SeededVideoDataset | None]:
    """The labelled videos that probes are fitted and scored on; `None` twice without such a dataset."""
    if args.probe_dataset is None:
        return [None, None]
    first = [one_for_each(getattr(args, name), len(args.dataset), name)[0] for name in ("fps", "frame_step")]
    sampler = build_sampler(max(args.num_frames), *first, random_start=False)
    probes = []
    for split in (args.probe_train_split, args.probe_split):
        rows = load_video_dataset(args.probe_dataset, split, args.video_column[0], args.label_column)
        rows = rows.shuffle(seed=0).select(range(min(args.probe_examples, len(rows))))
        transform = video_eval_transform(image_size, **statistics(args))
        probes.append(SeededVideoDataset(rows, sampler, transform, args.video_column[0], args.label_column))
    return probes


def statistics(args: VideoDataArguments) -> dict[str, list[float]]:
    """The channel statistics that the recipe gives."""
    given = {"mean": args.image_mean, "std": args.image_std}
    return {name: value for name, value in given.items() if value is not None}


def build_collator(
    args: VideoMaskArguments, num_frames: list[int], image_size: int, config: VJepaConfig, seed: int
) -> VideoMaskCollator:
    """The mask recipes for every clip length. Still images have V-JEPA 2.1's recipe."""

    def generators(frames: int) -> list[MultiBlock3DMaskGenerator | TubeMaskGenerator]:
        shape = {"image_size": image_size, "patch_size": config.patch_size, "mode": args.mask_mode, "seed": seed}
        if frames == 1:
            return [MultiBlock3DMaskGenerator(**shape, **IMAGE_BLOCKS)]
        shape |= {"num_frames": frames, "tubelet_size": config.tubelet_size}
        if args.tube_ratio is not None:
            return [TubeMaskGenerator(**shape, ratio=args.tube_ratio)]
        names = ("num_blocks", "spatial_scale", "temporal_scale", "max_temporal_keep")
        columns = [one_for_each(getattr(args, name), len(args.num_blocks), name) for name in names]
        complement = {"full_complement": args.full_complement, "pred_full_complement": args.pred_full_complement}
        return [
            MultiBlock3DMaskGenerator(
                **shape,
                num_blocks=blocks,
                spatial_scale=(area, area),
                temporal_scale=(length, length),
                max_temporal_keep=keep,
                **complement,
            )
            for blocks, area, length, keep in zip(*columns, strict=True)
        ]

    by_length = {frames: generators(frames) for frames in sorted(set(num_frames), reverse=True)}
    return VideoMaskCollator(by_length if len(by_length) > 1 else next(iter(by_length.values())))


def build_trainer(
    model_args: VideoModelArguments,
    data_args: VideoDataArguments,
    mask_args: VideoMaskArguments,
    args: JepaTrainingArguments,
) -> JepaTrainer:
    """Everything a recipe describes, ready to train."""
    torch.manual_seed(args.seed)
    model = build_model(model_args, max(data_args.num_frames))
    size = model_args.image_size
    train = build_train_dataset(data_args, size, args.per_device_train_batch_size, args.seed)
    probe_train, probe_test = build_probe_datasets(data_args, size)
    given = statistics(data_args)
    return JepaTrainer(
        model=model,
        args=args,
        data_collator=build_collator(mask_args, data_args.num_frames, size, model.config.encoder_config, args.seed),
        train_dataset=train,
        eval_dataset=probe_test,
        probe_train_dataset=probe_train,
        processing_class=default_video_processor(size, **{f"image_{name}": value for name, value in given.items()}),
    )


def main(argv: list[str]) -> None:
    """Trains, draws, releases and, if asked, pushes."""
    model_args, data_args, mask_args, training_args, run_args = parse_recipe(
        (VideoModelArguments, VideoDataArguments, VideoMaskArguments, JepaTrainingArguments, VideoRunArguments), argv
    )
    recipe = resolved(model_args, data_args, mask_args, training_args)
    licence = licence_of(model_args)
    trainer = build_trainer(model_args, data_args, mask_args, training_args)
    if run_args.dry_run:
        print(yaml.safe_dump({"recipe": recipe, **estimate(trainer)}, sort_keys=False))
        return
    started = time.process_time()
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    seconds = time.process_time() - started
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if not trainer.is_world_process_zero():
        return
    results = trainer.measured_results()
    origins = [origin_of(name) for name in data_args.dataset]
    results["data"] |= {"name": ", ".join(origin["name"] for origin in origins), "split": data_args.train_split}
    results["compute"] = {"cpu_seconds": seconds} if training_args.device.type == "cpu" else {}
    command = shlex.join(["hf-jepa", "train", *argv])
    for entry in results["evaluations"]:
        entry |= {"dataset": data_args.probe_dataset, "split": data_args.probe_split, "command": command}
    results["training"]["recipe"] = "`recipe.yaml`"
    results["pictures"] = CAPTIONS
    results["licence"] = licence
    pictures = draw_pictures(trainer, Path(training_args.output_dir) / "pictures")
    folder = trainer.write_release(results=results, recipe=recipe, pictures=pictures)
    print(f"The release is in {folder}; its card is {folder / 'README.md'}.")
    print(json.dumps(results["evaluations"], indent=2))
    if training_args.push_to_hub:
        print(trainer.push_folder(folder, "Trained with hf_jepa"))
