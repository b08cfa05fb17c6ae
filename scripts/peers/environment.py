"""A virtual environment of its own for the peers, so that comparing with them leaves `.venv` as it is.

It sees the packages of the python that made it and adds the peers from PyPI, pinned.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

PEERS = ("jepa-science==0.1.0", "lightly==1.6.0", "stable-pretraining==0.1.8")
FOLDER = Path("outputs") / "peers-venv"


def run_with_peers(peers: tuple[str, ...] = PEERS, folder: Path = FOLDER) -> None:
    """Replace this process by the same command under the peers' python, made in `folder` on the first call."""
    if os.environ.get("HF_JEPA_PEERS") == "1":
        return
    python = folder / "bin" / "python"
    done = folder / "installed.txt"
    if not done.exists() or done.read_text() != "\n".join(peers):
        print(f"Making {folder} and installing {', '.join(peers)} from PyPI into it (once) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        # addsitedir, not a bare path: it also reads this environment's .pth files, where editable installs live.
        link = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (Path(site.decode().strip()) / "parent.pth").write_text(link)
        versions = {name: _version(name) for name in ("torch", "torchvision", "transformers", "timm", "numpy")}
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(f"{name}=={version}" for name, version in versions.items()))
        command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", constraints, *peers]
        subprocess.run([str(part) for part in command], check=True)
        done.write_text("\n".join(peers))
    os.environ["HF_JEPA_PEERS"] = "1"
    os.execv(python, [str(python), *sys.orig_argv[1:]])


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)
