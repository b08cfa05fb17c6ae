"""Models made of models: how a part's config is copied, the part built, its weights tied and what it reads found."""

import copy
import dataclasses
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from torch import nn
from transformers import AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Keywords that every config takes beside its fields.
_OF_TRANSFORMERS = {
    *GenerationConfig._get_default_generation_params(),
    *("attn_implementation", "auto_map", "experts_implementation", "model_type", "name_or_path", "num_labels"),
    *("output_attentions", "per_layer_config", "torch_dtype", "use_cache"),
}


# What runs, releases and conversions note in a config, such as `hub.release.note_trained_size`.
_NOTED = {"from_vjepa_model", "has_predictor", "jepa_encoder", "trained_frames", "trained_size"}


def _is_no_field(name: str) -> bool:
    return name.startswith("_") or name in _OF_TRANSFORMERS or name in _NOTED


class StrictConfig(PreTrainedConfig):
    """
    A config that takes no keyword that nothing would read.

    Raises:
        `ValueError`: for a keyword that is no field, which transformers would keep; of a file, which another version
            may have written, it is a warning. For one of `gone_fields` of another value than the one that is left.
    """

    # Options of older versions, by name, and the value that is still built.
    gone_fields = {}

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, kept in self.gone_fields.items():
            if kwargs.get(name, kept) != kept:
                raise ValueError(
                    f"`{name}={kwargs[name]!r}` cannot be built any more, only {kept}: hf_jepa 0.1.0 is the last "
                    "version that reads such a model; use it with that, or train or convert one anew."
                )
        own = [name for name in kwargs if not _is_no_field(name) and name not in self.gone_fields]
        try:
            refuse_unknown_fields(type(self), own, {name: getattr(self, name) for name in self.sub_configs_defaults})
        except ValueError as error:
            if self.transformers_version is None:
                raise
            logger.warning(f"{error} It is kept, and nothing reads it.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        try:
            return super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            found = config_dict.get("model_type", cls.model_type)
            if found == cls.model_type:
                raise
            raise ValueError(
                f"This is the config of a {found!r}, not of a {cls.model_type!r}: `AutoConfig` and the `AutoModel`s "
                "load either."
            ) from error


class CompositeConfig(StrictConfig):
    """
    A config of configs. Those given are copied: building a model writes precision and attention into them, which
    would reach a live model whose config they are.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        for name in self.sub_configs_defaults:
            if isinstance(getattr(self, name), PreTrainedConfig):
                setattr(self, name, copy.deepcopy(getattr(self, name)))
        super().__post_init__(**kwargs)


class NoSuchFolderError(OSError, ValueError):
    """A path to load from, where there is nothing."""


def load_auto(auto_class: type, source: Any, **options: Any) -> Any:
    """
    `auto_class.from_pretrained`, by which all of this package loads what it does not know the class of: code that a
    folder or repository brings is not run, and nobody is asked whether it may, unless the caller says so.

    Args:
        auto_class (`type`): `AutoModel`, `AutoTokenizer`, `AutoImageProcessor`, ...
        source (`str` or `Path`): model id or local folder.
        options: for `from_pretrained`.

    Raises:
        `NoSuchFolderError`: for a path where there is nothing; both of what `from_pretrained` raises:
        `OSError`, `ValueError`: for what cannot be read.
    """
    with _missing_folders_are_named(source):
        return auto_class.from_pretrained(os.fspath(source), **{"trust_remote_code": False, **options})


@contextmanager
def _missing_folders_are_named(source: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error.__cause__, HFValidationError):
            raise no_such_folder(source) from error
        raise


def no_such_folder(source: Any) -> NoSuchFolderError:
    """The error for a source that is neither a folder nor a name."""
    return NoSuchFolderError(f"There is no folder {str(source)!r}, and it is not the name of a repository.")


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


def refuse_unknown_fields(config_class: type, given: Iterable[str], parts: Mapping[str, Any] | None = None) -> None:
    """
    Args:
        config_class (`type`): of the config that the names are given to.
        given (iterable of `str`): the names.
        parts (`dict`, *optional*): the configs that it holds, by the name of their field.

    Raises:
        `ValueError`: for a name that is no field of a config, which would keep it and never read it.
    """
    fields = {field.name for field in dataclasses.fields(config_class)}
    for name in [name for name in given if name not in fields]:
        holders = [
            part for part, config in (parts or {}).items() if name in getattr(config, "__dataclass_fields__", ())
        ]
        near = difflib.get_close_matches(name, fields, 1)
        hint = f"; did you mean `{near[0]}`?" if near else "."
        if holders:
            hint = f"; it is one of {' and of '.join(f'`{part}`' for part in holders)}: set it there."
        raise ValueError(f"{config_class.__name__} has no field `{name}`{hint}")


def leave_out(part: nn.Module, *names: str) -> nn.Module:
    """
    A part, changed in place, without those of the named modules that it has. For modules that nothing reads and that
    are not worth their memory, nor a place in checkpoints; what else nothing reads is frozen, see
    [`unread_parameters`].
    """
    for name in names:
        if getattr(part, name, None) is not None:
            setattr(part, name, None)
    return part


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


def dry_run(part: nn.Module, run: Callable[[], Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """
    What a part would give, without computing it: its weights stand on the meta device, in eval mode, with a gradient.

    Args:
        part (`nn.Module`): left as it is.
        run (`Callable`): calls the part on tensors of the meta device.

    Returns:
        What `run` returns, and the weights that it was computed with, by name.
    """
    weights = {
        name: torch.empty_like(weight, device="meta").requires_grad_(weight.is_floating_point())
        for name, weight in part.named_parameters()
    }
    buffers = {name: torch.empty_like(buffer, device="meta") for name, buffer in part.named_buffers()}
    configs = {id(m.config): m.config for m in part.modules() if isinstance(m, PreTrainedModel)}.values()
    attention = [config._attn_implementation for config in configs]
    modes = {module: module.training for module in part.modules()}
    try:
        for config in configs:
            # Kernels of other packages know no meta device.
            config._attn_implementation = "eager"
        part.eval()
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            return torch.func.functional_call(
                _Call(part, run), {f"part.{k}": v for k, v in {**weights, **buffers}.items()}, ()
            ), weights
    finally:
        for config, implementation in zip(configs, attention, strict=True):
            config._attn_implementation = implementation
        for module, mode in modes.items():
            module.training = mode


class _Call(nn.Module):
    def __init__(self, part: nn.Module, run: Callable[[], Any]):
        super().__init__()
        self.part, self.run = part, run

    def forward(self) -> Any:
        return self.run()


def unread_parameters(part: nn.Module, run: Callable[[], torch.Tensor]) -> set[str]:
    """
    Names of the parameters that an output does not depend on, by a dry backward: such as a pooler beside the tokens
    that are read, or the mask token of a model that masks nothing. They never get a gradient, and DDP would wait for
    it in every step.

    Args:
        part (`nn.Module`): left as it is.
        run (`Callable`): as in [`dry_run`]; returns a floating-point tensor.
    """
    output, weights = dry_run(part, lambda: run().sum())
    gradients = torch.autograd.grad(output, list(weights.values()), allow_unused=True)
    return {name for name, gradient in zip(weights, gradients, strict=True) if gradient is None}


class TrainableParts:
    """
    What of a model trains, in one place. Mixed into models, which say it by [`frozen`] and [`unread`].
    """

    def frozen(self) -> Iterator[nn.Module | nn.Parameter]:
        """What the method keeps as it is, or moves by other means than a gradient."""
        yield from ()

    def unread(self) -> set[str]:
        """Names of parameters that the loss does not depend on; see [`unread_parameters`]."""
        return set()

    @property
    def reads_by_batch(self) -> bool:
        """
        Whether it is for the batch to say which trainable parameters the loss reads. No dry run knows then, and DDP
        has to look in every step.
        """
        return False

    def apply_requires_grad(self) -> None:
        """
        Turns gradients off where there are none, and nowhere on. Call it again after loading, which replaces
        parameters and forgets.
        """
        for part in self.frozen():
            part.requires_grad_(False)
        if self.device.type != "meta":
            for name in self.unread():
                self.get_parameter(name).requires_grad_(False)


class StrictLoading:
    """Loading that never leaves a part as it was drawn. Mixed into models, before `PreTrainedModel`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, ignore_mismatched_sizes=False, **kwargs):
        """
        As `PreTrainedModel.from_pretrained`, but every key must be restored.

        Raises:
            `ValueError`: if the checkpoint has missing, unexpected or mis-shaped keys.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        with _missing_folders_are_named(pretrained_model_name_or_path):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
        model.check_loaded(pretrained_model_name_or_path, info, ignore_mismatched_sizes)
        model.apply_requires_grad()
        return (model, info) if wants_info else model

    def check_loaded(self, source: Any, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
        """
        Refuses what is not restored whole.

        Args:
            source: what was loaded, for the message.
            info (`dict`): transformers' loading report.
            ignore_mismatched_sizes (`bool`): not honoured here.

        Raises:
            `ValueError`: naming the keys.
        """
        problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys and name != "error_msgs"}
        if problems or info.get("error_msgs"):
            lines = [f"  {name}: {cut(keys)}" for name, keys in problems.items()]
            raise ValueError(
                f"{source} does not hold a whole {type(self).__name__}; nothing was loaded:\n"
                + "\n".join(lines + list(info.get("error_msgs") or []))
                + "\nTo start from an encoder alone use `from_encoder`; for an original checkpoint `hf-jepa convert`."
            )


def cut(keys: list[str]) -> str:
    """The first five keys of a list, for a message."""
    return f"{', '.join(keys[:5])}{' ...' * (len(keys) > 5)}"
