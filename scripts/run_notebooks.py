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
        environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
        client.execute(env=environment)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            for output in cell.get("outputs", []):
                if "text" in output:
                    output["text"] = output["text"].replace(folder + os.sep, "")
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: all")
    for name in parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(execute(path), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
