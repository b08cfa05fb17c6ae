"""
Does every shipped image recipe of minutes beat its own untrained encoder? Each as it ships, probed before and after on
images that were not trained on; all runs kept in a JSON file, from which `scripts.cards.render_docs` draws a page.

    python -m scripts.search.demo_recipes [--recipes NAME ...] [--seeds 0 1 2] [--split test]

What needs another run's release first (SALT's teacher) makes it in a temporary folder of its own seed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_jepa.programs.pretrain_image import build_trainer
from hf_jepa.programs.recipes import parse_recipe
from scripts.search.image_trials import TYPES, run_trials
from scripts.tables import percent

FILE = Path("model_cards/comparisons/demo_recipes.json")
FAST = {"bf16": True, "use_cpu": True}
RECIPES = (
    "ijepa_sigreg_fashion_mnist",
    "salt_fashion_mnist",
    "data2vec_fashion_mnist",
    "lejepa_fashion_mnist",
    "rectified_lpjepa_fashion_mnist",
)
TEACHERS = {"salt_fashion_mnist": "mae_fashion_mnist"}
PROBES = {
    "knn": "k-NN, pooled",
    "ridge": "ridge, pooled",
    "ridge_tokens": "ridge, all tokens",
    "attentive": "attentive",
}


def trials() -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that need no other run."""
    for recipe in RECIPES:
        if recipe not in TEACHERS:
            yield recipe, FAST


def train_teacher(recipe: str, folder: str, seed: int) -> str:
    """A release of `recipe`'s encoder in `folder`."""
    options = {"seed": seed, "eval_strategy": "no", "probe_every_steps": None, "report_to": "none", **FAST}
    trainer = build_trainer(*parse_recipe(TYPES, [recipe], disable_tqdm=True, logging_steps=100, **options))
    trainer.train()
    trainer.model.export_encoder().save_pretrained(folder)
    return folder


def render(log: dict[str, Any]) -> str:
    """Rows of mean ± standard deviation over the seeds, in %."""
    found: dict[str, list[dict[str, Any]]] = {}
    for trial in log["trials"]:
        found.setdefault(trial["name"], []).append(trial)
    lines = [f"| recipe | seeds | {' | '.join(PROBES.values())} |", f"|{'---|' * (2 + len(PROBES))}"]
    for name, trials in found.items():
        for state in ("untrained", "trained"):
            cells = [percent([trial[state][key] for trial in trials if key in trial[state]]) for key in PROBES]
            lines.append(f"| {name if state == 'trained' else 'untrained'} | {len(trials)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    command = " ".join(["python -m scripts.search.demo_recipes", *sys.argv[1:]])
    for recipe in options.recipes:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                needs = TEACHERS.get(recipe)
                places = {"teacher": train_teacher(needs, folder, seed)} if needs else {}
                run_trials(options.file, recipe, {recipe: FAST}, [seed], options.split, command, **places)


if __name__ == "__main__":
    main()
