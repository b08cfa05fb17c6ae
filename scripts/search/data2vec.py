"""
Why the features of the small data2vec recipe decay, and what makes it learn: one change at a time, on the validation
split, all trials kept.

    python -m scripts.search.data2vec [--trials NAME ...] [--seeds 0] [--split validation]

A trial without a number of steps takes the recipe's 600, of 32 images.
"""

import argparse
import sys
from pathlib import Path

from scripts.search.image_trials import run_trials

FILE = Path("model_cards/comparisons/search_data2vec.json")
METHOD = "{target_layers: %s, initializer_range: %s%s}"
ENCODER = "{layer_scale_init_value: %s, drop_path_rate: 0.0%s}"

INSTANCE = ", target_norm: instance"

BF16 = {"bf16": True, "use_cpu": True}
SLOW = {"ema_momentum": 0.999, "ema_momentum_end": 0.9999}

TRIALS = {
    "recipe": {},
    "all 4 layers": {"method": METHOD % (4, 0.16, "")},
    "instance norm": {"method": METHOD % (2, 0.16, INSTANCE)},
    "instance norm, all 4 layers": {"method": METHOD % (4, 0.16, INSTANCE)},
    "momentum 0.999": {"ema_momentum": 0.999, "ema_momentum_end": 0.9999},
    "absolute positions": {"encoder_args": ENCODER % (1.0, ", use_absolute_position_embeddings: true")},
    "lr 3e-4": {"learning_rate": 3e-4},
    "first 2 layers": {"method": METHOD % ("[0, 1]", 0.16, "")},
    "20 of 49 masked": {"num_masked": 20},
    "batch 128": {"per_device_train_batch_size": 128, "max_steps": 300, "warmup_steps": 50},
    "initializer 0.08": {"method": METHOD % (2, 0.08, "")},
    # From here on the student steps in bfloat16, in less than half of the time.
    "bf16": BF16,
    "bf16, momentum 0.999, lr 3e-4": BF16 | SLOW | {"learning_rate": 3e-4},
    "bf16, momentum 0.999, lr 3e-4, instance norm, all 4 layers": BF16
    | SLOW
    | {"learning_rate": 3e-4, "method": METHOD % (4, 0.16, INSTANCE)},
    "bf16, momentum 0.999, lr 3e-4, first 2 layers": BF16
    | SLOW
    | {"learning_rate": 3e-4, "method": METHOD % ("[0, 1]", 0.16, "")},
    "bf16, momentum 0.9999, lr 3e-4": BF16
    | {"learning_rate": 3e-4, "ema_momentum": 0.9999, "ema_momentum_end": 0.9999},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    command = " ".join(["python -m scripts.search.data2vec", *sys.argv[1:]])
    trials = {name: TRIALS[name] for name in options.trials}
    run_trials(options.file, "data2vec_fashion_mnist", trials, options.seeds, options.split, command)


if __name__ == "__main__":
    main()
