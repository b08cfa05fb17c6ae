"""
Runs notebooks from top to bottom, each in an empty folder, and keeps their outputs.

    python -m scripts.run_notebooks [NAME ...]
"""

import argparse
import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
_COLAB = "https://colab.research.google.com/"


def badge(name: str) -> str:
    """
    How a notebook's first cell begins its line on Colab: with a link that opens it from the repository that
    `[project.urls]` of `pyproject.toml` names, or while none is named with how to bring it there.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository")
    picture = f"[![Open in Colab]({_COLAB}assets/colab-badge.svg)]"
    if repository is None:
        return f"{picture}({_COLAB}) *File, Upload notebook; then run*"
    place = repository.removeprefix("https://github.com/").rstrip("/")
    return f"{picture}({_COLAB}github/{place}/blob/main/notebooks/{name}.ipynb) *First run*"


def execute(path: Path, timeout: int = 1800) -> Any:
    """
    Args:
        path (`Path`): of a notebook.
        timeout (`int`): seconds that a cell may take.

    Returns:
        The notebook with its outputs, without what differs from one run to the next.

    Raises:
        `nbclient.exceptions.CellExecutionError`: if a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": folder}})
        # `!hf-jepa` is that of this interpreter's environment.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        client.execute(env={**os.environ, "PATH": path})
        tidy(notebook, folder)
    return notebook


def tidy(notebook: Any, folder: str) -> None:
    """Leaves out progress bars, warnings and times of day, and the folder that it ran in."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in outputs:
            if "text" in output:
                lines = output["text"].replace(folder + os.sep, "").replace("\r\n", "\n").split("\n")
                output["text"] = "\n".join(line for line in lines if "\r" not in line and "it/s]" not in line)
        if "outputs" in cell:
            # What is said in several pieces is one.
            cell.outputs = [output for output in outputs if output.get("text", "shown").strip()]


def main() -> None:
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: all")
    for name in parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        path = FOLDER / f"{name}.ipynb"
        notebook = execute(path)
        first = notebook.cells[0]
        first.source = re.sub(r"^\[!\[Open in Colab.*?\*.*?\*", badge(name), first.source, flags=re.M)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
