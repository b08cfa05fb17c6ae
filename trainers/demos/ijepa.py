"""
The main job, on real photos and two CPU cores: pretrain a small I-JEPA on Fashion-MNIST, measure what it learned
against raw pixels and an untrained encoder, write a release, and load it with plain transformers.

    python scripts/make_demo_data.py && python -m trainers.demos.ijepa [--seed 0] [--long]
"""

import argparse
import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from hf_jepa.data import SeededImageDataset, eval_transform, load_image_dataset
from hf_jepa.evaluation import (
    attentive_probe,
    hidden_part_retrieval,
    knn_accuracy,
    low_shot_accuracy,
    pixel_retrieval,
    rank_of_truth,
    ridge_probe,
)
from hf_jepa.masking import MultiBlockMaskGenerator
from hf_jepa.positions import sincos_2d
from hf_jepa.programs.image_pictures import draw_mask_pictures
from hf_jepa.programs.pretrain_image import (
    DataArguments,
    MaskArguments,
    ModelArguments,
    build_trainer,
)
from hf_jepa.programs.recipes import parse_recipe, resolved
from hf_jepa.training import JepaTrainingArguments
from hf_jepa.visualization import plot_retrieval
from trainers.demos.common import bf16_pays, compute_facts, print_end, run_as_stranger, table

RECIPE = files("hf_jepa") / "recipes" / "ijepa_fashion_mnist.yaml"
LONG = ["--max_steps=24000", "--warmup_steps=1500", "--logging_steps=500", "--learning_rate=5e-4"]
LONG += ["--crop_scale", "0.8", "1.0"]
LABELS, TEST_IMAGES = 10_000, 10_000
PENALTIES = (0.01, 0.1, 1.0)
CANDIDATES = 100

# Loads the release as a stranger would: with a transformers that has never heard of hf_jepa.
STRANGER = """
import sys
sys.modules["hf_jepa"] = None
import torch
from transformers import AutoImageProcessor, AutoModel
encoder, processor = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModel, AutoImageProcessor))
inputs, expected = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    features = encoder(inputs).last_hidden_state
if not torch.equal(features, expected):
    sys.exit("the released encoder gives other features than the trained target encoder")
print(f"{type(encoder).__module__}.{type(encoder).__name__} with {type(processor).__name__}: features are identical")
"""


def hidden_parts(model: Any, images: torch.Tensor, bank: torch.Tensor) -> tuple[dict[str, float], dict[str, Any]]:
    """Top-1 hidden-part retrieval over ten masks of four blocks each, with baselines, and material for a picture."""
    grid = model.config.encoder_config
    masks = MultiBlockMaskGenerator(
        grid.image_size, grid.patch_size, target_scale=(0.18, 0.2), min_keep=3, mode="balanced", seed=1
    )
    hits: dict[str, list[torch.Tensor]] = {}
    picture = {}
    for step in range(10):
        context_mask, target_mask = masks.at(torch.tensor([step]), step)
        part = images[step * CANDIDATES : (step + 1) * CANDIDATES]
        for block in target_mask:
            order = hidden_part_retrieval(model, part, context_mask[0][0], block[0], CANDIDATES)
            found = {"model": order}
            if bank is not None:
                found |= pixel_retrieval(bank, part, context_mask[0][0], block[0], grid.patch_size, CANDIDATES)
            for name, result in found.items():
                hits.setdefault(name, []).append((rank_of_truth(result) == 0).float())
        if step == 0:
            picture = {"images": part, "context_mask": context_mask[0][0], "target_mask": block[0], "order": order}
    return {name: float(torch.cat(values).mean()) for name, values in hits.items()}, picture


def probe(tokens: dict[str, torch.Tensor], labels: dict[str, torch.Tensor], seed: int) -> dict[str, float]:
    """Every probe of the report on one kind of feature: `(n, tokens, width)` of train and test."""
    train, test = tokens["train"], tokens["test"]
    answers = (labels["train"], test, labels["test"])
    pooled = (train.mean(dim=1), labels["train"], test.mean(dim=1), labels["test"])
    return {
        "attentive": attentive_probe(train, *answers, learning_rates=(1e-2, 3e-2, 1e-1), seed=seed).accuracy,
        "ridge, all tokens": ridge_probe(train, *answers, penalties=PENALTIES).accuracy,
        "ridge, mean-pooled": ridge_probe(*pooled).accuracy,
        "k-NN, mean-pooled": knn_accuracy(*pooled),
        "ridge, 10 labels per class, all tokens": low_shot_accuracy(train, *answers, amount=10, seed=seed).mean,
        "ridge, 10 labels per class, mean-pooled": low_shot_accuracy(*pooled, amount=10, seed=seed).mean,
    }


def patch_tokens(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Raw pixels as tokens: each patch's pixels and where it lies, so that attention can tell patches apart."""
    patches = F.unfold(images, patch_size, stride=patch_size).transpose(1, 2)
    side = images.shape[-1] // patch_size
    return torch.cat([patches, sincos_2d((side, side), 16).expand(len(images), -1, -1)], dim=2)


def raw_pixels(tokens: dict[str, torch.Tensor], labels: dict[str, torch.Tensor], seed: int) -> dict[str, float]:
    """The probes of raw pixels. Mean-pooled features of pixels are the image itself, as usual in such tables."""
    found = probe(tokens, labels, seed)
    width = tokens["train"].shape[-1] - 16
    flat = {split: value[..., :width].flatten(1) for split, value in tokens.items()}
    answers = (labels["train"], flat["test"], labels["test"])
    ridge = ridge_probe(flat["train"], *answers, penalties=PENALTIES).accuracy
    few = low_shot_accuracy(flat["train"], *answers, amount=10, seed=seed).mean
    for features in ("all tokens", "mean-pooled"):
        found |= {
            f"ridge, {features}": ridge,
            f"ridge, 10 labels per class, {features}": few,
        }
    found["k-NN, mean-pooled"] = knn_accuracy(flat["train"], *answers)
    return found


def load_probe_split(data: DataArguments, split: str, limit: int, image_size: int) -> SeededImageDataset:
    rows = load_image_dataset(data.dataset, split, label_column="label").shuffle(seed=0)
    transform = eval_transform(image_size, mean=data.image_mean, std=data.image_std)
    return SeededImageDataset(rows.select(range(min(limit, len(rows)))), transform, label_column="label")


def entries(common: dict[str, Any], count: int, values: dict[str, float], retrieval: float) -> list[dict[str, Any]]:
    """Measured values as entries of `results.json`; `common` is the same in all of them."""
    found = [
        {
            "task": f"hidden-part retrieval among {CANDIDATES}",
            "num_examples": 10 * 4 * CANDIDATES,
            "metric": "top-1 accuracy",
            "value": retrieval,
            "features": "predicted block",
            **common,
        }
    ]
    for task, value in values.items():
        probe_name, _, features = task.rpartition(", ")
        found.append(
            {
                "task": probe_name or task,
                "num_examples": count,
                "metric": "accuracy",
                "value": value,
                "features": features if probe_name else "all tokens",
                **common,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", choices=("test", "validation"), help="Validation is for tuning.")
    parser.add_argument("--long", action="store_true", help="An hour instead of minutes.")
    parser.add_argument("--output_dir", default=None)
    options, overrides = parser.parse_known_args()
    output_dir = options.output_dir or f"outputs/demo{'_long' if options.long else ''}"
    flags = {"seed": options.seed, "output_dir": output_dir, "eval_strategy": "no"}
    if not torch.cuda.is_available() and bf16_pays():
        flags |= {"use_cpu": True, "bf16": True, "attn_implementation": "cpu_bf16"}
    argv = [str(RECIPE), *(f"--{key}={value}" for key, value in flags.items())]
    argv += [*(LONG if options.long else []), *overrides]
    types = (ModelArguments, DataArguments, MaskArguments, JepaTrainingArguments)
    model_args, data_args, mask_args, training_args = parse_recipe(types, argv)

    recipe = resolved(model_args, data_args, mask_args, training_args)
    trainer = build_trainer(model_args, data_args, mask_args, training_args)
    model = trainer.model
    untrained = copy.deepcopy(model)
    started, cpu = time.monotonic(), time.process_time()
    trainer.train()
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    dtype = "bfloat16" if training_args.bf16 else "float32"
    print(f"\nTrained {trainer.state.global_step} steps in {dtype} in {seconds:.0f} s.")
    print(f"Now measuring on the {options.split} split.")
    model.cpu()  # beside the images, wherever it was trained

    splits = {
        "train": load_probe_split(data_args, "train", LABELS, model_args.image_size),
        "test": load_probe_split(data_args, options.split, TEST_IMAGES, model_args.image_size),
    }
    batches = {name: list(DataLoader(rows, 500, num_workers=2)) for name, rows in splits.items()}
    images = {name: torch.cat([batch["pixel_values"] for batch in parts]) for name, parts in batches.items()}
    labels = {name: torch.cat([batch["label"] for batch in parts]) for name, parts in batches.items()}

    def measure(name: str) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        """Probes of the features, top-1 retrieval, and material for a picture."""
        if name == "raw pixels":
            pixels = {split: patch_tokens(value, model_args.patch_size) for split, value in images.items()}
            return raw_pixels(pixels, labels, options.seed), {}, {}
        network = networks[name]
        tokens = {
            split: torch.cat([network.get_features(part) for part in value.split(64)])
            for split, value in images.items()
        }
        found, picture = hidden_parts(network, images["test"], images["train"] if network is model else None)
        return probe(tokens, labels, options.seed), {name: found.pop("model"), **found}, picture

    networks = {"I-JEPA": model, "untrained": untrained}
    # The two side by side, on half of the cores each: small matrices keep no more busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    with ThreadPoolExecutor(2) as pool:
        measured = dict(zip((*networks, "raw pixels"), pool.map(measure, (*networks, "raw pixels")), strict=True))
    torch.set_num_threads(threads)
    columns = {name: measured[name][0] for name in ("raw pixels", "untrained", "I-JEPA")}
    retrieval = measured["I-JEPA"][1] | measured["untrained"][1]
    picture = measured["I-JEPA"][2]

    pictures_folder = Path(output_dir) / "pictures"
    pictures = draw_mask_pictures(trainer, pictures_folder)
    rank = rank_of_truth(picture["order"])
    query = torch.arange(6)
    shown = picture["images"] * torch.tensor(data_args.image_std) + torch.tensor(data_args.image_mean)
    retrieved = plot_retrieval(
        shown.clamp(0, 1),
        query,
        picture["order"][query, :5],
        picture["target_mask"].expand(len(query), -1),
        model.config.grid_size,
        pictures_folder / "hidden_part_retrieval.png",
        context_mask=picture["context_mask"].expand(len(query), -1),
        rank=rank[query] + 1,
    )
    pictures[retrieved] = (
        "Six queries: visible context, true hidden block, and the blocks nearest to the prediction "
        f"among {CANDIDATES} images'; the right one is framed."
    )

    count = len(splits["test"])
    results = trainer.measured_results()
    results["model"]["name"] = f"ijepa-fashion-mnist-tiny{'-long' if options.long else ''}"
    results["data"] |= {"name": "Fashion-MNIST", "split": "train", "licence": "mit"}
    results["licence"] = "apache-2.0"
    results["training"] |= {"seconds": seconds, "recipe": "`recipe.yaml`"}
    results["pictures"] = [{"file": path.name, "caption": caption} for path, caption in pictures.items()]
    results["compute"] = compute_facts(cpu)
    command = f"python -m trainers.demos.ijepa --seed {options.seed}{' --long' if options.long else ''}"
    common = {"dataset": "Fashion-MNIST", "split": options.split, "seed": options.seed, "command": command}
    results["evaluations"] = entries(common, count, columns["I-JEPA"], retrieval["I-JEPA"])
    results["baselines"] = [
        *entries(common | {"name": "raw pixels"}, count, columns["raw pixels"], retrieval["ridge"]),
        *entries(common | {"name": "untrained encoder"}, count, columns["untrained"], retrieval["untrained"]),
    ]
    nearest = results["baselines"][0] | {"name": "nearest training image", "value": retrieval["nearest_neighbour"]}
    results["baselines"].append(nearest)
    release = trainer.write_release(results, recipe=recipe, pictures=list(pictures))

    print(f"\nHidden-part retrieval: from the visible context, find the hidden block among {CANDIDATES} images'")
    for name, label in (
        ("ridge", "pixels, ridge regression"),
        ("nearest_neighbour", "pixels, nearest training image"),
        ("untrained", "untrained I-JEPA"),
        ("I-JEPA", "I-JEPA"),
    ):
        print(f"  {label:<34}{100 * retrieval[name]:>6.1f}%")
    print(f"  {'chance':<34}{100 / CANDIDATES:>6.1f}%")
    print(f"\nClassification on frozen features, {LABELS} labels, {count} {options.split} images")
    print(table(columns))
    (Path(output_dir) / "table.json").write_text(json.dumps({"retrieval": retrieval, "probes": columns}, indent=2))

    check = Path(output_dir) / "features.pt"
    torch.save((images["test"][:16], model.eval().get_features(images["test"][:16])), check)
    found = run_as_stranger(STRANGER, release, check, fault="plain transformers could not load the release")
    check.unlink()
    print(f"\nLoaded by plain transformers, hf_jepa hidden: {found}")
    print_end(started, [*pictures, release / "README.md", release])


if __name__ == "__main__":
    main()
