"""
I-JEPA and LeJEPA on garments over clutter (run `python -m trainers.worlds.cluttered_fashion` first), between raw
pixels, the untrained encoder and the same encoder trained on the probe's labels; all trials kept.

    python -m scripts.search.cluttered ijepa|lejepa [--trials NAME ...] [--seeds 0] [--split validation] [--bounds]
"""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.search.demo_recipes import PROBES
from scripts.search.image_trials import bounds, run_trials, trial_options
from scripts.tables import percent

FILE = Path("model_cards/comparisons/search_cluttered_{}.json")
GREY = [0.5, 0.5, 0.5]
WORLD = {
    "dataset": "outputs/cluttered_fashion",
    "image_size": 64,
    "num_channels": 3,
    "image_mean": GREY,
    "image_std": [0.25, 0.25, 0.25],
    "probe_examples": 4000,
    "bf16": True,
    "use_cpu": True,
}
IJEPA = WORLD | {
    "patch_size": 8,
    "max_steps": 900,
    "warmup_steps": 60,
    "learning_rate": 5e-4,
    "crop_scale": [0.8, 1.0],
}
VISREG = {"target": "ema", "regularizer": "visreg", "regularizer_weight": 0.02}
LEJEPA = WORLD | {"max_steps": 200, "warmup_steps": 20}
RECIPES = {"ijepa": "ijepa_fashion_mnist", "lejepa": "lejepa_fashion_mnist"}
TRIALS = {
    "ijepa": {
        "I-JEPA": IJEPA,
        "I-JEPA with VISReg": IJEPA | {"method": VISREG},
    },
    "lejepa": {
        "LeJEPA": LEJEPA,
        "LeJEPA, any hue": LEJEPA | {"color_jitter": [0.4, 0.4, 0.4, 0.5], "grayscale_probability": 0.2},
    },
}


def trials() -> Iterator[tuple[str, dict[str, Any]]]:
    for family, named in TRIALS.items():
        for flags in named.values():
            yield RECIPES[family], flags


def render(logs: Sequence[dict[str, Any]]) -> str:
    """Probes in % of what was trained and of what it lies between, on each split that was read."""
    lines = [f"| features | split, seeds | {' | '.join(PROBES.values())} |", f"|{'---|' * (2 + len(PROBES))}"]

    def row(name: str, split: str, runs: list[dict[str, float]]) -> None:
        cells = [percent([run[key] for run in runs if key in run]) for key in PROBES]
        lines.append(f"| {name} | {split}, {len(runs)} | {' | '.join(cells)} |")

    for log in logs:
        encoder = next(next(iter(TRIALS[family])) for family, recipe in RECIPES.items() if recipe == log["recipe"])
        for split, name in dict.fromkeys((trial["split"], trial["name"]) for trial in log["trials"]):
            runs = [trial for trial in log["trials"] if (trial["split"], trial["name"]) == (split, name)]
            row(f"{name}, untrained", split, [run["untrained"] for run in runs])
            row(name, split, [run["trained"] for run in runs])
        for split, name in itertools.product(("validation", "test"), ("supervised", "raw pixels")):
            if runs := [bound[name] for bound in log.get("bounds", []) if bound["split"] == split]:
                row(f"{encoder}'s encoder, supervised" if name == "supervised" else name, split, runs)
    return "\n".join(lines)


def main() -> None:
    options, chosen = trial_options(__doc__, TRIALS, {"--bounds": "raw pixels and the supervised encoder too"})
    torch.set_num_threads(1)
    command = " ".join(["python -m scripts.search.cluttered", *sys.argv[1:]])
    file, recipe = Path(str(FILE).format(options.family)), RECIPES[options.family]
    run_trials(file, recipe, chosen, options.seeds, options.split, command)
    if options.bounds:
        flags = next(iter(TRIALS[options.family].values()))
        log = json.loads(file.read_text())
        for seed in options.seeds:
            entry = {"seed": seed, "split": options.split, **bounds(recipe, flags, seed, options.split)}
            log.setdefault("bounds", []).append(entry)
            print(entry, flush=True)
        file.write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
