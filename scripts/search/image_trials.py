"""Trials of an image recipe, one after another in one process, every one of them kept in a JSON file."""

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_jepa.data import SeededImageDataset
from hf_jepa.evaluation import attentive_probe, knn_accuracy, rankme, ridge_probe
from hf_jepa.evaluation.diagnostics import content_share
from hf_jepa.programs.image_arguments import DataArguments, MaskArguments, ModelArguments
from hf_jepa.programs.pretrain_image import build_trainer
from hf_jepa.programs.recipes import parse_recipe
from hf_jepa.training import JepaTrainingArguments

TYPES = (ModelArguments, DataArguments, MaskArguments, JepaTrainingArguments)
TOKEN_ROWS = 3000


def samples_of(rows: SeededImageDataset) -> tuple[torch.Tensor, torch.Tensor]:
    samples = [rows[index] for index in range(len(rows))]
    images = torch.stack([sample["pixel_values"] for sample in samples])
    return images, torch.tensor([sample["label"] for sample in samples])


@torch.no_grad()
def tokens_of(model: PreTrainedModel, images: torch.Tensor) -> torch.Tensor:
    """Patch tokens `(n, tokens, width)` of the encoder that is released; of a model of views, its pooled output."""
    model.eval()
    return torch.cat([model.get_features(part).float() for part in images.split(64)])


def probes(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor], tokens: Sequence[torch.Tensor]
) -> dict[str, float]:
    """k-NN and ridge on pooled tokens, ridge (at most 3,000 labels) and attention on all, and signs of collapse."""
    pooled, test_pooled = (part.mean(dim=1) for part in tokens)
    splits = (pooled, train[1], test_pooled, test[1])
    few = (tokens[0][:TOKEN_ROWS].flatten(1), train[1][:TOKEN_ROWS], tokens[1].flatten(1), test[1])
    found = {"knn": knn_accuracy(*splits), "ridge": ridge_probe(*splits).accuracy}
    if tokens[0].shape[1] > 1:
        found["ridge_tokens"] = ridge_probe(*few).accuracy
        found["attentive"] = float(attentive_probe(tokens[0], train[1], tokens[1], test[1]))
    return found | {
        "content_share": content_share(tokens[1][:1000]) if tokens[1].shape[1] > 1 else 1.0,
        "std": test_pooled.std(dim=0).mean().item(),
        "rankme": rankme(test_pooled),
    }


def run_trial(recipe: str, flags: dict[str, Any], seed: int, split: str) -> dict[str, Any]:
    """Trains a recipe with `flags` over it, and probes its encoder before and after on `split`."""
    chosen = {"seed": seed, "probe_split": split, "eval_strategy": "no", "probe_every_steps": None}
    chosen |= {"report_to": "none", "disable_tqdm": True, "logging_steps": 100}
    trainer = build_trainer(*parse_recipe(TYPES, [recipe], **chosen, **flags))
    train, test = samples_of(trainer.probe_train_dataset), samples_of(trainer.eval_dataset)
    trainer.eval_dataset = trainer.probe_train_dataset = None
    model: Any = trainer.model
    untrained = copy.deepcopy(model)
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    found: dict[str, Any] = {"cpu_seconds": round(seconds, 1), "steps": trainer.state.global_step}
    found["loss"] = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    for name, network in (("untrained", untrained), ("trained", model)):
        tokens = [tokens_of(network, images) for images, _ in (train, test)]
        found[name] = {key: round(value, 4) for key, value in probes(train, test, tokens).items()}
    return found


def bounds(recipe: str, flags: dict[str, Any], seed: int, split: str) -> dict[str, dict[str, float]]:
    """
    What the trials' numbers lie between: the probes of raw pixels, and of the recipe's own encoder trained to classify
    the labelled images that probes are fitted on, as many steps and images a step.
    """
    trainer = build_trainer(*parse_recipe(TYPES, [recipe], seed=seed, probe_split=split, eval_strategy="no", **flags))
    train, test = samples_of(trainer.probe_train_dataset), samples_of(trainer.eval_dataset)
    splits = (train[0].flatten(1), train[1], test[0].flatten(1), test[1])
    pixels = {"knn": knn_accuracy(*splits), "ridge": ridge_probe(*splits).accuracy}
    started = time.process_time()
    accuracy, model = classify(trainer.model, train, test, trainer.args)
    seconds = round(time.process_time() - started, 1)
    tokens = [tokens_of(model, images) for images, _ in (train, test)]
    supervised = {"cpu_seconds": seconds, "accuracy": accuracy, **probes(train, test, tokens)}
    return {"raw pixels": pixels, "supervised": supervised}


def classify(
    model: PreTrainedModel, train: Sequence[torch.Tensor], test: Sequence[torch.Tensor], args: JepaTrainingArguments
) -> tuple[float, PreTrainedModel]:
    """Accuracy of the model's encoder trained with a linear head on mean tokens; mirrored and shifted images."""
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(args.seed)
    with torch.no_grad():
        width = model.get_features(train[0][:1]).shape[-1]
    head = torch.nn.Linear(width, int(train[1].max()) + 1)
    parameters = [p for p in model.encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*parameters, *head.parameters()], lr=args.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.max_steps)
    features = type(model).get_features.__wrapped__
    for _ in range(args.max_steps):
        rows = torch.randint(len(train[0]), (args.per_device_train_batch_size,), generator=generator)
        shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
        images = train[0][rows].roll(shift, dims=(2, 3))
        images = images.flip(3) if torch.rand((), generator=generator) < 0.5 else images
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = head(features(model, images, "context").mean(dim=1))
        loss = torch.nn.functional.cross_entropy(logits.float(), train[1][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if model.has_target_encoder:
        model.sync_target()
    with torch.no_grad():
        found = head(tokens_of(model, test[0]).mean(dim=1)).argmax(dim=1)
    return (found == test[1]).float().mean().item(), model


def trial_options(
    description: str | None, families: Mapping[str, Mapping[str, dict[str, Any]]], switches: Mapping[str, str] = {}
) -> tuple[argparse.Namespace, dict[str, dict[str, Any]]]:
    """The options of a search over named trials of several recipes, and the trials that were asked for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=families)
    parser.add_argument("--trials", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    for name, text in switches.items():
        parser.add_argument(name, action="store_true", help=text)
    options = parser.parse_args()
    known = families[options.family]
    if unknown := set(options.trials or ()) - known.keys():
        parser.error(f"no trial is called {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    return options, {name: known[name] for name in options.trials or known}


def run_trials(
    file: Path,
    recipe: str,
    trials: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    split: str,
    command: str,
    **places: str,
) -> list[dict[str, Any]]:
    """Runs what `file` does not hold yet, and writes it after every trial, but for the flags in `places`."""
    torch.set_num_threads(1)
    log = json.loads(file.read_text()) if file.exists() else {"recipe": recipe, "trials": []}
    log["command"] = command
    done = {(trial["name"], trial["seed"], trial["split"]) for trial in log["trials"]}
    for seed in seeds:
        for name, flags in trials.items():
            if (name, seed, split) in done:
                continue
            found = run_trial(recipe, flags | places, seed, split)
            log["trials"].append({"name": name, "flags": flags, "seed": seed, "split": split, **found})
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(log, indent=1) + "\n")
            before, after = found["untrained"], found["trained"]
            told = "  ".join(f"{key} {before[key]:.3f} -> {after[key]:.3f}" for key in after)
            print(f"{name} (seed {seed}, {split}, {found['cpu_seconds']} s): {told}", flush=True)
    return log["trials"]
