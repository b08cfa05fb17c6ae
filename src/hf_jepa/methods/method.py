"""What the package has to know of a method: one entry, read from everywhere. Nothing here imports torch."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
class Converter:
    """Reads original checkpoints: `conversion/NAME.py`, and the flags of `hf-jepa convert NAME` that it takes."""

    name: str
    flags: tuple[str, ...] = ()


# What the batches of a method are made of -> how they are built and trained on, unless its entry says otherwise.
BATCHES: dict[str, dict[str, str]] = {
    "masks": {
        "program": ".programs.pretrain_image:main",
        "build_model": ".programs.image_models:build_masked_model",
        "transform": ".data.image_batches:crop_transform",
        "collator": ".data.image_batches:multiblock_collator",
        "pictures": ".programs.image_pictures:draw_mask_pictures",
    },
    "views": {
        "program": ".programs.pretrain_image:main",
        "build_model": ".programs.image_models:build_joint_embedding_model",
        "transform": ".data.image_batches:view_transform",
        "collator": ".data.image_batches:view_collator",
        "pictures": ".programs.image_pictures:draw_joint_embedding_pictures",
    },
    "clips": {
        "program": ".programs.pretrain_video:main",
        "build_model": ".programs.pretrain_video:build_vjepa",
        "transform": ".data.clip_batches:clip_transform",
        "collator": ".data.clip_batches:clip_collator",
        "pictures": ".programs.video_pictures:draw_pictures",
    },
    "pairs": {},
    "actions": {"program": ".programs.train_world_model:main"},
}


@dataclass(frozen=True)
class Method:
    """
    What the package knows of one method. Everything that depends on the method reads it here: registration, public
    names, `hf-jepa list`, the programs, the trainer's default batches, the cards, conversion.

    Args:
        name (`str`): of the family, as recipes and cards have it.
        title (`str`): as people write it.
        sentence (`str`): what the card says it does.
        citation (`str`): BibTeX.
        composite ([`ModelClass`], *optional*): what is trained.
        parts (`tuple[ModelClass, ...]`): further model types that the method brings.
        batches (`str`): what a batch is made of: masks, views, clips, pairs or actions. It decides, by [`BATCHES`],
            whichever of the following are not given.
        program (`str` or `Callable`, *optional*): `(argv)`; trains from a recipe.
        build_model (`str` or `Callable`, *optional*): `(method, model arguments)` -> model.
        transform (`str` or `Callable`, *optional*): `(model, *, settings)` -> transform of an image or a clip.
            Settings are named as in recipes.
        collator (`str` or `Callable`, *optional*): `(model, *, seed, settings)` -> collator.
        pictures (`str` or `Callable`, *optional*): `(trainer, folder)` -> list of (file, caption).
        converters (`tuple[Converter, ...]`): of original checkpoints.
    """

    name: str
    title: str
    sentence: str = ""
    citation: str = ""
    composite: ModelClass | None = None
    parts: tuple[ModelClass, ...] = ()
    batches: str = ""
    program: str | Callable | None = None
    build_model: str | Callable | None = None
    transform: str | Callable | None = None
    collator: str | Callable | None = None
    pictures: str | Callable | None = None
    converters: tuple[Converter, ...] = ()

    def model_classes(self) -> tuple[ModelClass, ...]:
        """The composite, if there is one, and the parts."""
        return (*((self.composite,) if self.composite else ()), *self.parts)

    def load(self, name: str) -> Callable:
        """
        The program or builder of field `name`.

        Raises:
            ValueError: if the method has none.
        """
        value = getattr(self, name) or BATCHES.get(self.batches, {}).get(name)
        if value is None:
            raise ValueError(f"{self.title} has no `{name}`; give its entry one.")
        return resolve(value) if isinstance(value, str) else value


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


def method_of_model(model: Any) -> Method | None:
    """The method whose composite a model is, or a subclass of it; None for a model of none."""
    known = {method.composite.load("config"): method for method in METHODS.values() if method.composite is not None}
    return next((known[cls] for cls in type(model.config).__mro__ if cls in known), None)
