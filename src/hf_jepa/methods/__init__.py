"""The one place per method: what the package has to know of each is an entry of one table, and is read from there."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import transformers

PACKAGE = __name__.rpartition(".")[0]
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


def register_method(method: Method) -> Method:
    """
    Adds a method: its model types to the Auto classes, and the method to what programs, cards and commands know. This
    is also how a method outside this package is added.

    Args:
        method ([`Method`]): the entry; its name and model types must be new, unless the same entry is given again.

    Returns:
        The entry.

    Raises:
        ValueError: for the name of another method, or a model type that transformers itself or another method has.
    """
    if METHODS.get(method.name, method) != method:
        raise ValueError(f"There is a method {method.name!r} already; give yours another name.")
    in_tree = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    for classes in method.model_classes():
        config, model = classes.load("config"), classes.load("model")
        if config.model_type in in_tree:
            raise ValueError(
                f"transformers itself has the model type {config.model_type!r}; give {config.__name__} another."
            )
        known = transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content.get(config.model_type)
        if known not in (None, config):
            raise ValueError(f"{known.__name__} has the model type {config.model_type!r} already; choose another.")
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        for name in classes.auto_classes:
            getattr(transformers, name).register(config, model, exist_ok=True)
        if classes.processor is not None:
            transformers.AutoProcessor.register(config, classes.load("processor"), exist_ok=True)
    METHODS[method.name] = method
    return method


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
