"""The attentive poolers of V-JEPA (arXiv 2404.08471) and V-JEPA 2 (arXiv 2506.09985): learned queries read tokens."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

SelfAttentionOn = Literal["tokens", "query"]


class VJepaPoolerAttention(nn.Module):
    """
    Multi-head attention, from queries to tokens.

    Args:
        hidden_size (`int`): width of queries, tokens and output.
        num_heads (`int`): heads, which must divide the width.
        out_proj (`"used"`, `"unused"` or `"none"`): `"none"` is V-JEPA 2's cross-attention, which has no output
            projection. V-JEPA 1's stores one that its forward pass never uses (`"unused"`): it is kept, frozen, so
            that a checkpoint goes through unchanged.
        dropout (`float`): chance that a weight of the attention is dropped in training.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, out_proj: Literal["used", "unused", "none"], dropout: float = 0.0
    ):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.uses_out_proj = out_proj == "used"
        if out_proj != "none":
            self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """
        Args:
            queries (`torch.FloatTensor` of shape `(batch, num_queries, width)`).
            tokens (`torch.FloatTensor` of shape `(batch, tokens, width)`).

        Returns:
            `torch.FloatTensor` of shape `(batch, num_queries, width)`.
        """

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.view(*states.shape[:2], self.num_heads, -1).transpose(1, 2)

        output = F.scaled_dot_product_attention(
            heads(self.q_proj(queries)),
            heads(self.k_proj(tokens)),
            heads(self.v_proj(tokens)),
            dropout_p=self.dropout if self.training else 0.0,
        )
        output = output.transpose(1, 2).flatten(2)
        return self.out_proj(output) if self.uses_out_proj else output


class VJepaPoolerMLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., width)` -> `(..., width)`."""
        return self.fc2(F.gelu(self.fc1(hidden_states)))


class VJepaPoolerSelfAttentionLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block without positions."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, eps: float, dropout: float):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.self_attn = VJepaPoolerAttention(hidden_size, num_heads, "used", dropout)
        self.layer_norm2 = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = VJepaPoolerMLP(hidden_size, intermediate_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(batch, tokens, width)` -> `(batch, tokens, width)`."""
        normed = self.layer_norm1(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, normed)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class VJepaPoolerCrossAttentionLayer(GradientCheckpointingLayer):
    """A block whose queries read the normed tokens; the queries themselves are not normed before they do."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        eps: float,
        dropout: float,
        out_proj: Literal["unused", "none"],
    ):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.cross_attn = VJepaPoolerAttention(hidden_size, num_heads, out_proj, dropout)
        self.layer_norm2 = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = VJepaPoolerMLP(hidden_size, intermediate_size)

    def forward(self, queries: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Queries `(batch, num_queries, width)` and tokens `(batch, tokens, width)` -> the shape of the queries."""
        queries = queries + self.cross_attn(queries, self.layer_norm1(hidden_states))
        return queries + self.mlp(self.layer_norm2(queries))


class VJepaAttentivePooler(nn.Module):
    """
    Learned queries that read tokens by cross-attention. The two generations differ in where further self-attention
    blocks stand, as their released code does: V-JEPA 2's run on the tokens, before the cross-attention; V-JEPA 1's run
    on the queries, after it. Parameters are named as in in-tree `VJEPA2AttentivePooler`.

    Args:
        hidden_size (`int`): width of the tokens.
        num_attention_heads (`int`): the probes of all published V-JEPA 2 sizes have 16; V-JEPA 1's have the encoder's
            number, which is 16 as well.
        num_self_attention_layers (`int`): 3 in V-JEPA 2's published probes, 0 in V-JEPA 1's.
        self_attention_on (`"tokens"` or `"query"`): V-JEPA 2 or V-JEPA 1.
        num_queries (`int`): 1 to classify; 3 (verb, noun, action) to anticipate.
        mlp_ratio (`float`): the MLPs' width over `hidden_size`: 4 whatever the encoder's.
        layer_norm_eps (`float`): 1e-5 whatever the encoder's.
        attention_dropout (`float`): 0 in all published probes.

    Raises:
        `ValueError`: for heads that do not divide the width, or a number out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int = 16,
        num_self_attention_layers: int = 3,
        self_attention_on: SelfAttentionOn = "tokens",
        num_queries: int = 1,
        mlp_ratio: float = 4.0,
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        if num_attention_heads < 1 or hidden_size % num_attention_heads:
            raise ValueError(
                f"The pooler's {num_attention_heads} attention heads do not divide the width {hidden_size}: choose "
                "another number of heads (`pooler_num_attention_heads` of a config)."
            )
        if num_self_attention_layers < 0 or num_queries < 1:
            raise ValueError(
                "A pooler needs num_self_attention_layers >= 0 and num_queries >= 1, got "
                f"{num_self_attention_layers} and {num_queries}."
            )
        if self_attention_on not in ("tokens", "query"):
            raise ValueError(f'self_attention_on must be "tokens" or "query", got {self_attention_on!r}.')
        self.self_attention_on = self_attention_on
        sizes = (hidden_size, num_attention_heads, int(hidden_size * mlp_ratio), layer_norm_eps, attention_dropout)
        self.query_tokens = nn.Parameter(torch.zeros(1, num_queries, hidden_size))
        self.cross_attention_layer = VJepaPoolerCrossAttentionLayer(
            *sizes, out_proj="unused" if self_attention_on == "query" else "none"
        )
        self.self_attention_layers = nn.ModuleList(
            VJepaPoolerSelfAttentionLayer(*sizes) for _ in range(num_self_attention_layers)
        )
        if self_attention_on == "query":
            # Nothing reads it.
            self.cross_attention_layer.cross_attn.out_proj.requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch, tokens, width)`): an encoder's tokens.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_queries, width)`.

        Raises:
            `ValueError`: for tokens of another width.
        """
        width = self.query_tokens.shape[-1]
        if hidden_states.shape[-1] != width:
            raise ValueError(
                f"The pooler was made for tokens of width {width}, but got tokens of width {hidden_states.shape[-1]}."
            )
        if self.self_attention_on == "tokens":
            for layer in self.self_attention_layers:
                hidden_states = layer(hidden_states)
        queries = self.query_tokens.expand(hidden_states.shape[0], -1, -1)
        queries = self.cross_attention_layer(queries, hidden_states)
        if self.self_attention_on == "query":
            for layer in self.self_attention_layers:
                queries = layer(queries)
        return queries


@torch.no_grad()
def init_attentive_pooler(pooler: VJepaAttentivePooler, std: float = 0.02) -> None:
    """
    The released code's initialisation: normal weights cut at an absolute 2 and zero biases; then the last linear layer
    of each residual branch is divided by the root of twice its block's index. V-JEPA 1 counts the cross-attention as
    block 1; V-JEPA 2's cross-attention block shares the index of the last self-attention block.

    Args:
        pooler (`VJepaAttentivePooler`): changed in place; weights that `from_pretrained` has loaded stay.
        std (`float`): standard deviation before the division.
    """
    cross, layers = pooler.cross_attention_layer, list(pooler.self_attention_layers)
    if pooler.self_attention_on == "query":
        indices = {cross: 1} | {layer: number for number, layer in enumerate(layers, start=2)}
    else:
        indices = {cross: max(1, len(layers))} | {layer: number for number, layer in enumerate(layers, start=1)}
    init.trunc_normal_(pooler.query_tokens, std=std, a=-2.0, b=2.0)
    for block, index in indices.items():
        attention = block.cross_attn if block is cross else block.self_attn
        last = (block.mlp.fc2, getattr(attention, "out_proj", None))
        for module in block.modules():
            if isinstance(module, nn.Linear):
                scale = (2 * index) ** -0.5 if module in last else 1.0
                init.trunc_normal_(module.weight, std=std * scale, a=-2.0, b=2.0)
                init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                init.ones_(module.weight)
                init.zeros_(module.bias)
