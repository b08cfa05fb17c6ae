"""Frozen parts of a VL-JEPA that its checkpoints leave out and name where they came from."""

import re
from typing import Any

import torch

from .components_vl_jepa import load_frozen_part
from .text_encoder_vl_jepa import VLJepaPreTrainedModel


class VLJepaReferencingModel(VLJepaPreTrainedModel):
    """What [`VLJepaModel`] keeps by reference (`config.sources`) where `config.save_frozen` is False."""

    def _frozen_prefixes(self) -> dict[str, str]:
        """Patterns of the keys of frozen parts that a checkpoint may leave out, by part."""
        found = {}
        if self.config.freeze_vision:
            found["vision"] = r"vision\."
        if self.config.target == "frozen":
            found["y_encoder"] = r"y_encoder\.(model|dense)\."
        if self.y_decoder is not None and self.config.freeze_y_decoder:
            found["y_decoder"] = r"y_decoder\.language_model\."
        return found

    def frozen_parts(self) -> list[str]:
        """Names of the parts whose own weights are frozen, which a checkpoint may keep by reference."""
        return list(self._frozen_prefixes())

    def apply_requires_grad(self) -> None:
        """Turns gradients off in all that does not train, and notes of the rest that its source is not it any more."""
        super().apply_requires_grad()
        for part, source in (self.config.sources or {}).items():
            if part not in self._frozen_prefixes():
                source["changed"] = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        As [`~hf_jepa.modeling_jepa.JepaPreTrainedModel.from_pretrained`]; frozen parts that the checkpoint keeps by
        reference are loaded from where `config.sources` names them.

        Raises:
            `ValueError`: if any key is not restored, or a referenced part cannot be loaded.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        if not model.config.save_frozen:
            for part in model._frozen_prefixes():
                load_frozen_part(model, part, model._source(part))
        return (model, info) if wants_info else model

    def _source(self, part: str) -> dict[str, Any]:
        source = (self.config.sources or {}).get(part)
        if source is None or source.get("changed"):
            reason = "does not name where it came from" if source is None else f"says it was trained since: {source}"
            raise ValueError(
                f"save_frozen=False leaves the frozen `{part}` out of the checkpoint, but `config.sources` {reason}; "
                "build the model with `from_components` from names, or set `config.save_frozen=True`."
            )
        return source

    def saved_state_dict(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """
        As [`~hf_jepa.modeling_jepa.JepaPreTrainedModel.saved_state_dict`]; with `config.save_frozen=False` without the
        frozen parts.

        Raises:
            `ValueError`: for a part to be left out that has no reference; nothing is written.
        """
        state_dict = super().saved_state_dict(state_dict)
        prefixes = {} if self.config.save_frozen else self._frozen_prefixes()
        for part in prefixes:
            self._source(part)
        pattern = re.compile("|".join(prefixes.values()) or "$^")
        return {key: value for key, value in state_dict.items() if not pattern.match(key)}
