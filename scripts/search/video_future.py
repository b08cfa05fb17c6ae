"""
Tasks on moving garments at which a random network may fail: the order of a clip's parts, and where the main garment
will be after the clip has ended. One run of the small V-JEPA 2 recipe, probed before and after; all trials kept.

    python -m scripts.search.video_future [--trials NAME ...] [--seeds 0] [--split validation]

`order`: in half of the clips the tubelets are shuffled; which? `next cell`: from the first half of a clip, in which of
nine cells is the garment in front at its end? Probes read the encoder's tokens; of the latter also the predictor's, of
the last, unseen time slot.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_jepa.data.clip_batches import clip_collator
from hf_jepa.evaluation import knn_accuracy, ridge_probe
from hf_jepa.programs.facts import settings
from hf_jepa.programs.pretrain_video import build_model
from hf_jepa.programs.recipes import parse_recipe
from hf_jepa.programs.video_arguments import VideoDataArguments, VideoMaskArguments, VideoModelArguments
from hf_jepa.training import JepaTrainer, JepaTrainingArguments
from scripts.tables import percent
from trainers.worlds.moving_fashion import MovingFashion

RECIPE = files("hf_jepa") / "recipes" / "video" / "vjepa2_moving_fashion.yaml"
FILE = Path("model_cards/comparisons/search_video_future.json")
TYPES = (VideoModelArguments, VideoDataArguments, VideoMaskArguments, JepaTrainingArguments)
FAST = {"bf16": True, "use_cpu": True, "attn_implementation": "cpu_bf16"}
TRIALS = {
    "recipe": FAST,
    "recipe, 300 steps": FAST | {"max_steps": 300, "warmup_steps": 30},
    "future masks only, 1400 steps": FAST
    | {"max_steps": 1400, "warmup_steps": 140, "num_blocks": [1], "spatial_scale": [0.15], "max_temporal_keep": [0.5]},
}
LABELLED, SCORED = 2000, 1000
TUBELET, CELLS = 2, 3


def trials() -> Iterator[tuple[str, dict[str, Any]]]:
    for flags in TRIALS.values():
        yield str(RECIPE), flags


def cells(dataset: MovingFashion) -> torch.Tensor:
    """Which of the nine cells the middle of the garment in front is in at the last frame, int64 `(n,)`."""
    plan = dataset.plan(np.arange(len(dataset)))
    middle = (plan["position"][:, 0, -1] + dataset.photos.shape[-1] // 2) % dataset.image_size
    row, column = (middle * CELLS // dataset.image_size).T
    return torch.from_numpy(CELLS * row + column).long()


def shuffled(clips: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The clips, tubelets of half of them in another order, and which, int64 `(n,)`."""
    slots = clips.shape[1] // TUBELET
    moved = (torch.rand(len(clips), generator=generator) < 0.5).long()
    found = []
    for clip, other in zip(clips, moved, strict=True):
        order = torch.arange(slots)
        while other and torch.equal(order, torch.arange(slots)):
            order = torch.randperm(slots, generator=generator)
        found.append(clip.unflatten(0, (slots, TUBELET))[order].flatten(0, 1))
    return torch.stack(found), moved


@torch.no_grad()
def encoded(model: PreTrainedModel, clips: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.get_features(part).float() for part in clips.split(100)])


@torch.no_grad()
def foreseen(model: PreTrainedModel, clips: torch.Tensor) -> torch.Tensor:
    """The predictor's tokens of the last time slot, told from the first half of the clips."""
    side = clips.shape[-1] // model.config.encoder_config.patch_size
    area, slots = side * side, clips.shape[1] // TUBELET
    found = []
    for part in clips.split(100):
        tokens = torch.arange(slots * area).expand(len(part), -1)
        masks = [[tokens[:, : slots // 2 * area]]], [[tokens[:, -area:]]]
        found.append(model.predict([part], *masks).predictions[0].float())
    return torch.cat(found)


def scores(features: list[torch.Tensor], labels: list[torch.Tensor]) -> dict[str, float]:
    pooled = (features[0].mean(dim=1), labels[0], features[1].mean(dim=1), labels[1])
    flat = (features[0].flatten(1), labels[0], features[1].flatten(1), labels[1])
    return {
        "knn": round(knn_accuracy(*pooled), 4),
        "ridge": round(ridge_probe(*pooled).accuracy, 4),
        "ridge_tokens": round(ridge_probe(*flat).accuracy, 4),
    }


def measure(model: PreTrainedModel, sets: list[MovingFashion]) -> dict[str, dict[str, float]]:
    model.eval()
    generator = torch.Generator().manual_seed(0)
    rows = [part.__getitems__(list(range(len(part)))) for part in sets]
    clips = [torch.stack([row["pixel_values_videos"] for row in part]) for part in rows]
    mixed = [shuffled(part, generator) for part in clips]
    seen = [part[:, : part.shape[1] // 2] for part in clips]
    where = [cells(part) for part in sets]
    return {
        "order": scores([encoded(model, part) for part, _ in mixed], [moved for _, moved in mixed]),
        "next cell": scores([encoded(model, part) for part in seen], where),
        "next cell, predicted": scores([foreseen(model, part) for part in clips], where),
    }


def run_trial(flags: dict[str, Any], seed: int, split: str) -> dict[str, Any]:
    options = {"seed": seed, "report_to": "none", "disable_tqdm": True, "logging_steps": 100}
    model_args, data_args, mask_args, args = parse_recipe(TYPES, [str(RECIPE)], **options, **flags)
    size, frames = model_args.image_size, data_args.num_frames[0]
    shape = {"image_size": size, "num_frames": frames, "mean": data_args.image_mean, "std": data_args.image_std}
    model = build_model(model_args, frames, seed)
    untrained = copy.deepcopy(model)
    trainer = JepaTrainer(
        model=model,
        args=args,
        data_collator=clip_collator(model, seed=seed, **settings(clip_collator, mask_args, data_args)),
        train_dataset=MovingFashion("train", 20_000, seed=seed, **shape),
    )
    started = time.process_time()
    trainer.train()
    found: dict[str, Any] = {"cpu_seconds": round(time.process_time() - started, 1), "steps": args.max_steps}
    sets = [
        MovingFashion("train", LABELLED, seed=1000, **shape),
        MovingFashion(split, SCORED, seed=1001, **shape),
    ]
    return found | {"untrained": measure(untrained, sets), "trained": measure(model, sets)}


def render(trials: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds of the test split, in %, of every task and probe."""
    lines = ["| trial, seeds | task, probe | untrained | trained |", "|---|---|---|---|"]
    for name in dict.fromkeys(trial["name"] for trial in trials if trial["split"] == "test"):
        runs = [trial for trial in trials if (trial["name"], trial["split"]) == (name, "test")]
        for task, found in runs[0]["trained"].items():
            for probe in found:
                cells = [percent([run[state][task][probe] for run in runs]) for state in ("untrained", "trained")]
                lines.append(f"| {name}, {len(runs)} | {task}, {probe} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    log = json.loads(FILE.read_text()) if FILE.exists() else {"recipe": RECIPE.name, "trials": []}
    log["command"] = " ".join(["python -m scripts.search.video_future", *sys.argv[1:]])
    for seed in options.seeds:
        for name in options.trials:
            found = run_trial(TRIALS[name], seed, options.split)
            entry = {"name": name, "flags": TRIALS[name], "seed": seed, "split": options.split, **found}
            log["trials"].append(entry)
            FILE.write_text(json.dumps(log, indent=1) + "\n")
            print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
