"""VL-JEPA's Y-encoder: any text encoder, pooled, its dense heads, and a map to the shared space."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ...modeling_jepa import JepaPreTrainedModel
from ...objectives.inputs import at_least_float32
from ...parts import build_part, leave_out
from .configuration_vl_jepa import VLJepaConfig

_ACTIVATIONS = {"identity": lambda states: states, "tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}


class VLJepaPreTrainedModel(JepaPreTrainedModel):
    """
    Base of VL-JEPA and its towers. New linear maps start Xavier-uniform with zero bias; the paper states no
    initialisation.
    """

    config: VLJepaConfig
    input_modalities = ("image", "video", "text")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)


class VLJepaTextEncoder(VLJepaPreTrainedModel):
    """
    The Y-encoder: `model` -> pooling over real tokens -> `dense` heads -> `projection`. With `y_projection="none"` and
    the heads of a sentence-transformers folder, the L2-normalised output is that library's embedding.

    Args:
        config ([`VLJepaConfig`]).
        model (`PreTrainedModel`, *optional*): a loaded text encoder, used as it is.

    Raises:
        `ValueError`: if the output's width is not the shared one.
    """

    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, config: VLJepaConfig, model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        # Text encoders do not all run dry, and BERT's pooler is in none of the checkpoints.
        self.model = leave_out(build_part(config.y_encoder_config) if model is None else model, "pooler")
        width = self.model.config.get_text_config().hidden_size
        self.dense = nn.ModuleList()
        for layer in config.y_dense_layers:
            self.dense.append(nn.Linear(width, layer["out_features"], bias=layer["bias"]))
            width = layer["out_features"]
        if config.y_projection == "none" and width != config.projection_dim:
            raise ValueError(
                f"The Y-encoder gives embeddings of width {width}, but the shared space has {config.projection_dim}; "
                f"set `projection_dim={width}`, or `y_projection='linear'`."
            )
        self.projection = nn.Linear(width, config.projection_dim) if config.y_projection == "linear" else None
        self.post_init()

    def forward(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None
    ) -> torch.FloatTensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`).
            attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 for padding, on either side.

        Returns:
            `torch.FloatTensor` of shape `(batch, projection_dim)`, not normalised.

        Raises:
            `ValueError`: for texts longer than the Y-encoder's positions.
        """
        embeds = self.pooled(input_ids, attention_mask)
        return embeds if self.projection is None else self.projection(embeds.to(self.projection.weight.dtype))

    def pooled(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None) -> torch.FloatTensor:
        """The embeddings before `projection`, `(batch, width of the Y-encoder)`; arguments as in `forward`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        limit = usable_positions(self.model)
        if limit is not None and input_ids.shape[1] > limit:
            raise ValueError(
                f"A text has {input_ids.shape[1]} tokens, but the Y-encoder has {limit} positions; shorten it, or set "
                f"`processor.max_target_length = {limit}` and call the processor with `truncation=True`."
            )
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        embeds = pool_tokens(states, attention_mask, self.config.y_pooling)
        for layer, linear in zip(self.config.y_dense_layers, self.dense, strict=True):
            embeds = _ACTIVATIONS[layer["activation"]](linear(embeds.to(linear.weight.dtype)))
        return embeds


def usable_positions(model: PreTrainedModel) -> int | None:
    """
    The most tokens that a text encoder takes, `None` where its config does not say. A table of positions with a
    padding index, as RoBERTa's, begins behind that.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    table = next((part for name, part in model.named_modules() if name.endswith("position_embeddings")), None)
    padding = getattr(table, "padding_idx", None)
    return limit if limit is None or padding is None else limit - padding - 1


def pool_tokens(states: torch.Tensor, attention_mask: torch.Tensor, pooling: str = "mean") -> torch.Tensor:
    """
    One vector per row, of real tokens only.

    Args:
        states (`torch.FloatTensor` of shape `(batch, length, width)`).
        attention_mask (`torch.LongTensor` of shape `(batch, length)`): 0 for padding, on either side; at least one
            token in every row.
        pooling (`str`): `"mean"`, summed in float32; `"cls"`, the first token; `"last"`.

    Returns:
        `torch.FloatTensor` of shape `(batch, width)`, in the states' dtype.
    """
    if pooling == "mean":
        weights = attention_mask[..., None].to(torch.promote_types(states.dtype, torch.float32))
        mean = (at_least_float32(states) * weights).sum(dim=1) / weights.sum(dim=1)
        return mean.to(states.dtype)
    places = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    real = attention_mask.ne(0)
    index = real.int().argmax(dim=1) if pooling == "cls" else (real * places).argmax(dim=1)
    return states[torch.arange(len(states), device=index.device), index]


# Odd, so that products modulo 2^64 lose nothing: those of splitmix64 and of Knuth's generator.
_MIX, _BASE = -0x40A7B892E31B1A47, 6364136223846793005


def hash_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    A 64-bit number per text, the same for the same tokens whatever their padding, on every process.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, length)`).
        attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 for padding, on either side.

    Returns:
        `torch.LongTensor` of shape `(batch,)`. Two different texts of a batch of 24,576 share one with a chance of
        about 2e-11.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(torch.int64)
    places = mask.cumsum(dim=1)
    powers = torch.full_like(input_ids[0], _BASE).cumprod(dim=0)
    values = (input_ids + 1) * _MIX
    values = (values ^ (values >> 29)) * _BASE
    return (values * mask * powers[(places - 1).clamp(min=0)]).sum(dim=1)
