"""What the programs say of a recipe: its method, licences, where data comes from."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..methods import Method, method_of
from ..parts import no_such_folder


def method_for(args: Any, program: str) -> Method:
    """
    The method that a recipe names.

    Args:
        args: with `family`.
        program (`str`): module of the program that asks.

    Raises:
        ValueError: for none, or one of another program.
    """
    method = method_of(args.family)
    own = method.load("program").__module__
    if own != program:
        raise ValueError(
            f"{method.title} is trained by {own.rpartition('.')[2]}, not {program.rpartition('.')[2]}; "
            "`hf-jepa train RECIPE` chooses by itself."
        )
    return method


def settings(builder: Callable, *sources: Any) -> dict[str, Any]:
    """What a recipe's arguments say of a builder's keywords."""
    names = inspect.signature(builder).parameters
    found = ((name, getattr(source, name, None)) for source in sources for name in names)
    return {name: value for name, value in found if value is not None}


def licence_of(licence: str | None, *sources: str | None) -> str:
    """
    The licence a release will carry: what is made from other weights is bound by theirs.

    Args:
        licence (`str`, *optional*): what the recipe says.
        sources (`str`, *optional*): names or folders of the weights that a run starts from.

    Raises:
        ValueError: for a source that does not say its licence.
    """
    sources = [source for source in sources if source]
    if licence or not sources:
        return licence or "apache-2.0"
    known = set()
    for source in sources:
        results = Path(source) / "results.json"
        if not results.is_file():
            missing = ""
            if not Path(source).exists():
                missing = f"There is no folder {source!r}, and the repository "
                try:
                    validate_repo_id(source)
                except HFValidationError as error:
                    raise no_such_folder(source) from error
            raise ValueError(
                f"{missing}{source} does not say its licence, which the release must carry on; give --licence "
                "(facebook/ijepa_*: cc-by-nc-4.0)."
            )
        known.add(json.loads(results.read_text(encoding="utf-8"))["licence"])
    if len(known) > 1:
        raise ValueError(f"What this is made from has the licences {', '.join(sorted(known))}; give --licence.")
    return known.pop()


def origin_of(*datasets: str, licence: str | None = None) -> dict[str, str]:
    """Name and licence of the data: a folder's own name, or what the note `provenance.json` beside it says."""
    origins = []
    for dataset in datasets:
        note = Path(dataset) / "provenance.json"
        if note.is_file():
            origin = json.loads(note.read_text(encoding="utf-8"))
            origins.append({"name": origin["name"], "licence": origin["licence"].lower()})
        else:
            origins.append({"name": Path(dataset).name if Path(dataset).exists() else dataset, "licence": None})
    licences = {origin["licence"] for origin in origins} - {None}
    licence = licence or (licences.pop() if len(licences) == 1 else None)
    return {"name": ", ".join(origin["name"] for origin in origins)} | ({"licence": licence} if licence else {})
