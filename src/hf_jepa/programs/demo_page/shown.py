"""A picture on the page."""

import inspect
from typing import Any


def picture(gr: Any, caption: str, elem_id: str, file: str | None = None) -> Any:
    """A `gradio.Image` under its caption. Gradio's own label and buttons would lie upon a drawing's titles."""
    gr.Markdown(caption)
    bare = {"buttons": []} if "buttons" in inspect.signature(gr.Image).parameters else {}
    return gr.Image(file, show_label=False, interactive=False, elem_id=elem_id, **bare)
