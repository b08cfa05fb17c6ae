"""
The comparison of compare.py on garments over clutter: every library with what it documents and with the best of three
settings, which is chosen on the validation split; three seeds on the test split, where every run reads it once.

    python -m trainers.worlds.cluttered_fashion
    python -m scripts.peers.harder_world [--minutes 2] [--seeds 0 1 2] [--bf16]

Runs that the JSON file holds are not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.peers.compare import PROBES
from scripts.peers.environment import run_with_peers
from scripts.tables import percent

FILE = Path("model_cards/comparisons/peers_cluttered.json")
DATA = Path("outputs/cluttered_fashion")
SIZES = ["--image-size", "64", "--patch-size", "8", "--train-limit", "4000", "--test-limit", "4000"]
# Library -> contestant and factor on its learning rate; the first is what its documentation has (ours: the recipe).
SETTINGS = {
    "hf_jepa": (("hf_jepa", 1.0), ("hf_jepa", 2.0), ("hf_jepa", 0.5)),
    "lightly": (("lightly", 1.0), ("lightly, paper's masks", 1.0), ("lightly, paper's masks", 4.0)),
    "stable-pretraining": (("stable-pretraining", 1.0), ("stable-pretraining", 0.5), ("stable-pretraining", 2.0)),
}
FLOORS = (("random init", 1.0), ("raw pixels", 1.0))
# What decides between settings: both read all of the tokens.
DECIDING = ("ridge, pooled", "attentive")


def run(name: str, rate: float, seed: int, split: str, budget: dict[str, Any]) -> dict[str, Any]:
    part = Path("outputs/peers_cluttered.json")
    command = [sys.executable, "-m", "scripts.peers.compare", "--one", name, "--one-output", str(part)]
    command += ["--data", str(DATA), "--minutes", str(budget["minutes"]), "--seed", str(seed), "--split", split]
    subprocess.run([*command, "--rate", str(rate), *SIZES, *(["--bf16"] if budget["bf16"] else [])], check=True)
    return json.loads(part.read_text()) | {"rate": rate, "seed": seed, "split": split, **budget}


def best(rows: list[dict[str, Any]], library: str) -> tuple[str, float]:
    """The setting whose deciding probes are highest on the validation split."""

    def score(setting: tuple[str, float]) -> float:
        found = [row for row in rows if row["split"] == "validation" and (row["name"], row["rate"]) == setting]
        return sum(found[0]["probes"][probe] for probe in DECIDING)

    return max(SETTINGS[library], key=score)


def wanted(rows: list[dict[str, Any]], seeds: list[int]) -> Iterator[tuple[str, float, int, str]]:
    for settings in SETTINGS.values():
        for name, rate in settings:
            yield name, rate, 0, "validation"
    for seed in seeds:
        for library, settings in SETTINGS.items():
            for name, rate in dict.fromkeys((settings[0], best(rows, library))):
                yield name, rate, seed, "test"
        # Pixels are the same for every seed.
        yield from ((name, rate, seed, "test") for name, rate in FLOORS if seed == seeds[0] or name != "raw pixels")


def render(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds of the test split, in %."""
    head = ["contestant", "learning rate", "seeds", "images seen", *PROBES]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
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
    parser.add_argument("--minutes", type=float, default=2.0, help="processor minutes for each run, on one thread")
    parser.add_argument("--bf16", action="store_true", help="everyone steps under bfloat16 autocast")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if not DATA.exists():
        raise SystemExit(f"{DATA} is missing: run `python -m trainers.worlds.cluttered_fashion` first.")
    run_with_peers()
    log = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    budget = {"minutes": options.minutes, "bf16": options.bf16}
    for row in log["rows"]:
        if (found := {key: row[key] for key in budget}) != budget:
            raise SystemExit(f"{FILE} holds runs of {found}: move it away, or ask for the same.")
    log["command"] = " ".join(["python -m scripts.peers.harder_world", *sys.argv[1:]])
    done = {(row["name"], row["rate"], row["seed"], row["split"]) for row in log["rows"]}
    for chosen in wanted(log["rows"], options.seeds):
        if chosen not in done:
            log["rows"].append(run(*chosen, budget))
            print(json.dumps(log["rows"][-1]["probes"]), *chosen, flush=True)
            FILE.write_text(json.dumps(log, indent=1) + "\n")
    print(render(log["rows"]))


if __name__ == "__main__":
    main()
