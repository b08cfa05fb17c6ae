"""
Writes the pages of docs/ that repeat what the package knows: recipes with their settings, the table of methods, plans
of large runs; with --check, fails where a page is out of date.

    python -m scripts.cards.render_docs [--check]
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

import hf_jepa  # noqa: F401  (registers the methods)
from hf_jepa.methods import METHODS

from .comparison_page import comparison_page
from .planning_page import planning_page
from .small_scale_page import small_scale_page

_COLUMNS = {
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch per process",
    "gradient_accumulation_steps": "accumulation",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "ema_momentum": "EMA from",
}


def recipe_page() -> str:
    """One table of settings and one paragraph per recipe, from the files' own header comments."""
    folder = Path(str(files("hf_jepa") / "recipes"))
    rows, notes = [], []
    for path in sorted(folder.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        comment = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("#")]
        header = " ".join(line.lstrip("# ") for line in comment)
        values: dict[str, Any] = {}
        for name, value in yaml.safe_load(text).items():
            values |= value if isinstance(value, dict) else {name: value}
        cells = [f"`{path.stem}`", *(f"{values[key]}" if key in values else "" for key in _COLUMNS)]
        rows.append(f"| {' | '.join(cells)} |")
        notes.append(f"**`{path.stem}`**: {header}")
    head = ["recipe", *_COLUMNS.values()]
    return "\n".join(
        [
            "# Recipes",
            "",
            "`hf-jepa train NAME` runs one; every key is a flag too (`hf-jepa train NAME --max_steps 100`).",
            "The global batch is the batch per process times the accumulation times the processes. Where a cell is",
            "empty, the default holds. Published figures in the notes are the papers'; what was measured here stands",
            "on the methods' pages.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *rows,
            "",
            "\n\n".join(notes),
            "",
        ]
    )


# Method -> its page beside `methods/index.md`.
_PAGES = {
    **dict.fromkeys(("ijepa", "cjepa"), "ijepa"),
    **dict.fromkeys(("lejepa", "rectified_lpjepa", "vicreg", "simsiam"), "lejepa"),
    **dict.fromkeys(("vjepa", "vjepa2", "vjepa2_1"), "vjepa2"),
    **dict.fromkeys(("latent_world_model", "vjepa2_ac"), "world_models"),
    "data2vec_vision": "data2vec",
    "llm_jepa": "llm_jepa",
    "vl_jepa": "vl_jepa",
}
# Methods without classes of their own: whose converters read their files, and what to build.
_CONVERTED_AS = {"vjepa2_1": "vjepa2"}
_BUILT_BY = {
    "vjepa2_1": '`VJepa2ForPreTraining`, of `VJepa2PreTrainingConfig.from_size(SIZE, "2.1")`',
    "vit_mae": "in-tree `ViTMAEForPreTraining`, by the recipe `mae_fashion_mnist`",
}


def methods_page() -> str:
    """Every method with its sentence, classes and model types; how to cite them stands at the end."""
    lines = [
        "# Methods",
        "",
        "The start page says [which class for which need](../index.md). Each method's own page has what was measured.",
        "",
        "| method | batches are made of | converter |",
        "|---|---|---|",
    ]
    for method in METHODS.values():
        page = _PAGES.get(method.name)
        title = f"[{method.title}]({page}.md)" if page else method.title
        converters = METHODS[_CONVERTED_AS.get(method.name, method.name)].converters
        converters = ", ".join(f"`hf-jepa convert {converter.name}`" for converter in converters)
        lines.append(f"| {title} | {method.batches or 'images or clips'} | {converters} |")
    lines.append("")
    for method in METHODS.values():
        lines += [f"## {method.title}", "", method.sentence, ""]
        for classes in method.model_classes():
            config, model = classes.load("config"), classes.load("model")
            autos = ", ".join(f"`{name}`" for name in classes.auto_classes)
            lines.append(f"- `{model.__name__}` (`{config.__name__}`, type `{config.model_type}`): {autos}")
        lines += [f"- {_BUILT_BY[method.name]}", ""] if method.name in _BUILT_BY else [""]
    lines += ["## How to cite them", "", "```bibtex"]
    lines += ["\n\n".join(dict.fromkeys(m.citation for m in METHODS.values() if m.citation)), "```", ""]
    return "\n".join(lines)


PAGES = {
    "reference/recipes.md": recipe_page,
    "methods/index.md": methods_page,
    "planning.md": planning_page,
    "small_scale.md": small_scale_page,
    "comparison.md": comparison_page,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[2] / "docs")
    args = parser.parse_args(argv)
    stale = [name for name, render in PAGES.items() if _differs(args.folder / name, render())]
    for name in stale:
        if not args.check:
            (args.folder / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"{'out of date' if args.check else 'wrote'}: {args.folder / name}")
    return int(args.check and bool(stale))


def _differs(page: Path, rendered: str) -> bool:
    return not page.is_file() or page.read_text(encoding="utf-8") != rendered


if __name__ == "__main__":
    sys.exit(main())
