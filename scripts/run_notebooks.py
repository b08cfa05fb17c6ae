"""
Runs notebooks from top to bottom, each in an empty folder, and keeps their outputs.

    python -m scripts.run_notebooks [NAME ...]
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def execute(path: Path, timeout: int = 600) -> Any:
    """
    Args:
        path (`Path`): of a notebook.
        timeout (`int`): seconds that a cell may take.

    Returns:
        The notebook with its outputs, without what differs from one run to the next.

    Raises:
        `nbclient.exceptions.CellExecutionError`: if a cell fails.
    """
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: all")
    for name in parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(execute(path), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
