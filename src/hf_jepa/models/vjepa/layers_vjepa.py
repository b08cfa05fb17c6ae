"""Transformer blocks on packed tokens: sequences of several lengths in one pass, without padding."""

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2MLP

from ...attention import cast_once
from ...parts import StrictLoading, TrainableParts
from ...positions import rotary_3d
from .configuration_vjepa import VJepaConfig


class Segment(NamedTuple):
    """
    Sequences of one length within a packed tensor of shape `(tokens, width)`, where segments follow one another.

    Args:
        batch (`int`): sequences.
        length (`int`): tokens of a sequence.
        rotary (`tuple` of `torch.Tensor` of shape `(batch or 1, 1, length, head_dim)`, *optional*): cosines and signed
            sines of [`~hf_jepa.positions.rotary_3d`].
        start (`int`): the first token of every sequence whose output is read; those before serve as keys and values.
    """

    batch: int
    length: int
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    start: int = 0


def pack(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors of shape `(batch, length, width)` in one of shape `(tokens, width)`; a single one is not copied."""
    return tensors[0].flatten(0, 1) if len(tensors) == 1 else torch.cat([tensor.flatten(0, 1) for tensor in tensors])


def unpack(packed: torch.Tensor, segments: list[Segment]) -> list[torch.Tensor]:
    """The way back of [`pack`]: views of shape `(batch, length, width)`."""
    parts = packed.split([segment.batch * segment.length for segment in segments])
    return [part.unflatten(0, (segment.batch, segment.length)) for part, segment in zip(parts, segments, strict=True)]


def query_tokens(packed: torch.Tensor, segments: list[Segment]) -> torch.Tensor:
    """The tokens from `start` on of every sequence, packed."""
    if all(segment.start == 0 for segment in segments):
        return packed
    return pack([part[:, segment.start :] for part, segment in zip(unpack(packed, segments), segments, strict=True)])


def query_segments(segments: list[Segment]) -> list[Segment]:
    """What [`query_tokens`] returns, as segments."""
    return [Segment(segment.batch, segment.length - segment.start) for segment in segments]


def rotate(tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Gives queries or keys their positions.

    Args:
        tokens (`torch.Tensor` of shape `(batch, heads, tokens, head_dim)`): of any strides.
        cos, sin (`torch.Tensor` of shape `(batch or 1, 1, tokens, head_dim)`): of [`~hf_jepa.positions.rotary_3d`].

    Returns:
        `torch.Tensor` of the same shape and dtype, contiguous.
    """
    # Not `addcmul`: products are rounded one by one, as in the released code. Tables may be float32 beside bfloat16.
    even = tokens.shape[-1] // 2 * 2
    swapped = tokens[..., :even].unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    if even < tokens.shape[-1]:
        # The last channel of an odd head has no partner and stays: its sine is 0.
        swapped = torch.cat([swapped, tokens[..., even:]], dim=-1)
    return (swapped * sin).add_(tokens * cos).to(tokens.dtype)


class VJepaAttention(nn.Module):
    """Self-attention within every sequence of a packed tensor; parameters as in-tree `vjepa2`."""

    is_causal = False

    def __init__(self, config: VJepaConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, segments: list[Segment]) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(tokens, width)`): packed.
            segments (`list[Segment]`).

        Returns:
            `torch.Tensor` of shape `(tokens read, width)`, packed.
        """
        hidden_states = cast_once(hidden_states)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        queries = unpack(self.query(query_tokens(hidden_states, segments)), query_segments(segments))
        keys = unpack(self.key(hidden_states), segments)
        values = unpack(self.value(hidden_states), segments)

        outputs = []
        for segment, query, key, value in zip(segments, queries, keys, values, strict=True):
            query, key, value = (
                part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (query, key, value)
            )
            if segment.rotary is not None:
                cos, sin = segment.rotary
                query = rotate(query, cos[:, :, segment.start :], sin[:, :, segment.start :])
                key = rotate(key, cos, sin)
            output, _ = attend(
                self,
                query,
                key,
                value,
                None,
                dropout=self.dropout if self.training else 0.0,
                scaling=self.scaling,
                is_causal=False,
            )
            outputs.append(output.flatten(2))
        return self.proj(pack(outputs))


class VJepaLayer(GradientCheckpointingLayer):
    """
    A pre-norm block on packed tokens; parameters as in-tree `vjepa2`.

    Args:
        config ([`VJepaConfig`]).
        hidden_size, num_attention_heads (`int`), mlp_ratio (`float`): the encoder's or the predictor's.
        index (`int`): of the block, from 0; scales its initialisation.
        drop_path_rate (`float`): chance that a sequence skips a branch in training.
    """

    def __init__(
        self,
        config: VJepaConfig,
        hidden_size: int,
        num_attention_heads: int,
        mlp_ratio: float,
        index: int,
        drop_path_rate: float,
    ):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = VJepaAttention(config, hidden_size, num_attention_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = VJEPA2MLP(config, hidden_size, mlp_ratio)
        # `_init_weights` reads it: modules without parameters of their own, such as this one, are not shown to it.
        self.attention.proj.init_divisor = self.mlp.fc2.init_divisor = (2 * (index + 1)) ** 0.5

    def forward(self, hidden_states: torch.Tensor, segments: list[Segment]) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(tokens, width)`): packed.
            segments (`list[Segment]`).

        Returns:
            `torch.Tensor` of shape `(tokens read, width)`, packed: all tokens where every `start` is 0.
        """
        branch = self.attention(self.norm1(hidden_states), segments)
        hidden_states = query_tokens(hidden_states, segments) + self.drop_path(branch, segments)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)), segments)

    def drop_path(self, branch: torch.Tensor, segments: list[Segment]) -> torch.Tensor:
        """Stochastic depth, drawn per sequence."""
        if not self.training or self.drop_path_rate == 0.0:
            return branch
        keep = 1.0 - self.drop_path_rate
        draws = [
            branch.new_empty(part.batch, 1, 1).bernoulli_(keep).div(keep).expand(-1, part.length, 1)
            for part in query_segments(segments)
        ]
        return branch * pack(draws)


def build_layers(
    config: VJepaConfig, hidden_size: int, num_attention_heads: int, mlp_ratio: float, depth: int
) -> nn.ModuleList:
    """Blocks whose rates of stochastic depth rise evenly to the configured one."""
    rates = [config.drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
    return nn.ModuleList(
        VJepaLayer(config, hidden_size, num_attention_heads, mlp_ratio, index, rate)
        for index, rate in enumerate(rates)
    )


def rotary_tables(
    config: VJepaConfig,
    token_ids: torch.Tensor,
    grid_size: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    stretch: bool,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """
    What a [`Segment`] carries: `None` without rotary positions. `dtype` is that of the activations.

    The range that `stretch` maps rows and columns to is that of a 256-pixel image, as in the released code.
    """
    if config.position_embedding_type != "rope":
        return None
    stretch_to = 256 // config.patch_size if stretch else None
    if config.rope_dtype == "float32":
        device = token_ids.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            return rotary_3d(token_ids, grid_size, head_dim, config.rope_layout, torch.float32, stretch_to)
    return rotary_3d(token_ids, grid_size, head_dim, config.rope_layout, dtype, stretch_to)


class VJepaPreTrainedModel(TrainableParts, StrictLoading, PreTrainedModel):
    """Base of the video models: how weights are drawn, and what is supported."""

    config: VJepaConfig
    # The name under which released video classifiers hold their backbone.
    base_model_prefix = "vjepa2"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VJepaLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv3d):
            std = self.config.initializer_range
            if self.config.depth_scaled_init:
                std /= getattr(module, "init_divisor", 1.0)
            # The released code truncates at +-2, a hundred standard deviations: a normal, but for a flaw of
            # `trunc_normal_`, whose float32 inverse CDF gives -2 itself once in 2^24 draws (20 times in a ViT-L).
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
