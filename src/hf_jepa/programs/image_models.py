"""How a recipe of `pretrain_image.py` becomes a model, by kind of method."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from transformers import AutoConfig, Data2VecVisionConfig, IJepaConfig, PreTrainedModel, ViTMAEConfig

from ..data.model_sizes import num_channels
from ..encoders import refuse_patch_dropping
from ..methods import Method
from ..models.data2vec_vision.configuration_data2vec_vision import ENCODER_DEFAULTS
from .image_arguments import ModelArguments
from .mae_baseline import ViTMAEForPreTraining


def refuse_unknown(name: str, chosen: dict[str, Any], cls: type, *others: str) -> dict[str, Any]:
    """The mapping `name` of a recipe, if its keys are fields of a config, which would accept misspelt ones."""
    if unknown := sorted(chosen.keys() - {field.name for field in fields(cls)} | set(others) & chosen.keys()):
        raise ValueError(f"`{name}` names {', '.join(unknown)}, which {cls.__name__} has not.")
    return chosen


# Of the flags about a model, those that every method reads, or its program does.
_READ_BY_ALL = ("family", "licence", "teacher", "attn_implementation", "method")

# What else can be done about flags that are not read beside a source.
_OTHERWISE = {"encoder": ", or say it in `encoder_args`"}
_OTHERWISE |= dict.fromkeys(("from_encoder", "checkpoint"), ", or train a model of your own sizes and parts")


def refuse_unread(args: Any, source: str, *read: str) -> None:
    """
    Refuses flags that are given and that nothing reads beside another: what is trained would not be what was asked
    for.

    Args:
        args (`dataclass`): the recipe's flags about the model.
        source (`str`): the flag that says what the model starts from.
        read (`str`): the flags that are read beside it.
    """
    read = (*_READ_BY_ALL, source, *read)
    # An empty mapping says nothing.
    given = [each for each in fields(args) if getattr(args, each.name) not in (each.default, {})]
    unread = [each for each in given if each.name not in read]
    if not unread:
        return
    names = ", ".join(f"`{each.name}`" for each in unread)
    taken_back = " ".join(f"--{each.name} null" for each in unread if each.default is None)
    raise ValueError(
        f"{args.family} does not read {names} beside `{source}`: leave out {names}"
        + _OTHERWISE.get(source, "")
        + (f". Flags such as `{taken_back}` take back what a recipe says." if taken_back else ".")
    )


def mapping(value: Any, name: str) -> dict[str, Any]:
    """A recipe's nested mapping; none is empty."""
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping such as '{{key: value}}', got {value!r}.")
    return dict(value or {})


def method_fields(method: Method, args: ModelArguments) -> dict[str, Any]:
    """The recipe's `method`: fields of the method's config."""
    return refuse_unknown("method", mapping(args.method, "method"), method.composite.load("config"), "encoder_config")


def own_vit_sizes(args: ModelArguments) -> dict[str, int]:
    """Config fields of a ViT whose sizes the recipe gives itself."""
    if None in (args.hidden_size, args.num_hidden_layers, args.num_attention_heads, args.patch_size):
        raise ValueError("Own sizes need `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `patch_size`.")
    return {
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_hidden_layers,
        "num_attention_heads": args.num_attention_heads,
        "intermediate_size": 4 * args.hidden_size,
        "image_size": args.image_size or 224,
        "patch_size": args.patch_size,
        "num_channels": args.num_channels or 3,
    }


_SHAPE = ("image_size", "patch_size", "num_channels")
_LAYERS = ("num_hidden_layers", "num_attention_heads")
_PREDICTOR = ("predictor_hidden_size", "predictor_num_hidden_layers", "predictor_num_attention_heads")
_PREDICTOR += ("loss_type", "initialization")

# For each source of a masked model its flag, and those that are read beside it.
_OF_SOURCE = {
    "size": ("size", *_SHAPE),
    "from_encoder": ("from_encoder", *_SHAPE),
    "own": ("hidden_size", *_LAYERS, *_SHAPE),
}


def _source(args: ModelArguments) -> str:
    """Which of its three sources a masked model has: `size`, `from_encoder` or `own` sizes."""
    own = (args.hidden_size, args.num_hidden_layers, args.num_attention_heads)
    given = {"size": args.size is not None, "from_encoder": args.from_encoder is not None, "own": any(own)}
    if sum(given.values()) != 1:
        raise ValueError(
            "Give one of `size`, `from_encoder`, or `hidden_size` with its layers and heads; "
            "the flag `--size null` takes back what a recipe says."
        )
    return next(name for name, value in given.items() if value)


def from_released(model_class: Any, args: Any, chosen: dict[str, Any]) -> PreTrainedModel:
    """A method over a released encoder, which honours another size, or refuses it."""
    asked = {name: getattr(args, name, None) for name in ("image_size", "patch_size")}
    asked = {name: value for name, value in asked.items() if value is not None}
    model = model_class.from_encoder(args.from_encoder, **asked, **chosen)
    channels = getattr(args, "num_channels", None)
    if channels not in (None, num_channels(model)):
        raise ValueError(
            f"{args.from_encoder} takes {num_channels(model)} channels, not {channels}; leave --num_channels out, or "
            "train an encoder of your own sizes."
        )
    return model


def with_teacher(
    model_class: Any, name: str, build: Callable[[dict[str, Any]], PreTrainedModel], chosen: dict[str, Any]
) -> PreTrainedModel:
    """A model built with `chosen` fields whose targets come from the frozen encoder `name` (SALT)."""
    # The student's weights are those that the seed draws without a teacher.
    with torch.random.fork_rng(devices=[]):
        teacher = model_class.read_teacher(name)
    model = build(chosen | {"target": "frozen", "teacher_config": teacher.config})
    model.load_teacher(teacher)
    return model


def build_masked_model(method: Method, args: ModelArguments) -> PreTrainedModel:
    """A published size, sizes of its own, or a released encoder."""
    config_class, model_class = (method.composite.load(name) for name in ("config", "model"))
    chosen = {name: value for name in _PREDICTOR if (value := getattr(args, name)) is not None}
    refuse_unknown(method.name, chosen, config_class)
    more = method_fields(method, args)
    if twice := ", ".join(sorted(chosen.keys() & more.keys())):
        raise ValueError(f"The recipe says {twice} twice, as a flag and in `method`; leave one out.")
    chosen |= more
    if args.teacher is None:
        return _build_masked_model(model_class, args, chosen)
    return with_teacher(
        model_class, args.teacher, lambda fields: _build_masked_model(model_class, args, fields), chosen
    )


def _build_masked_model(model_class: Any, args: ModelArguments, chosen: dict[str, Any]) -> PreTrainedModel:
    config_class, source = model_class.config_class, _source(args)
    refuse_unread(args, *_OF_SOURCE[source], *_PREDICTOR)
    if source == "from_encoder":
        return from_released(model_class, args, chosen)
    if source == "size":
        shape = {
            "image_size": args.image_size or 224,
            "patch_size": args.patch_size,
            "num_channels": args.num_channels or 3,
        }
        return model_class(config_class.from_size(args.size, **shape, **chosen))
    encoder = IJepaConfig(**own_vit_sizes(args), layer_norm_eps=1e-6)
    return model_class(config_class(encoder_config=encoder, **chosen))


def build_data2vec_model(method: Method, args: ModelArguments) -> PreTrainedModel:
    """A published size, sizes of its own (`encoder_args` adds layer scale, drop path, ...), or a released encoder."""
    config_class, model_class = (method.composite.load(name) for name in ("config", "model"))
    chosen = method_fields(method, args)
    source = _source(args)
    refuse_unread(args, *_OF_SOURCE[source], *(["encoder_args"] if source == "own" else []))
    if source == "from_encoder":
        return from_released(model_class, args, chosen)
    if source == "size":
        shape = {
            "image_size": args.image_size or 224,
            "patch_size": args.patch_size or 16,
            "num_channels": args.num_channels or 3,
        }
        return model_class(config_class.from_size(args.size, **shape, **chosen))
    options = refuse_unknown("encoder_args", mapping(args.encoder_args, "encoder_args"), Data2VecVisionConfig)
    encoder = Data2VecVisionConfig(**{**ENCODER_DEFAULTS, **own_vit_sizes(args), **options})
    return model_class(config_class(encoder_config=encoder, **chosen))


def build_joint_embedding_model(method: Method, args: ModelArguments) -> PreTrainedModel:
    """Any encoder by type or timm name, or a released one, under the method's projector and loss."""
    config_class, model_class = (method.composite.load(name) for name in ("config", "model"))
    chosen = method_fields(method, args)
    if (args.encoder is None) == (args.from_encoder is None):
        raise ValueError(
            "Give one of `encoder` (vit, resnet, timm/NAME, ...) and `from_encoder`; "
            "the flag `--encoder null` takes back what a recipe says."
        )
    if "image_size" in chosen:
        raise ValueError("Give `image_size` as the flag of that name, not in `method`.")
    if args.from_encoder is not None:
        refuse_unread(args, *_OF_SOURCE["from_encoder"])
        return from_released(model_class, args, chosen)
    read = ["image_size", "num_channels", "encoder_args"]
    if args.hidden_size is not None and not args.encoder.startswith("timm/"):
        read += ["hidden_size", "patch_size", *_LAYERS]
    refuse_unread(args, "encoder", *read)
    chosen["image_size"] = args.image_size or 224
    options = mapping(args.encoder_args, "encoder_args")
    if args.encoder.startswith("timm/"):
        options.setdefault("in_chans", args.num_channels or 3)
        name = args.encoder.removeprefix("timm/")
        encoder = AutoConfig.for_model("timm_wrapper", architecture=name, model_args=options)
    else:
        options.setdefault("num_channels", args.num_channels or 3)
        if args.hidden_size is not None:
            options = own_vit_sizes(args) | options
        encoder = AutoConfig.for_model(args.encoder, **options)
        refuse_patch_dropping(encoder)
        refuse_unknown("encoder_args", options, type(encoder))
    return model_class(config_class(encoder_config=encoder, **chosen))


def build_mae_model(method: Method, args: ModelArguments) -> ViTMAEForPreTraining:
    """In-tree ViT-MAE of the recipe's own sizes; `predictor_*` are the decoder's."""
    if args.size is not None or args.from_encoder is not None:
        raise ValueError("The MAE baseline is trained from scratch: give `hidden_size` with its layers and heads.")
    refuse_unread(args, *_OF_SOURCE["own"], *_PREDICTOR[:3])
    chosen = refuse_unknown("method", mapping(args.method, "method"), ViTMAEConfig)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if (value := getattr(args, f"predictor_{name}")) is not None:
            chosen[f"decoder_{name}"] = value
    if args.predictor_hidden_size is not None:
        chosen.setdefault("decoder_intermediate_size", 4 * args.predictor_hidden_size)
    return ViTMAEForPreTraining(ViTMAEConfig(**own_vit_sizes(args), layer_norm_eps=1e-6, **chosen))
