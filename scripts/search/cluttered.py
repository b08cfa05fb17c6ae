"""
I-JEPA and LeJEPA on garments over clutter (run `python -m trainers.worlds.cluttered_fashion` first), between raw
pixels, the untrained encoder and the same encoder trained on the probe's labels; all trials kept.

    python -m scripts.search.cluttered ijepa|lejepa [--trials NAME ...] [--seeds 0] [--split validation] [--bounds]
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from scripts.search.image_trials import bounds, run_trials

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
IJEPA = WORLD | {"patch_size": 8, "max_steps": 600, "warmup_steps": 60, "learning_rate": 1e-3}
REGULARIZED = "{target: ema, regularizer: %s, regularizer_weight: %s}"
RECIPES = {"ijepa": "ijepa_fashion_mnist", "lejepa": "lejepa_fashion_mnist"}
TRIALS = {
    "ijepa": {
        "I-JEPA": IJEPA,
        "I-JEPA with VISReg": IJEPA | {"method": REGULARIZED % ("visreg", 0.02)},
    },
    "lejepa": {"LeJEPA": WORLD | {"max_steps": 200, "warmup_steps": 20}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=RECIPES)
    parser.add_argument("--trials", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--bounds", action="store_true", help="raw pixels and the supervised encoder too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = " ".join(["python -m scripts.search.cluttered", *sys.argv[1:]])
    file, recipe = Path(str(FILE).format(options.family)), RECIPES[options.family]
    trials = TRIALS[options.family]
    chosen = {name: trials[name] for name in options.trials or trials}
    run_trials(file, recipe, chosen, options.seeds, options.split, command)
    if options.bounds:
        flags = next(iter(trials.values()))
        log = json.loads(file.read_text())
        for seed in options.seeds:
            entry = {"seed": seed, "split": options.split, **bounds(recipe, flags, seed, options.split)}
            log.setdefault("bounds", []).append(entry)
            print(entry, flush=True)
        file.write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
