"""What the package has to know of a method: one entry, read from everywhere. Nothing here imports torch."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PACKAGE = __name__.partition(".")[0]
COMPOSITE = ("AutoModel", "AutoModelForPreTraining")


def resolve(path: str) -> Any:
    """
    What a dotted path names: `module:name`, where a module that starts with a dot is one of this package.

    Raises:
        ValueError: for a path of another form.
    """
    module, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"{path!r} names no object; write module:name, such as .models.ijepa:IJepaForPreTraining.")
    return getattr(importlib.import_module(module, PACKAGE), name)


@dataclass(frozen=True)
class ModelClass:
    """A configuration, its model and the Auto classes that build it: dotted paths, or the classes themselves."""

    config: str | type
    model: str | type
    auto_classes: tuple[str, ...] = COMPOSITE
    processor: str | type | None = None

    def load(self, name: str) -> type:
        """The class of field `name`."""
        value = getattr(self, name)
        return resolve(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Method:
    """
    What the package knows of one method. Everything that depends on the method reads it here: registration, public
    names, `hf-jepa list`, the programs, the cards, conversion.

    Args:
        name (`str`): of the family, as recipes and cards have it.
        title (`str`): as people write it.
        sentence (`str`): what the card says it does.
        citation (`str`): BibTeX.
        composite ([`ModelClass`], *optional*): what is trained.
        parts (`tuple[ModelClass, ...]`): further model types that the method brings.
    """

    name: str
    title: str
    sentence: str = ""
    citation: str = ""
    composite: ModelClass | None = None
    parts: tuple[ModelClass, ...] = field(default=())

    def model_classes(self) -> tuple[ModelClass, ...]:
        """The composite, if there is one, and the parts."""
        return (*((self.composite,) if self.composite else ()), *self.parts)


METHODS: dict[str, Method] = {}


def method_of(name: str) -> Method:
    """
    The method of a family's name.

    Raises:
        ValueError: for a name that no method has.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}; choose one of {', '.join(METHODS)}, or add it: `register_method`.")
    return METHODS[name]


def model_classes() -> Iterator[ModelClass]:
    """Every model type of every method."""
    for method in METHODS.values():
        yield from method.model_classes()
