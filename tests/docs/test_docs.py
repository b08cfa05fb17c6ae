"""What README and docs promise: links that lead somewhere, names that exist, commands and flags that are there."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from hf_jepa.cli import build_parser
from scripts.cards.render_docs import main as render_docs

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "AGENTS")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_import_what_exists(page):
    for block in blocks(page, "python"):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_have_the_flags_that_are_shown(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["hf-jepa"] or words[1] == "COMMAND":
                continue
            try:
                build_parser().parse_args(words[1:])
            except SystemExit as error:
                pytest.fail(f"{line}: exit {error.code}")


def test_pages_that_repeat_the_package_are_up_to_date():
    assert render_docs(["--check"]) == 0, "run `make cards`"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")}


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "reference").glob("*.md")), ids=lambda page: page.stem)
def test_the_reference_is_of_modules_that_exist(page):
    for name in re.findall(r"^::: (.+)$", page.read_text(encoding="utf-8"), flags=re.M):
        assert importlib.util.find_spec(name) is not None, name


def test_promises_name_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)", text))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
