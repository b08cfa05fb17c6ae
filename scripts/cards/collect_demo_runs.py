"""
Joins the results of several demo runs (seeds) into one card under model_cards/, pictures of the first run included.

    python -m scripts.cards.collect_demo_runs outputs/demo outputs/demo_seed1 outputs/demo_seed2 --name NAME
    python -m scripts.cards.collect_demo_runs outputs/jepa --name NAME --baselines \
        "LM only=outputs/lm" "STP=outputs/stp"
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from hf_jepa.hub.card import render_card_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="output folders of a demo, trainers/pretrain_image.py or finetune_llm.py"
    )
    parser.add_argument("--baselines", nargs="*", default=[], metavar="NAME=RUN", help="runs of other arms")
    parser.add_argument("--name", required=True, help="of the card")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[2] / "model_cards")
    args = parser.parse_args()

    def results_of(run: str | Path) -> dict[str, Any]:
        return json.loads((Path(run) / "release" / "results.json").read_text())

    runs = [results_of(run) for run in args.runs]
    joint = runs[0]
    joint["model"]["name"] = args.name
    for section in ("evaluations", "baselines"):
        joint[section] = [entry for run in runs for entry in run.get(section) or []]
    for name, _, run in (given.partition("=") for given in args.baselines):
        joint["baselines"] += [{**entry, "name": name} for entry in results_of(run)["evaluations"]]
    joint["compute"]["cpu_seconds"] = sum(run["compute"]["cpu_seconds"] for run in runs)
    joint.setdefault("limits", ["Values are those of one seed."])
    if len(runs) > 1:
        joint["limits"] = [
            f"Values are means over {len(runs)} seeds; the pictures and the training section are the first's."
        ]

    pictures = args.folder / args.name
    for picture in joint["pictures"]:
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.runs[0] / "release" / picture["file"], pictures / picture["file"])
        picture["file"] = f"{args.name}/{picture['file']}"
    target = args.folder / f"{args.name}.json"
    target.write_text(json.dumps(joint, indent=2) + "\n")
    target.with_suffix(".md").write_text(render_card_file(target))
    print(f"wrote {target} and {target.with_suffix('.md')}")


if __name__ == "__main__":
    main()
