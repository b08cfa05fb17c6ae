"""Models made of models: one way to copy a part's config, to build the part, and to tie its weights."""

import copy
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


class CompositeConfig(PreTrainedConfig):
    """
    A config of configs. Those given are copied: building a model writes precision and attention into them, which
    would reach a live model whose config they are.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        for name in self.sub_configs_defaults:
            if isinstance(getattr(self, name), PreTrainedConfig):
                setattr(self, name, copy.deepcopy(getattr(self, name)))
        super().__post_init__(**kwargs)


def build_part(config: PreTrainedConfig, auto_class: type = AutoModel) -> PreTrainedModel:
    """
    A new model as a part of another, called in that one's constructor: in the precision that the whole is built in,
    whatever checkpoint the part's config was read from, and with the attention that was asked of the whole.

    Args:
        config (`PreTrainedConfig`): left as it is.
        auto_class (`type`): `AutoModel`, `AutoModelForCausalLM`, or a class of models.
    """
    config, dtype = copy.deepcopy(config), torch.get_default_dtype()
    build = getattr(auto_class, "from_config", None) or auto_class._from_config
    return build(config, dtype=dtype)


def tie_as_declared(part: PreTrainedModel) -> None:
    """
    Makes tied parameters of a part one, in place. `from_pretrained` builds models untied, and has no names of weights
    that an adapter has renamed by the time they are tied.
    """
    named = dict(part.named_parameters(remove_duplicate=False))
    for name, source in part.all_tied_weights_keys.items():
        if name in named and source in named:
            module, _, attribute = name.rpartition(".")
            setattr(part.get_submodule(module), attribute, named[source])
