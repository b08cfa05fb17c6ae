"""Loading VL-JEPA's parts: decoder layers, sentence-transformers' folders, parts kept by reference."""

import copy
import json
import os
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.hub import cached_file

from ...encoders import without_predictor
from ...parts import leave_out, load_auto
from .configuration_vl_jepa import ACTIVATIONS

_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_LEGACY_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


class TextTower(NamedTuple):
    """A text encoder as sentence-transformers would apply it: model, pooling, dense heads and their weights."""

    model: PreTrainedModel
    pooling: str
    dense_layers: list[dict[str, Any]]
    dense_weights: list[dict[str, torch.Tensor]]


def source_of(component: str | PreTrainedModel, revision: str | None = None) -> dict[str, str | None] | None:
    """Where a part can be loaded from again, as in `VLJepaConfig.sources`; `None` for a model without a name."""
    name = component if isinstance(component, str) else component.config._name_or_path
    if not name:
        return None
    return {"name_or_path": os.path.abspath(name) if os.path.isdir(name) else name, "revision": revision}


def take_layers(decoder: PreTrainedModel, start: int, end: int) -> PreTrainedModel:
    """
    A bidirectional copy of some of a decoder's layers, with its token embeddings and final norm. VL-JEPA's predictor
    is the last 8 of Llama-3.2-1B's 16 layers (§3.1).

    Args:
        decoder (`PreTrainedModel`): a causal language model or its backbone, with Llama's names.
        start (`int`), end (`int`): layers `start` to `end - 1`, renumbered from 0.

    Returns:
        `PreTrainedModel`: the backbone, in eval mode.

    Raises:
        `ValueError`: for layers that it does not have, a decoder without `layers`, or one that stays causal.
    """
    backbone = decoder.base_model
    config = copy.deepcopy(backbone.config)
    total = getattr(config, "num_hidden_layers", None)
    if total is None or not any(key.startswith("layers.0.") for key in backbone.state_dict()):
        raise ValueError(f"{type(backbone).__name__} has no `layers` to take; pass a decoder with Llama's names.")
    if not 0 <= start < end <= total:
        raise ValueError(f"Layers {start} to {end} were asked of a decoder that has {total}.")
    for name, value in vars(config).items():
        # Such as `layer_types`, which says layer by layer whether attention slides.
        if isinstance(value, list) and len(value) == total:
            setattr(config, name, value[start:end])
    config.num_hidden_layers = end - start
    config.is_causal, config.use_cache = False, False
    taken = AutoModel.from_config(config, dtype=backbone.dtype, attn_implementation=config._attn_implementation)
    weights = {}
    for key, value in backbone.state_dict().items():
        group, _, rest = key.partition(".")
        if group == "layers":
            number, _, rest = rest.partition(".")
            if not start <= int(number) < end:
                continue
            key = f"layers.{int(number) - start}.{rest}"
        weights[key] = value
    taken.load_state_dict(weights)
    check_bidirectional(taken)
    return taken.eval()


def bidirectional(predictor: PreTrainedModel) -> PreTrainedModel:
    """
    A decoder that sees what follows: itself if it does, else a copy, so that the caller's stays as it is.

    Raises:
        `ValueError`: for one that stays causal.
    """
    if getattr(predictor.config, "is_causal", True) is False:
        return predictor
    copied = copy.deepcopy(predictor)
    copied.config.is_causal, copied.config.use_cache = False, False
    check_bidirectional(copied)
    return copied


@torch.no_grad()
def check_bidirectional(decoder: PreTrainedModel) -> None:
    """
    Checks by perturbation that a decoder's first token sees its last.

    Raises:
        `ValueError`: if it does not, as in families whose masks do not read `is_causal`.
    """
    was_training = decoder.training
    decoder.eval()
    width = decoder.get_input_embeddings().weight.shape[1]
    # Not constant ones: a norm makes the same of every multiple of a vector.
    embeds = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1)
    embeds[1, 2] = -embeds[1, 2].roll(1)
    mask = torch.ones(2, 3, dtype=torch.int64, device=decoder.device)
    embeds = embeds.to(decoder.device, decoder.dtype)
    states = decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    decoder.train(was_training)
    if torch.equal(states[0, 0], states[1, 0]):
        raise ValueError(
            f"{type(decoder).__name__} stays causal with `is_causal=False`, but VL-JEPA's predictor is bidirectional; "
            "take a decoder of another family (Llama, Qwen, Mistral and Gemma are known to work)."
        )


def load_text_tower(
    name: str, revision: str | None = None, y_heads: Literal["st", "none"] = "st", **options: Any
) -> TextTower:
    """
    Loads a text encoder; of a sentence-transformers folder also its pooling and, with `y_heads="st"`, its dense heads,
    which `AutoModel` does not load (EmbeddingGemma has two).

    Args:
        name (`str`): a model id or a local folder.
        revision (`str`, *optional*): of a model id.
        y_heads (`str`): `"st"`, or `"none"` to leave dense heads out.
        options: for `AutoModel.from_pretrained`.

    Returns:
        [`TextTower`]: pooled by the mean where the folder does not say.

    Raises:
        `ValueError`: for modules or settings that have no place here, and heads without safetensors.
    """

    def read(file: str, folder: str = "") -> str | None:
        return cached_file(
            name, file, subfolder=folder, revision=revision, _raise_exceptions_for_missing_entries=False
        )

    listing = read("modules.json")
    modules = _read_json(listing) if listing else [{"type": "Transformer", "path": ""}]
    pooling, layers, weights, folder = "mean", [], [], ""
    for module in modules:
        kind, path = module["type"].rsplit(".", 1)[-1], module["path"]
        if kind == "Transformer":
            folder = path
        elif kind == "Pooling":
            pooling = _pooling(name, _read_json(read("config.json", path)))
        elif kind == "Dense":
            layers.append(_dense_layer(name, _read_json(read("config.json", path))))
            file = read("model.safetensors", path)
            if file is None:
                raise ValueError(f"{name} has no {path}/model.safetensors; save it anew with sentence-transformers.")
            weights.append({key.removeprefix("linear."): value for key, value in load_file(file).items()})
        elif kind != "Normalize":
            raise ValueError(f"{name} has a module {kind!r}, which VL-JEPA's Y-encoder does not know.")
    model = load_auto(AutoModel, name, revision=revision, subfolder=folder, **options)
    if y_heads == "none":
        layers, weights = [], []
    return TextTower(model, pooling, layers, weights)


def _read_json(file: str) -> Any:
    with open(file, encoding="utf-8") as stream:
        return json.load(stream)


def _pooling(name: str, config: dict[str, Any]) -> str:
    mode = config.get("pooling_mode")
    known = _POOLINGS.get(mode) if isinstance(mode, str) else None
    if mode is None:
        modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        mode, known = modes, _LEGACY_POOLINGS.get(modes[0]) if len(modes) == 1 else None
    if known is None or config.get("include_prompt") is False:
        raise ValueError(f"{name} pools by {mode} (include_prompt={config.get('include_prompt', True)}), but mean, "
                         "cls and lasttoken over all tokens are known here.")  # fmt: skip
    return known


def _dense_layer(name: str, config: dict[str, Any]) -> dict[str, Any]:
    activation = config["activation_function"].rsplit(".", 1)[-1].lower()
    if activation not in ACTIVATIONS or config.get("use_residual"):
        raise ValueError(
            f"{name} has a dense head with activation {config['activation_function']} and residual "
            f"{config.get('use_residual', False)}; known are {ACTIVATIONS} without residual."
        )
    return {"out_features": config["out_features"], "bias": config["bias"], "activation": activation}


class Components(NamedTuple):
    """Loaded parts, the config's fields that describe them, and the weights of the Y-encoder's dense heads."""

    parts: dict[str, PreTrainedModel]
    config: dict[str, Any]
    dense_weights: list[dict[str, torch.Tensor]]


def load_components(
    given: dict[str, str | PreTrainedModel | None],
    predictor_layers: tuple[int, int | None],
    y_heads: Literal["st", "none"],
    revisions: dict[str, str],
    options: dict[str, Any],
) -> Components:
    """
    Loads what [`VLJepaModel.from_components`] puts together.

    Args:
        given (`dict`): names or loaded models of `vision`, `predictor`, `y_encoder` and, or `None`, `y_decoder`.
        predictor_layers (`tuple`): start and end of the layers to take; a negative start counts from the last one,
            and no end means all that follow.
        y_heads (`str`), revisions (`dict`): as there.
        options (`dict`): for `from_pretrained`.

    Raises:
        `ValueError`: as [`take_layers`] and [`load_text_tower`].
    """
    given = {part: component for part, component in given.items() if component is not None}
    parts, config, weights = {}, {}, []
    for part, component in given.items():
        revision = revisions.get(part)
        if not isinstance(component, str):
            parts[part] = component
        elif part == "y_encoder":
            tower = load_text_tower(component, revision, y_heads, **options)
            parts[part], weights = tower.model, tower.dense_weights
            config |= {"y_pooling": tower.pooling, "y_dense_layers": tower.dense_layers}
        else:
            auto_class = AutoModelForCausalLM if part == "y_decoder" else AutoModel
            parts[part] = load_auto(auto_class, component, revision=revision, **options)
    start, end = predictor_layers
    total = parts["predictor"].base_model.config.num_hidden_layers
    parts["predictor"] = take_layers(
        parts["predictor"], start + total if start < 0 else start, total if end is None else end
    )
    sources = {part: source_of(component, revisions.get(part)) for part, component in given.items()}
    config["sources"] = {part: source for part, source in sources.items() if source is not None} or None
    config |= {f"{part}_config": copy.deepcopy(model.config) for part, model in parts.items()}
    return Components(parts, config, weights)


def load_frozen_part(model: PreTrainedModel, part: str, source: dict[str, str | None]) -> None:
    """
    Fills a frozen part that a checkpoint keeps by reference, every key of it.

    Args:
        model ([`VLJepaModel`]): changed in place.
        part (`str`): `"vision"`, `"y_encoder"` (the text encoder and its dense heads) or `"y_decoder"` (the language
            model).
        source (`dict`): `name_or_path` and `revision`.

    Raises:
        `ValueError`: if it cannot be loaded or is another model, naming part and reference.
    """
    name, revision = source["name_or_path"], source.get("revision")
    at = f"{name!r}" + (f" at revision {revision}" if revision else "")
    try:
        if part == "vision":
            loaded = without_predictor(load_auto(AutoModel, name, revision=revision))
            pairs = [(model.vision, loaded.state_dict())]
        elif part == "y_decoder":
            loaded = load_auto(AutoModelForCausalLM, name, revision=revision)
            pairs = [(model.y_decoder.language_model, loaded.state_dict())]
        else:
            tower = load_text_tower(name, revision, "st" if model.config.y_dense_layers else "none")
            heads = enumerate(tower.dense_weights)
            dense = {f"{number}.{key}": value for number, head in heads for key, value in head.items()}
            pairs = [
                (model.y_encoder.model, leave_out(tower.model, "pooler").state_dict()),
                (model.y_encoder.dense, dense),
            ]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The checkpoint keeps its `{part}` by reference to {at}, which cannot be loaded: {error}\nPut it there, "
            f"pass a config whose `sources[{part!r}]` names where it is now, or save the whole model with "
            "`save_frozen=True`."
        ) from error
    try:
        for module, weights in pairs:
            module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{at} is not the `{part}` of this checkpoint: {error}") from error
