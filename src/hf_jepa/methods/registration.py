"""
How transformers gets to know the model types. `import hf_jepa` imports neither torch nor transformers: the types are
registered with the Auto classes when transformers first asks for one that it does not have, or when a model of this
package is imported.
"""

import importlib
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .method import METHODS, PACKAGE, Method

# Module of transformers -> its Auto mapping that is asked before any other.
_WATCHED = {
    "transformers.models.auto.configuration_auto": "CONFIG_MAPPING",
    "transformers.models.auto.processing_auto": "PROCESSOR_MAPPING",
}
_REGISTERED: dict[str, Method] = {}


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
    if method.name not in METHODS:
        register_all()
    _register(method)
    METHODS[method.name] = method
    return method


def register_all() -> None:
    """Registers what the table holds and transformers does not know yet."""
    for method in list(METHODS.values()):
        if method.name not in _REGISTERED:
            _register(method)


def _register(method: Method) -> None:
    import transformers

    in_tree = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    others = transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content
    for classes in method.model_classes():
        config, model = classes.load("config"), classes.load("model")
        if config.model_type in in_tree:
            raise ValueError(
                f"transformers itself has the model type {config.model_type!r}; give {config.__name__} another."
            )
        known = others.get(config.model_type)
        if known not in (None, config):
            raise ValueError(f"{known.__name__} has the model type {config.model_type!r} already; choose another.")
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        for name in classes.auto_classes:
            getattr(transformers, name).register(config, model, exist_ok=True)
        if classes.processor is not None:
            transformers.AutoProcessor.register(config, classes.load("processor"), exist_ok=True)
    _REGISTERED[method.name] = method


class _Registered(dict):
    """
    What is registered with an Auto mapping. Asked for a name that transformers does not have, or for all of it, it
    imports this package's models first, which register themselves.
    """

    loaded = False

    def _load(self) -> None:
        if not self.loaded:
            self.loaded = True
            importlib.import_module(f"{PACKAGE}.models")

    def __contains__(self, key: object) -> bool:
        names = sys.modules["transformers.models.auto.configuration_auto"].CONFIG_MAPPING_NAMES
        if isinstance(key, str) and key not in names:
            self._load()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        self._load()
        return super().__iter__()

    def keys(self) -> Any:
        self._load()
        return super().keys()

    def values(self) -> Any:
        self._load()
        return super().values()

    def items(self) -> Any:
        self._load()
        return super().items()


class _Watch(MetaPathFinder):
    """Puts [`_Registered`] into transformers' mappings as soon as their modules have been imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _WATCHED:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_attach(module: ModuleType) -> None:
                run(module)
                _attach(module)

            spec.loader.exec_module = run_and_attach
        return spec


def _attach(module: ModuleType) -> None:
    mapping = getattr(module, _WATCHED[module.__name__])
    if not isinstance(mapping._extra_content, _Registered):
        mapping._extra_content = _Registered(mapping._extra_content)


def watch_transformers() -> None:
    """Called once, when the package is imported."""
    for name in _WATCHED.keys() & sys.modules.keys():
        _attach(sys.modules[name])
    sys.meta_path.insert(0, _Watch())
