"""
Trains one library's I-JEPA, a contestant of compare.py, and probes its frozen target encoder.

    python -m scripts.peers.one_run lightly outputs/lightly.json --minutes 0.2 --test-limit 1000    # does it run?

Everyone gets the same backbone and predictor sizes, batch size, dtype, images and `--minutes` of processor time on one
thread (augmentation, masks, step and EMA update; no set-up, no evaluation), and otherwise follows its own
documentation (trainers.py says how). Probes see a fixed part of the training split, and the split asked for.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from scripts.peers.environment import run_with_peers
from scripts.peers.trainers import CONTESTANTS, UNTRAINED, Contestant, augment

MEAN, STD = 0.286, 0.353
PROBES = ("k-NN, pooled", "ridge, pooled", "ridge, all tokens", "attentive", "10 labels per class, all tokens")


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """
    Normalised images `(n, channels, height, width)` float32 and labels `(n,)` of "train", "validation" or "test", from
    the parquet files of a world of `trainers/worlds`, else from gzipped idx files (which have no "validation").
    """
    if (parquet := folder / f"{split}.parquet").exists():
        from datasets import Dataset

        rows = Dataset.from_parquet(str(parquet))
        images = torch.from_numpy(np.stack([np.asarray(row["image"]) for row in rows])).permute(0, 3, 1, 2)
        return (images / 255 - 0.5) / 0.25, torch.as_tensor(rows["label"][:])
    if split == "validation":
        raise SystemExit(f"{folder} holds no validation.parquet, and idx files have no validation split.")
    prefix = "t10k" if split == "test" else split

    def values(kind: str, offset: int) -> Tensor:
        path = folder / f"{prefix}-{kind}-ubyte.gz"
        if not path.exists():
            raise SystemExit(f"{path} is missing: install the Debian package dataset-fashion-mnist or pass --data.")
        return torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())[offset:]), dtype=torch.uint8)

    images = values("images-idx3", 16).view(-1, 1, 28, 28)
    return (images.float() / 255 - MEAN) / STD, values("labels-idx1", 8).long()


def train(contestant: Contestant, images: Tensor, seconds: float, batch_size: int, seed: int, bf16: bool) -> dict:
    def loss_of(batch: Tensor) -> Tensor:
        batch = augment(batch, contestant.crop_scale, contestant.flip, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return contestant.loss(batch)

    generator = torch.Generator().manual_seed(seed)
    optimizer = contestant.make_optimizer()
    contestant.train()
    # Once outside the clock: first calls compile kernels and fill caches, which says nothing about training.
    loss_of(images[:batch_size]).backward()
    optimizer.zero_grad(set_to_none=True)
    steps, losses, wall, start = 0, [], time.perf_counter(), time.process_time()
    order, position, used, shown = torch.empty(0), 0, 0.0, 0.0
    while used < seconds:
        if position + batch_size > len(order):
            order, position = torch.randperm(len(images), generator=generator), 0
        batch = images[order[position : position + batch_size]]
        position += batch_size
        progress = used / seconds
        contestant.before_step(optimizer, progress)
        loss = loss_of(batch)
        if not torch.isfinite(loss):
            raise SystemExit(f"The loss is {loss.item()} after {steps} steps.")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        contestant.after_step(progress)
        steps += 1
        used = time.process_time() - start
        if progress >= shown:
            shown += 0.05
            losses.append(loss.item())
            print(
                f"  {progress:4.0%} of the budget, step {steps}, loss {loss.item():.4f}", file=sys.stderr, flush=True
            )
    return {
        "steps": steps,
        "images": steps * batch_size,
        "cpu_seconds": used,
        "wall_seconds": time.perf_counter() - wall,
        "losses": losses,
    }


@torch.no_grad()
def tokens_of(contestant: Contestant, images: Tensor) -> Tensor:
    contestant.eval()
    return torch.cat([contestant.tokens(batch) for batch in images.split(500)])


def probe(
    train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor], contestant: Contestant
) -> dict[str, float]:
    from hf_jepa.evaluation import attentive_probe, knn_accuracy, low_shot_accuracy, ridge_probe

    (train_images, train_labels), (test_images, test_labels) = train_set, test_set
    tokens, test_tokens = tokens_of(contestant, train_images), tokens_of(contestant, test_images)
    pooled = (tokens.mean(1), train_labels, test_tokens.mean(1), test_labels)
    flat = (tokens.flatten(1), train_labels, test_tokens.flatten(1), test_labels)
    scores = (
        knn_accuracy(*pooled),
        ridge_probe(*pooled),
        ridge_probe(*flat),
        attentive_probe(tokens, train_labels, test_tokens, test_labels),
        low_shot_accuracy(*flat, amount=10),
    )
    return dict(zip(PROBES, map(float, scores), strict=True))


def run_one(name: str, args: argparse.Namespace) -> dict:
    """Train and probe one contestant in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    images, labels = read_split(args.data, "train")
    test_images, test_labels = read_split(args.data, args.split)
    args.num_channels = images.shape[1]
    contestant = CONTESTANTS[name](args)
    contestant.rate = args.rate
    result: dict = {"name": name, "settings": contestant.settings}
    if name not in UNTRAINED:
        trainable = sum(p.numel() for p in contestant.parameters() if p.requires_grad)
        result |= {"trainable_parameters": trainable}
        result |= train(contestant, images, 60 * args.minutes, args.batch_size, args.seed, args.bf16)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: args.train_limit]
    test_rows = slice(0, args.test_limit)
    torch.manual_seed(args.seed)
    test_set = (test_images[test_rows], test_labels[test_rows])
    return result | {"probes": probe((images[rows], labels[rows]), test_set, contestant)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CONTESTANTS))
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=5.0, help="processor minutes, on one thread")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--rate", type=float, default=1.0, help="multiplies the contestant's learning rate")
    parser.add_argument("--train-limit", type=int, default=10_000, help="labelled training images of the probes")
    parser.add_argument("--test-limit", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--bf16", action="store_true", help="everyone steps under bfloat16 autocast")
    recipe = yaml.safe_load((files("hf_jepa") / "recipes" / "ijepa_fashion_mnist.yaml").read_text())
    model, masks, training = recipe["model"], recipe["masks"], recipe["training"]
    warmup = training["warmup_steps"] / training["max_steps"]
    ours = parser.add_argument_group("hf_jepa alone; the recipe's by default")
    ours.add_argument("--learning-rate", type=float, default=float(training["learning_rate"]))
    ours.add_argument("--warmup", type=float, default=warmup, help="share of the budget")
    crop = recipe["data"]["crop_scale"][0]
    ours.add_argument("--crop-scale", type=float, default=crop, help="smallest area of the random crop")
    parser.set_defaults(
        batch_size=training["per_device_train_batch_size"],
        width=model["hidden_size"],
        depth=model["num_hidden_layers"],
        heads=model["num_attention_heads"],
        predictor_width=model["predictor_hidden_size"],
        predictor_depth=model["predictor_num_hidden_layers"],
        predictor_heads=model["predictor_num_attention_heads"],
        weight_decay=training["weight_decay"],
        ema_momentum=training["ema_momentum"],
        target_scale=masks["target_scale"],
        num_target_masks=masks["num_target_masks"],
    )
    args = parser.parse_args()
    run_with_peers()
    args.output.write_text(json.dumps(run_one(args.name, args)))


if __name__ == "__main__":
    main()
