"""What a model was made from: names and licences, which bind what is made; and no folders of anybody's disk."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache
from transformers import PreTrainedModel

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
UNKNOWN = (None, "", "unknown")


def is_hub_name(name: str | None) -> bool:
    """Whether a name can be a repository's, and is nothing on this disk."""
    return bool(name) and HUB_NAME.fullmatch(name) is not None and not os.path.exists(name)


def source_names(model: PreTrainedModel) -> list[str]:
    """Folders and repositories that the parts of a composite were loaded from, as their configs recorded them."""
    config = model.config
    sources = getattr(config, "sources", None) or {}
    names = [source["name_or_path"] for source in sources.values()]
    for part in ("encoder_config", "decoder_config"):
        names.append(getattr(getattr(config, part, None), "_name_or_path", None))
    return list(dict.fromkeys(name for name in names if name))


def _facts_of(name: str) -> dict[str, Any]:
    """Repository and licence of a source: what its results or its card on this disk say; the network is not asked."""
    for folder in (Path(name), Path(name).parent):
        if (folder / "results.json").is_file():
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            repo = (results.get("model") or {}).get("repo_id") or results.get("base_model")
            return {"repo": repo, "licence": results.get("licence")}
    card = Path(name) / "README.md" if Path(name).is_dir() else None
    if is_hub_name(name):
        found = try_to_load_from_cache(name, "README.md")
        card = Path(found) if isinstance(found, str) else None
    licence = None
    if card is not None and card.is_file():
        licence = (
            ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict().get("license")
        )
    return {"repo": name if is_hub_name(name) else None, "licence": licence}


def carry_sources(results: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """
    Results with what binds a release: `base_model`, where it is a repository, `source_licence`, and as `licence`,
    where nobody has said one, that of the sources.

    Args:
        results (`dict`): see [`~hf_jepa.hub.render_card`]; what they say stays.
        names (`Iterable[str]`): of the sources.
    """
    facts = [_facts_of(name) for name in names]
    repos = list(dict.fromkeys(fact["repo"] for fact in facts if is_hub_name(fact["repo"])))
    licences = list(dict.fromkeys(fact["licence"] for fact in facts if fact["licence"] not in UNKNOWN))
    carried = dict(results)
    if repos and not carried.get("base_model"):
        carried["base_model"] = repos[0] if len(repos) == 1 else repos
    if licences and not carried.get("source_licence"):
        carried["source_licence"] = ", ".join(licences)
    if len(licences) == 1 and carried.get("licence") in UNKNOWN:
        carried["licence"] = licences[0]
    return carried


def forget_folders(file: Path) -> None:
    """Takes folders of this machine out of a saved config."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        if os.path.exists(part.get("_name_or_path") or "") or os.path.isabs(part.get("_name_or_path") or ""):
            del part["_name_or_path"]
    sources = config.get("sources")
    if sources is not None:
        kept = {part: source for part, source in sources.items() if not os.path.isabs(source["name_or_path"])}
        config["sources"] = kept or None
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def without_code(values: Any) -> Any:
    """A config without `auto_map`, at any depth: it names code that lay where a model was loaded from."""
    if isinstance(values, dict):
        return {key: without_code(value) for key, value in values.items() if key != "auto_map"}
    return values


def forget_code(folder: Path) -> None:
    """Takes `auto_map` out of the configs in a folder."""
    for path in folder.rglob("*config.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if (plain := without_code(values)) != values:
            path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
