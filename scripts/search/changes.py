"""
Small image recipes that did not beat their untrained encoder: one change at a time, probed on the validation split,
all trials kept in `model_cards/comparisons/search_RECIPE.json`.

    python -m scripts.search.changes data2vec|ijepa_sigreg [--trials NAME ...] [--seeds 0] [--split validation]

data2vec: the recipe as it was, with a fast teacher and 600 updates of 32 images. All of its trials stop in a dip that
a slow teacher leaves again after thousands of updates, which is the recipe of today.
I-JEPA with SIGReg instead of an EMA target: its weight, which was 0.05, and the updates, which were 1,000.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.search.image_trials import run_trials, trial_options


def layers(target_layers: int | list[int], **fields: Any) -> dict[str, Any]:
    return {"method": {"target_layers": target_layers, "initializer_range": 0.16, **fields}}


def sigreg(weight: float, **fields: Any) -> dict[str, Any]:
    method = {"target": "stop_gradient", "regularizer": "sigreg", "regularizer_weight": weight, "num_slices": 1024}
    return {"method": method | fields, "bf16": True, "use_cpu": True}


SHORT = {"max_steps": 1000}
OLD = {"max_steps": 600, "ema_momentum": 0.99, "ema_momentum_end": 0.999}
SLOW = OLD | {"ema_momentum": 0.999, "ema_momentum_end": 0.9999}
# The student steps in bfloat16, in less than half of the time.
SMALL = SLOW | {"learning_rate": 3e-4, "bf16": True, "use_cpu": True}
POSITIONS = {"layer_scale_init_value": 1.0, "drop_path_rate": 0.0, "use_absolute_position_embeddings": True}

TRIALS: dict[str, dict[str, dict[str, Any]]] = {
    "data2vec": {
        "recipe": OLD,
        "all 4 layers": OLD | layers(4),
        "instance norm": OLD | layers(2, target_norm="instance"),
        "instance norm, all 4 layers": OLD | layers(4, target_norm="instance"),
        "momentum 0.999": SLOW,
        "absolute positions": OLD | {"encoder_args": POSITIONS},
        "bf16, momentum 0.999, lr 3e-4": SMALL,
        "bf16, momentum 0.999, lr 3e-4, first 2 layers": SMALL | layers([0, 1]),
    },
    "ijepa_sigreg": {
        "weight 0.01": SHORT | sigreg(0.01),
        "weight 0.002": SHORT | sigreg(0.002),
        "weight 0.01 beside an EMA target": SHORT
        | sigreg(0.01, target="ema")
        | {"ema_momentum": 0.99, "ema_momentum_end": 1.0},
        "weight 0.002, 3,000 updates": sigreg(0.002) | {"max_steps": 3000},
    },
}


def trials() -> Iterator[tuple[str, dict[str, Any]]]:
    for family, named in TRIALS.items():
        for flags in named.values():
            yield f"{family}_fashion_mnist", flags


def main() -> None:
    options, chosen = trial_options(__doc__, TRIALS)
    file = Path(f"model_cards/comparisons/search_{options.family}.json")
    command = " ".join(["python -m scripts.search.changes", *sys.argv[1:]])
    run_trials(file, f"{options.family}_fashion_mnist", chosen, options.seeds, options.split, command)


if __name__ == "__main__":
    main()
