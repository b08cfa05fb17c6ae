"""What lies beside the package: launchers that say what they need, notebooks, issue templates."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from scripts import run_notebooks

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LAUNCHERS = sorted((ROOT / "trainers").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_launchers_say_what_uv_needs(path):
    # PEP 723's own expression.
    block = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", path.read_text(encoding="utf-8"))
    lines = (line.removeprefix("#").removeprefix(" ") for line in block["content"].splitlines())
    said = tomllib.loads("\n".join(lines))
    assert said["requires-python"] == PROJECT["requires-python"]
    (needed,) = said["dependencies"]
    name, extras = re.fullmatch(r"([\w-]+)\[([\w,]+)\]", needed).groups()
    assert name == PROJECT["name"]
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert (path.parent / said["tool"]["uv"]["sources"][name]["path"] / "pyproject.toml").samefile(
        ROOT / "pyproject.toml"
    )


def test_every_notebook_of_the_page_is_there():
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+\.ipynb)`", page)) == {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_run_small_and_tell_nothing_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r"/(home|work|tmp|root)/|hf_[A-Za-z0-9]{30}", text)
    cells = json.loads(text)["cells"]
    assert "\n" + run_notebooks.badge(path.stem) + " `%pip install" in "".join(cells[0]["source"])
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    assert all(counts)
    assert counts == sorted(counts)
    assert sum(bool(cell["outputs"]) for cell in code) >= 2
    assert not [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    # The documentation names it.
    assert path.name in (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    code = [cell for cell in run_notebooks.execute(path).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)


def test_a_badge_opens_the_notebook_once_the_repository_has_an_address(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/us/zoo/"\n')
    monkeypatch.setattr(run_notebooks, "ROOT", tmp_path)
    assert "](https://colab.research.google.com/github/us/zoo/blob/main/notebooks/planning.ipynb) *" in (
        run_notebooks.badge("planning")
    )


def test_badges_say_what_the_package_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = dict(re.findall(r"img\.shields\.io/badge/([a-z]+)-([^)]+)-blue", text))
    assert badges["licence"].replace("--", "-") == PROJECT["license"]
    assert ">=" + badges["python"].removesuffix("%2B") == PROJECT["requires-python"]
    # Nothing that a service would have to compute, and no account that may not be there.
    assert not re.search(r"shields\.io/(?!badge/)|codecov|travis|badge\.fury", text)


def test_issue_templates_are_forms():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            continue
        assert form["name"]
        assert form["description"]
        assert len({part["id"] for part in form["body"]}) == len(form["body"])
        assert all(part["type"] in ("textarea", "input") and part["attributes"]["label"] for part in form["body"])
