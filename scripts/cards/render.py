"""
Renders model_cards/*.md from the results beside them; with --check, fails where a card differs from its results.

    python -m scripts.cards.render [--check]
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_jepa.hub.card import render_card_file


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a card is out of date")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[2] / "model_cards")
    args = parser.parse_args(argv)

    stale = 0
    for source in sorted(args.folder.glob("*.json")):
        card = source.with_suffix(".md")
        rendered = render_card_file(source)
        current = card.read_text(encoding="utf-8") if card.is_file() else ""
        if current == rendered:
            continue
        stale += 1
        if args.check:
            diff = difflib.unified_diff(
                current.splitlines(), rendered.splitlines(), str(card), "rendered", lineterm=""
            )
            print("\n".join(diff))
        else:
            card.write_text(rendered, encoding="utf-8")
            print(f"wrote {card}")
    unexplained = [card for card in sorted(args.folder.glob("*.md")) if not card.with_suffix(".json").is_file()]
    for card in unexplained:
        if card.name != "README.md":
            print(f"{card} has no results file beside it: its numbers cannot be checked")
            stale += args.check
    return int(args.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
