"""
Compares hf_jepa's, lightly's and stable-pretraining's I-JEPA: the same images, sizes, processor time and probes, three
seeds on the test split, which every run reads once.

    python -m scripts.peers.compare plain [--minutes 5] [--seeds 0 1 2] [--bf16] [--jobs 2]
    python -m trainers.worlds.cluttered_fashion && python -m scripts.peers.compare cluttered --minutes 2

`plain` is Fashion-MNIST, where everyone runs as documented. `cluttered` are garments over clutter, where a library
also runs with the best of three settings, chosen on the validation split. The peers are installed from PyPI into
outputs/peers-venv on the first run. Runs that the JSON file holds are not repeated. docs/comparison.md is rendered
from both files (scripts/cards/comparison_page.py).
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.peers.environment import run_with_peers
from scripts.peers.one_run import PROBES
from scripts.tables import percent

RESULTS = Path("model_cards/comparisons")
PACKAGES = ("torch", "lightly", "stable-pretraining", "timm", "transformers")
FLOORS = (("random init", 1.0), ("raw pixels", 1.0))
# What decides between settings: both read all of the tokens.
DECIDING = ("ridge, pooled", "attentive")

Setting = tuple[str, float]
Run = tuple[str, float, int, str]


@dataclass(frozen=True)
class World:
    """`settings`: library -> contestants and factors on their learning rates; the first is what it documents."""

    file: str
    arguments: tuple[str, ...]
    settings: dict[str, tuple[Setting, ...]]
    data: Path | None = None


WORLDS = {
    "plain": World(
        "peers.json",
        (),
        {name: ((name, 1.0),) for name in ("hf_jepa", "lightly", "lightly, paper's masks", "stable-pretraining")},
    ),
    "cluttered": World(
        "peers_cluttered.json",
        (
            *("--image-size", "64", "--patch-size", "8", "--train-limit", "4000", "--test-limit", "4000"),
            *("--learning-rate", "5e-4", "--warmup", "0.0667", "--crop-scale", "0.8"),
        ),
        {
            "hf_jepa": (("hf_jepa", 1.0), ("hf_jepa", 2.0), ("hf_jepa", 0.5)),
            "lightly": (("lightly", 1.0), ("lightly, paper's masks", 1.0), ("lightly, paper's masks", 4.0)),
            "stable-pretraining": (
                ("stable-pretraining", 1.0),
                ("stable-pretraining", 0.5),
                ("stable-pretraining", 2.0),
            ),
        },
        Path("outputs/cluttered_fashion"),
    ),
}


def run(world: World, name: str, rate: float, seed: int, split: str, budget: dict[str, Any]) -> dict[str, Any]:
    """One contestant in a process of its own."""
    part = Path("outputs/compare_peers") / f"{world.file} {name} {rate} {seed} {split}.json"
    part.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "scripts.peers.one_run", name, str(part), *world.arguments]
    command += ["--minutes", str(budget["minutes"]), "--seed", str(seed), "--split", split, "--rate", str(rate)]
    command += ["--data", str(world.data)] if world.data else []
    subprocess.run([*command, *(["--bf16"] if budget["bf16"] else [])], check=True)
    return json.loads(part.read_text()) | {"rate": rate, "seed": seed, "split": split, **budget}


def best(rows: list[dict[str, Any]], settings: tuple[Setting, ...]) -> Setting:
    """The setting whose deciding probes are highest on the validation split."""

    def score(setting: Setting) -> float:
        found = [row for row in rows if row["split"] == "validation" and (row["name"], row["rate"]) == setting]
        return sum(found[0]["probes"][probe] for probe in DECIDING)

    return max(settings, key=score) if len(settings) > 1 else settings[0]


def trials(world: World) -> Iterator[Run]:
    """What is needed to choose between settings."""
    for settings in world.settings.values():
        if len(settings) > 1:
            yield from ((name, rate, 0, "validation") for name, rate in settings)


def tests(world: World, rows: list[dict[str, Any]], seeds: list[int]) -> Iterator[Run]:
    """The runs of the table."""
    for seed in seeds:
        for settings in world.settings.values():
            for name, rate in dict.fromkeys((settings[0], best(rows, settings))):
                yield name, rate, seed, "test"
        # Pixels are the same for every seed.
        yield from ((name, rate, seed, "test") for name, rate in FLOORS if seed == seeds[0] or name != "raw pixels")


def render(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds of the test split, in %."""
    head = ["contestant", "learning rate", "seeds", "images seen", *PROBES]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    found: dict[Setting, list[dict[str, Any]]] = {}
    for row in rows:
        if row["split"] == "test":
            found.setdefault((row["name"], row["rate"]), []).append(row)
    for (name, rate), runs in found.items():
        cells = [percent([row["probes"][probe] for row in runs]) for probe in PROBES]
        images = f"{statistics.mean(row.get('images', 0) for row in runs):,.0f}"
        lines.append(f"| {name} | x{rate:g} | {len(runs)} | {images} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=list(WORLDS))
    parser.add_argument("--minutes", type=float, default=5.0, help="processor minutes for each run, on one thread")
    parser.add_argument("--bf16", action="store_true", help="everyone steps under bfloat16 autocast")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, a thread each")
    options = parser.parse_args()
    world = WORLDS[options.world]
    if world.data and not world.data.exists():
        raise SystemExit(f"{world.data} is missing: run `python -m trainers.worlds.cluttered_fashion` first.")
    run_with_peers()
    file = RESULTS / world.file
    log = json.loads(file.read_text()) if file.exists() else {"rows": []}
    budget = {"minutes": options.minutes, "bf16": options.bf16}
    for row in log["rows"]:
        if (found := {key: row[key] for key in budget}) != budget:
            raise SystemExit(f"{file} holds runs of {found}: move it away, or ask for the same.")
    log["command"] = " ".join(["python -m scripts.peers.compare", *sys.argv[1:]])
    log["versions"] = {name: version(name) for name in PACKAGES}

    def complete(wanted: Iterable[Run]) -> None:
        done = {(row["name"], row["rate"], row["seed"], row["split"]) for row in log["rows"]}
        waiting = [chosen for chosen in wanted if chosen not in done]
        with ThreadPoolExecutor(options.jobs) as pool:
            for row in pool.map(lambda chosen: run(world, *chosen, budget), waiting):
                print(json.dumps(row["probes"]), row["name"], row["rate"], row["seed"], row["split"], flush=True)
                log["rows"].append(row)
                file.write_text(json.dumps(log, indent=1) + "\n")

    complete(trials(world))
    complete(tests(world, log["rows"], options.seeds))
    print(render(log["rows"]))


if __name__ == "__main__":
    main()
