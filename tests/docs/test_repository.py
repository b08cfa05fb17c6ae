"""What lies beside the package: launchers that say what they need, notebooks, issue templates."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LAUNCHERS = sorted((ROOT / "trainers").glob("*.py"))


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
