"""
One page for every family that has something to show: what `hf-jepa demo` serves. A tab for each release: features of
images, surprise of videos, texts for a picture, plans between pictures.
"""

import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...hub.inspection import inspect_release
from ...hub.sources import is_hub_name
from ...world_model import WorldModelConfig
from .visitors import serve

_SPACE = files(__package__.rpartition(".")[0]) / "space"


def _kind(facts: dict[str, Any]) -> str:
    """What a release has to show: `"texts"`, `"videos"`, `"images"` or `"plans"`."""
    from transformers import AutoConfig

    if facts["modality"] == "text":
        raise ValueError(f"{facts['name']} holds a language model: the page shows nothing of it.")
    if facts["modality"] == "vision-language":
        return "texts"
    inner = facts["pretraining"] or facts["config"]
    if issubclass(type(AutoConfig.for_model(inner["model_type"])), WorldModelConfig):
        return "plans"
    return "videos" if facts["modality"] == "video" else "images"


def build_page(repos: Sequence[str], device: str | None = None) -> Any:
    """
    The page.

    Args:
        repos (`Sequence[str]`): repositories or folders of releases; a tab each.
        device (`str`, *optional*): the GPU if there is one by default.

    Returns:
        `gradio.Blocks`.

    Raises:
        `ImportError`: without gradio.
        `ValueError`: for a release that cannot be loaded or has nothing to show.
    """
    try:
        import gradio as gr
        from gradio.utils import get_upload_folder
    except ImportError as error:
        raise ImportError("The page needs gradio, which is not installed: `pip install 'hf-jepa[demo]'`.") from error
    from . import images, plans, texts, videos

    if not repos:
        raise ValueError("Give a release to show.")
    found = [inspect_release(repo) for repo in repos]
    kinds = [_kind(facts) for facts in found]
    # Whatever cannot be loaded is said before a page is there.
    tabs = []
    for repo, kind in zip(repos, kinds, strict=True):
        if kind == "images":
            tabs.append((images.add_tab, (images.load(repo, device),)))
        elif kind == "texts":
            tabs.append((texts.add_tab, (texts.load(repo, device),)))
        elif kind == "videos":
            videos.check(repo)
            tabs.append((videos.add_tab, (repo,)))
        else:
            tabs.append((plans.add_tab, (plans.load(repo, device), plans.recorded_episodes(repo))))
    # Among the page's own files, which it serves as they lie: others it copies under names of their content, and
    # would write one again while somebody reads it.
    served = Path(get_upload_folder())
    served.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="hf-jepa-demo-", dir=served))
    with gr.Blocks(title="JEPA", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown("# Joint-embedding predictive architectures")
        with gr.Tabs():
            for number, (facts, (add_tab, loaded)) in enumerate(zip(found, tabs, strict=True)):
                with gr.Tab(f"{facts['title']}: {Path(facts['name']).name}", id=f"tab-{number}"):
                    place = folder / str(number)
                    place.mkdir()
                    add_tab(gr, *loaded, place)
    return page


def launch(repos: Sequence[str], host: str = "127.0.0.1", port: int = 7860, device: str | None = None) -> None:
    """
    Serves the page until it is interrupted.

    Args:
        repos (`Sequence[str]`), device (`str`, *optional*): see [`build_page`].
        host (`str`), port (`int`): where.

    Raises:
        `ImportError`, `ValueError`: as [`build_page`].
    """
    serve(build_page(repos, device), host, port)


def write_space(repos: Sequence[str], folder: Path) -> Path:
    """
    Writes what a Space on the Hub needs to serve the page: `app.py`, `requirements.txt` and its card.

    Args:
        repos (`Sequence[str]`): repositories on the Hub.
        folder (`Path`): new or empty.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError`: for a folder of this machine, which a Space cannot read, or files that are there already.
    """
    for repo in repos:
        if not is_hub_name(repo):
            raise ValueError(
                f"A Space reads releases from the Hub, and {repo!r} is none there; `hf-jepa push` it first."
            )
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{str(folder)!r} is not empty: choose another folder.")
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = "6.0.0"
    named = {
        "@REPOS@": repr(list(repos)),
        "@MODELS@": "\n".join(f"  - {repo}" for repo in repos),
        "@GRADIO@": gradio,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for template in _SPACE.iterdir():
        text = template.read_text(encoding="utf-8")
        for place, value in named.items():
            text = text.replace(place, value)
        (folder / template.name.removesuffix(".in")).write_text(text, encoding="utf-8")
    return folder
