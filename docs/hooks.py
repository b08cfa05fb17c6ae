"""Pages link to measured files by their place in the repository; here those files join the site."""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Everything that pages show or link to outside `docs/`.
_LINK = re.compile(r"\]\(((?:\.\./)+)((?:model_cards|src|tests|trainers|scripts|notebooks)/[^)#\s]+|[A-Z]+\.md)")


def on_files(files, config):
    """Adds pictures, tables and cards of `model_cards/`, and notebooks, under the same path."""
    for path in sorted([*(ROOT / "model_cards").rglob("*"), *(ROOT / "notebooks").glob("*.ipynb")]):
        if path.suffix in (".png", ".gif", ".json", ".md", ".ipynb"):
            name = path.relative_to(ROOT).as_posix()
            file = File.generated(config, name, abs_src_path=str(path))
            files.append(file)
    return files


def on_page_markdown(markdown, page, config, files):
    """
    Rewrites links that leave `docs/` to `model_cards/` and `notebooks/`, into the site.
    """
    depth = page.file.src_uri.count("/")

    def rewrite(match):
        ups, target = match[1], match[2]
        if ups.count("../") != depth + 1:
            return match[0]
        if target.startswith(("model_cards/", "notebooks/")):
            return "](" + os.path.relpath(target, os.path.dirname(page.file.src_uri) or ".").replace(os.sep, "/")
        return match[0]

    return _LINK.sub(rewrite, markdown)


def on_page_content(html, page, config, files):
    """
    Docstrings are written as transformers' are: types between backticks, which are code already where the reference
    shows them, and names between brackets.
    """
    if not page.file.src_uri.startswith("reference/"):
        return html
    types = re.compile(r"<code>(?:(?!</code>).)*</code>", re.S)
    html = types.sub(lambda match: match[0].replace("`", "").replace("*optional*", "optional"), html)
    return re.sub(r"\[<code>~?(?:[\w.]*\.)?([A-Z]\w*|\w+)</code>\]", r"<code>\1</code>", html)
