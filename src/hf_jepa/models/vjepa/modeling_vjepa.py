"""The video backbone of V-JEPA, V-JEPA 2 and V-JEPA 2.1: an encoder and its predictor."""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers import VJEPA2Config, VJEPA2Model
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ...parts import cut
from .configuration_vjepa import VJepaConfig
from .encoder_vjepa import VJepaEncoder, VJepaPatchEmbeddings, check_each_mask, grid_of
from .layers_vjepa import Segment, VJepaPreTrainedModel, unpack
from .predictor_vjepa import VJepaPredictor


@dataclass
class VJepaPredictorOutput(ModelOutput):
    """
    What the predictor makes.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(num_masks * batch, target_kept, predicted_size)`): predicted
            target tokens, mask major.
    """

    last_hidden_state: torch.FloatTensor | None = None


@dataclass
class VJepaModelOutput(ModelOutput):
    """
    What [`VJepaModel`] returns.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, tokens, width)`, with `context_mask`
            `(num_masks * batch, kept, width)`): encoded tokens after the last norm, mask major.
        predictor_output ([`VJepaPredictorOutput`]): with `target_mask`.
        hidden_states (`tuple` of `torch.FloatTensor` of the shape of `last_hidden_state`): with
            `output_hidden_states`, the tokens before the first block and after every block, before the norm.
    """

    last_hidden_state: torch.FloatTensor | None = None
    predictor_output: VJepaPredictorOutput | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


# Config fields of ours that in-tree V-JEPA 2 has no word for, and the values at which it does the same.
_IN_TREE_VALUES = {
    "position_embedding_type": "rope",
    "rope_layout": "tiled",
    "rope_interpolation": False,
    "pred_rope_interpolation": False,
    "hierarchical_layers": None,
    "use_image_tokenizer": False,
    "pred_output_size": None,
    "pred_context_output": False,
}


def in_tree_obstacles(config: VJepaConfig) -> list[str]:
    """The fields of a config, with their values, that in-tree V-JEPA 2 cannot express."""
    return [
        f"{name}={getattr(config, name)!r}"
        for name, value in _IN_TREE_VALUES.items()
        if getattr(config, name) != value
    ]


class VJepaModel(VJepaPreTrainedModel):
    """
    Encoder and predictor of V-JEPA (arXiv 2404.08471), V-JEPA 2 (2506.09985) and V-JEPA 2.1 (2603.14482); the config
    says which. Parameters have the names of in-tree `VJEPA2Model`, so that `from_pretrained` reads a folder such as
    `facebook/vjepa2-vitl-fpc64-256` unchanged, and [`VJepaModel.export_in_tree`] gives the way back.

    Unlike in-tree, positions come from the clip and not from the config, so that every size and aspect is exact; with
    `context_mask` hidden tokens are dropped before the first block, so that the context has not seen them; and the
    predictor runs only when there is something to predict.

    Example:

    ```python
    >>> from hf_jepa import VJepaConfig, VJepaModel
    >>> model = VJepaModel(VJepaConfig.from_size("tiny", frames_per_clip=8, crop_size=64)).eval()
    >>> model.get_vision_features(torch.randn(1, 8, 3, 64, 64)).shape
    torch.Size([1, 64, 192])
    ```
    """

    def __init__(self, config: VJepaConfig):
        super().__init__(config)
        # post_init draws the weights of the whole; drawing them in each part first would be work done twice.
        with init.no_init_weights():
            self.encoder = VJepaEncoder(config)
            self.predictor = VJepaPredictor(config)
        self.post_init()

    def get_input_embeddings(self) -> VJepaPatchEmbeddings:
        return self.encoder.embeddings.patch_embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        context_mask: list[torch.LongTensor] | None = None,
        target_mask: list[torch.LongTensor] | None = None,
        skip_predictor: bool = False,
        mask_token_index: int = 1,
        output_hidden_states: bool | None = None,
    ) -> VJepaModelOutput:
        """
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`): any size
                that patches divide; one frame stands for a whole tubelet.
            context_mask (`list` of int64 tensors of shape `(batch, kept)`, *optional*): visible tokens in (time, row,
                column) order, all of one length (for several use `model.encoder`). All tokens when omitted.
            target_mask (`list` of int64 tensors of shape `(batch, kept)`, *optional*): tokens to predict, one per
                context mask and all of one length. The predictor runs only with it.
            skip_predictor (`bool`): whether to encode only, even with `target_mask`.
            mask_token_index (`int`): which mask token stands for what is predicted, modulo their number. In-tree and
                the released inference code use 1; V-JEPA 2 training with one clip length has used 0 only.
            output_hidden_states (`bool`, *optional*): defaults to the config's.

        Raises:
            `ValueError`: for clips or masks that do not fit.
        """
        predict = target_mask is not None and not skip_predictor
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        packed = [] if output_hidden_states else None
        features = self.encoder(
            [pixel_values_videos],
            None if context_mask is None else [context_mask],
            self.config.predicted_levels if predict else 1,
            packed,
        )
        segments = [Segment(*part.shape[:2]) for part in features]
        states = None if packed is None else tuple(_concatenate("context_mask", unpack(p, segments)) for p in packed)
        width = self.config.hidden_size
        last = _concatenate("context_mask", [part[..., -width:] for part in features])
        predictor_output = None
        if predict:
            predictions = self._predict(pixel_values_videos, features, context_mask, target_mask, mask_token_index)
            predictor_output = VJepaPredictorOutput(last_hidden_state=_concatenate("target_mask", predictions))
        return VJepaModelOutput(last_hidden_state=last, predictor_output=predictor_output, hidden_states=states)

    def _predict(
        self,
        clips: torch.Tensor,
        features: list[torch.Tensor],
        context_mask: list[torch.Tensor] | None,
        target_mask: list[torch.Tensor],
        mask_token_index: int,
    ) -> list[torch.Tensor]:
        grid = grid_of(self.config, clips)
        # Rotary time has no end: the predictor may be asked for slots after the clip.
        end = grid[0] if self.config.position_embedding_type == "sincos" else sys.maxsize // (grid[1] * grid[2])
        check_each_mask("target_mask", target_mask, clips.shape[0], (end, *grid[1:]))
        if context_mask is None:
            everything = torch.arange(features[0].shape[1], device=clips.device).expand(clips.shape[0], -1)
            context_mask, features = [everything] * len(target_mask), features * len(target_mask)
        check_pairs(context_mask, target_mask)
        count = len(target_mask)
        return self.predictor(
            features,
            context_mask,
            target_mask,
            [grid] * count,
            [mask_token_index] * count,
            [clips.shape[1] == 1] * count,
        )[0]

    def get_vision_features(self, pixel_values_videos: torch.FloatTensor) -> torch.FloatTensor:
        """
        Features of whole clips.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, width)`, tokens in (time, row, column) order.
        """
        return self.encoder([pixel_values_videos])[0]

    def export_in_tree(self) -> VJEPA2Model:
        """
        A copy as the in-tree model, in eval mode; `save_pretrained` of it is what plain `transformers` loads.

        Raises:
            `ValueError`: naming what in-tree V-JEPA 2 cannot express.
        """
        if obstacles := in_tree_obstacles(self.config):
            raise ValueError(f"In-tree V-JEPA 2 has no {', '.join(obstacles)}; keep this model as `VJepaModel`.")
        fields = set(VJEPA2Config().to_dict()) - {"model_type", "architectures", "transformers_version"}
        config = VJEPA2Config(**{name: value for name, value in self.config.to_dict().items() if name in fields})
        with init.no_init_weights():
            model = VJEPA2Model(config).to(self.dtype)
        model.load_state_dict(self.state_dict())
        return model.to(self.device).eval()

    def check_loaded(self, source: Any, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
        """As [`~hf_jepa.parts.StrictLoading.check_loaded`], but a classifier's head is passed over."""
        problems = {name: sorted(map(str, info[name])) for name in ("missing_keys", "mismatched_keys") if info[name]}
        if problems:
            raise ValueError(
                f"{source} does not hold a whole {type(self).__name__}: "
                + "; ".join(f"{name}: {cut(keys)}" for name, keys in problems.items())
            )


def check_pairs(context_mask: list[torch.Tensor], target_mask: list[torch.Tensor]) -> None:
    """Refuses lists that do not pair up: context mask `i` predicts target mask `i`."""
    if len(context_mask) != len(target_mask):
        raise ValueError(
            f"Every context mask needs one target mask, got {len(context_mask)} in `context_mask` and "
            f"{len(target_mask)} in `target_mask`."
        )


def _concatenate(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Parts of one length, along the batch."""
    lengths = [part.shape[1] for part in parts]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"`VJepaModel` returns one tensor, so every mask in `{name}` must keep the same number of tokens, got "
            f"{lengths}; `model.encoder` and `model.predictor` take several lengths."
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)
