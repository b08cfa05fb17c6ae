"""
Trains a world model on trajectories, from a recipe:

    hf-jepa train lewm_pusht --dataset my_robot_data/
    hf-jepa train vjepa2_ac_droid --dataset droid/episodes.csv

The release holds the statistics of the actions, without which nothing can plan.
"""

import json
import shlex
import time
from typing import Any

import torch
import yaml
from transformers import AutoConfig, PreTrainedModel

from ..data import (
    ActionStatistics,
    DroidTrajectories,
    LeRobotTrajectories,
    Trajectories,
    TrajectoryWindows,
    action_statistics,
    collate_windows,
)
from ..hub.processors import default_processor
from ..models.latent_world_model import LatentWorldModel, LatentWorldModelConfig
from ..models.vjepa2_ac import VJepa2ACConfig, VJepa2ACModel
from ..training import JepaTrainer, JepaTrainingArguments
from .image_arguments import RunArguments
from .image_families import mapping
from .pretrain_image import estimate, licence_of, origin_of
from .recipes import parse_recipe, resolved
from .world_model_arguments import TrajectoryArguments, WorldModelArguments

_CLASSES = {
    "latent_world_model": (LatentWorldModelConfig, LatentWorldModel),
    "vjepa2_ac": (VJepa2ACConfig, VJepa2ACModel),
}


def load_trajectories(args: TrajectoryArguments) -> Trajectories:
    """The trajectories a recipe names."""
    if args.dataset is None:
        raise ValueError("The recipe names no `dataset`; give --dataset PATH.")
    if args.layout == "droid":
        return DroidTrajectories(args.dataset, args.fps, args.camera or "left")
    if args.layout != "lerobot":
        raise ValueError(f"`layout` is lerobot or droid, got {args.layout!r}.")
    return LeRobotTrajectories(args.dataset, args.camera, args.action_column, args.state_column)


def build_model(
    model_args: WorldModelArguments, data_args: TrajectoryArguments, statistics: ActionStatistics
) -> PreTrainedModel:
    """The world model a recipe describes, with the statistics of its data in its config."""
    if model_args.family not in _CLASSES:
        raise ValueError(f"`family` is one of {', '.join(_CLASSES)}, got {model_args.family!r}.")
    config_class, model_class = _CLASSES[model_args.family]
    chosen, encoder = mapping(model_args.method, "method"), mapping(model_args.encoder_args, "encoder_args")
    if unknown := sorted(set(chosen) - set(config_class().to_dict())):
        raise ValueError(f"`method` names {', '.join(unknown)}, which {config_class.__name__} has not.")
    if encoder and model_args.from_encoder:
        raise ValueError("`from_encoder` brings its own config; leave out `encoder_args`.")
    if model_args.preset and config_class is not LatentWorldModelConfig:
        raise ValueError("`preset` is of latent world models.")
    width = len(statistics.mean)
    fields: dict[str, Any] = {
        "action_dim": width * data_args.frameskip,
        "frameskip": data_args.frameskip,
        "action_mean": statistics.mean if data_args.normalize_actions else [0.0] * width,
        "action_std": statistics.std if data_args.normalize_actions else [1.0] * width,
        "action_low": statistics.low,
        "action_high": statistics.high,
        **chosen,
    }
    if model_args.from_encoder:
        preset = {"preset": model_args.preset} if model_args.preset else {}
        return model_class.from_encoder(model_args.from_encoder, **preset, **fields)
    if encoder:
        fields["encoder_config"] = AutoConfig.for_model(**encoder).to_dict()
    config = config_class.from_preset(model_args.preset, **fields) if model_args.preset else config_class(**fields)
    return model_class(config)


def collate_robot_windows(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Windows as V-JEPA 2-AC takes them: the last action of a window leads beyond it."""
    batch = collate_windows(samples)
    frames = {
        name: batch[key]
        for key, name in (("pixel_values", "pixel_values_videos"), ("latents", "latents"))
        if key in batch
    }
    return {**frames, "actions": batch["actions"][:, :-1], "states": batch["states"]}


def build_trainer(
    model_args: WorldModelArguments, data_args: TrajectoryArguments, args: JepaTrainingArguments
) -> JepaTrainer:
    """Everything a recipe describes, ready to train."""
    trajectories = load_trajectories(data_args)
    train = range(len(trajectories) - round(data_args.held_out * len(trajectories)))
    if not train:
        raise ValueError(f"held_out={data_args.held_out:g} leaves none of {len(trajectories)} episodes to train on.")
    torch.manual_seed(args.seed)
    model = build_model(model_args, data_args, action_statistics(trajectories, train))
    is_robot = model_args.family == "vjepa2_ac"
    windows = TrajectoryWindows(
        trajectories,
        data_args.num_steps,
        data_args.frameskip,
        mean=model.config.action_mean,
        std=model.config.action_std,
        episodes=train,
        states=is_robot,
        max_bad_fraction=data_args.max_bad_fraction,
    )
    return JepaTrainer(
        model=model,
        args=args,
        data_collator=collate_robot_windows if is_robot else collate_windows,
        train_dataset=windows,
        processing_class=default_processor(model),
    )


def main(argv: list[str]) -> None:
    """Trains, releases and, if asked, pushes."""
    model_args, data_args, args, run_args = parse_recipe(
        (WorldModelArguments, TrajectoryArguments, JepaTrainingArguments, RunArguments), argv
    )
    recipe, licence = resolved(model_args, data_args, args), licence_of(model_args)
    trainer = build_trainer(model_args, data_args, args)
    if run_args.dry_run:
        print(yaml.safe_dump({"recipe": recipe, **estimate(trainer)}, sort_keys=False))
        return
    started = time.process_time()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.process_time() - started
    if not trainer.is_world_process_zero():
        return
    results = trainer.measured_results()
    results["data"] |= origin_of(data_args.dataset)
    results["compute"] = {"cpu_seconds": seconds} if args.device.type == "cpu" else {}
    results["training"] |= {"recipe": "`recipe.yaml`", "command": shlex.join(["hf-jepa", "train", *argv])}
    results["licence"] = licence
    folder = trainer.write_release(results=results, recipe=recipe)
    print(f"The release is in {folder}; its card is {folder / 'README.md'}.")
    print(json.dumps(trainer.state.log_history[-2:], indent=2))
    if args.push_to_hub:
        print(trainer.push_folder(folder, "Trained with hf_jepa"))
