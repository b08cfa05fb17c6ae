"""
Trains a world model on trajectories, from a recipe:

    hf-jepa train lewm_pusht --dataset my_robot_data/
    hf-jepa train vjepa2_ac_droid --dataset droid/episodes.csv
    hf-jepa train vjepa2_ac_droid --dataset droid/episodes.csv --latent_cache droid/latents

The release holds the statistics of the actions, without which nothing can plan.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel

from ..data import (
    ArrayTrajectories,
    CachedLatents,
    DroidTrajectories,
    LeRobotTrajectories,
    Trajectories,
    TrajectoryWindows,
    action_statistics,
    collate_windows,
)
from ..file_errors import naming
from ..hub.processors import default_processor
from ..models.latent_world_model import LatentWorldModelConfig
from ..planning.policy import channels_first
from ..training import JepaTrainer, JepaTrainingArguments
from .facts import licence_of, method_for, origin_of
from .image_models import mapping, refuse_unknown
from .program import Program
from .run import run
from .world_model_arguments import TrajectoryArguments, WorldModelArguments


def load_trajectories(args: TrajectoryArguments) -> Trajectories:
    """The trajectories a recipe names."""
    if args.dataset is None:
        raise ValueError("The recipe names no `dataset`; give --dataset PATH.")
    if args.layout == "droid":
        return DroidTrajectories(args.dataset, args.fps, args.camera or "left")
    if args.layout != "lerobot":
        raise ValueError(f"`layout` is lerobot or droid, got {args.layout!r}.")
    return LeRobotTrajectories(args.dataset, args.camera, args.action_column, args.state_column)


def stand_in_trajectories(args: TrajectoryArguments) -> Trajectories:
    """Noise as the frames, actions and states of a robot arm, for a dry run without the data."""
    draws = np.random.default_rng(0)
    rows = args.num_steps * args.frameskip + 2
    return ArrayTrajectories(
        [draws.normal(size=(rows - 1, 7)) for _ in range(4)],
        [draws.integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8) for _ in range(4)],
        [draws.normal(size=(rows, 7)) for _ in range(4)],
    )


def training_episodes(args: TrajectoryArguments, trajectories: Trajectories) -> range:
    """All but the last ones, which are held out."""
    train = range(len(trajectories) - round(args.held_out * len(trajectories)))
    if not train:
        raise ValueError(f"held_out={args.held_out:g} leaves none of {len(trajectories)} episodes to train on.")
    return train


def build_model(
    model_args: WorldModelArguments,
    data_args: TrajectoryArguments,
    args: JepaTrainingArguments,
    trajectories: Trajectories,
) -> PreTrainedModel:
    """The world model a recipe describes, with the statistics of its data in its config."""
    method = method_for(model_args, __name__)
    config_class, model_class = (method.composite.load(name) for name in ("config", "model"))
    chosen = refuse_unknown("method", mapping(model_args.method, "method"), config_class, "encoder_config")
    encoder = mapping(model_args.encoder_args, "encoder_args")
    if encoder and model_args.from_encoder:
        raise ValueError("`from_encoder` brings its own config; leave out `encoder_args`.")
    if model_args.preset and config_class is not LatentWorldModelConfig:
        raise ValueError("`preset` is of latent world models.")
    with naming(data_args.dataset or "the data"):
        statistics = action_statistics(trajectories, training_episodes(data_args, trajectories))
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
    torch.manual_seed(args.seed)
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


def cached_latents(
    trajectories: Trajectories, model: PreTrainedModel, data_args: TrajectoryArguments, args: JepaTrainingArguments
) -> CachedLatents:
    """Trajectories of latents, which the first process encodes while the others wait."""
    model = model.to(args.device).eval()

    def encode(frames: np.ndarray) -> torch.Tensor:
        pixels = channels_first(frames).to(args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            return model.encode(pixels[:, None])[:, 0]

    config = model.config
    seen = [data_args.layout, data_args.camera, data_args.fps, config.image_mean, config.image_std, config.frame_grid]
    about = f"{Path(data_args.dataset).name} {seen}, encoder {fingerprint(model.encoder)}"
    # A folder that all nodes see is filled by one process of all, one of each node's by one of each node.
    with args.main_process_first(local=args.save_on_each_node, desc="encoding frames"):
        dtype = "float16" if args.bf16 or args.fp16 else "float32"
        return CachedLatents(trajectories, encode, data_args.latent_cache, about, dtype=dtype)


def fingerprint(module: torch.nn.Module) -> str:
    """Of its weights, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def build_trainer(
    model_args: WorldModelArguments,
    data_args: TrajectoryArguments,
    args: JepaTrainingArguments,
    trajectories: Trajectories | None = None,
    model: PreTrainedModel | None = None,
) -> JepaTrainer:
    """Everything a recipe describes, ready to train."""
    trajectories = load_trajectories(data_args) if trajectories is None else trajectories
    model = build_model(model_args, data_args, args, trajectories) if model is None else model
    is_robot = model.main_input_name == "pixel_values_videos"
    if data_args.latent_cache is not None:
        if not is_robot:
            raise ValueError(
                f"`latent_cache` is of models that train on latents (vjepa2_ac); {model_args.family} reads pixels: "
                "leave it out."
            )
        trajectories = cached_latents(trajectories, model, data_args, args)
    windows = TrajectoryWindows(
        trajectories,
        data_args.num_steps,
        data_args.frameskip,
        mean=model.config.action_mean,
        std=model.config.action_std,
        episodes=training_episodes(data_args, trajectories),
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


def describe(
    model_args: WorldModelArguments, data_args: TrajectoryArguments, args: JepaTrainingArguments
) -> dict[str, Any]:
    """Licence and data; numbers come from `hf-jepa evaluate --task planning`."""
    method_for(model_args, __name__)
    return {
        "licence": licence_of(model_args.licence, model_args.from_encoder),
        "data": origin_of(data_args.dataset) if data_args.dataset else {},
        "scored": {},
    }


PROGRAM = Program(
    argument_types=(WorldModelArguments, TrajectoryArguments, JepaTrainingArguments),
    load_rows=lambda model_args, data_args, args: load_trajectories(data_args),
    stand_in_rows=lambda model_args, data_args, args: stand_in_trajectories(data_args),
    build_model=build_model,
    build_trainer=build_trainer,
    describe=describe,
)


def main(argv: list[str]) -> None:
    """Trains a world model."""
    run(PROGRAM, argv)
