"""
Prints, one per line, the lowest releases that pyproject.toml allows, also to build with, for `make test-lowest`.

    python scripts/lowest_requirements.py [--extras dev]
"""

import argparse
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(requirements: Sequence[str], extras: dict[str, list[str]], own_name: str) -> list[str]:
    """
    `name>=1.2,<3` -> `name==1.2`; the package's own extras are resolved.

    Raises:
        ValueError: for a requirement without a lower bound, of which nobody knows what it allows.
    """
    pins = []
    for requirement in requirements:
        found = re.fullmatch(r"([\w.-]+)(?:\[([\w,.-]+)\])?\s*(.*)", requirement)
        name, wanted, bounds = found.groups()
        if name == own_name:
            pins += [pin for extra in wanted.split(",") for pin in lowest(extras[extra], extras, own_name)]
            continue
        bound = re.search(r">=\s*([\w.]+)", bounds)
        if bound is None:
            raise ValueError(f"pyproject.toml gives {requirement!r} no lower bound; write {name}>=VERSION.")
        pins.append(f"{name}{f'[{wanted}]' if wanted else ''}=={bound[1]}")
    return pins


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=[], help="optional dependencies to include")
    args = parser.parse_args(argv)
    declared = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    project, extras = declared["project"], declared["project"]["optional-dependencies"]
    # A test builds the wheel with what is installed.
    wanted = [
        *declared["build-system"]["requires"],
        *project["dependencies"],
        *(name for extra in args.extras for name in extras[extra]),
    ]
    print("\n".join(sorted(set(lowest(wanted, extras, project["name"])))))


if __name__ == "__main__":
    main()
