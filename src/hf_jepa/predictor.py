"""The narrow-ViT predictor shared by the models that predict masked tokens."""

import torch
from torch import nn
from transformers import IJepaConfig
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.ijepa.modeling_ijepa import IJepaLayer, IJepaPreTrainedModel, eager_attention_forward

from .attention import cast_once
from .positions import sincos_2d


def gather_tokens(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Keeps the tokens whose indices `mask` lists.

    Args:
        tokens (`torch.Tensor` of shape `(batch, tokens, width)` or `(1, tokens, width)`).
        mask (`torch.Tensor` of shape `(batch, kept)`): int64 token indices.

    Returns:
        `torch.Tensor` of shape `(batch, kept, width)`.
    """
    index = mask.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return torch.gather(tokens.expand(mask.shape[0], -1, -1), 1, index)


def read_layer(layer: nn.Module, hidden_states: torch.Tensor, read: slice) -> torch.Tensor:
    """
    What an in-tree ViT's layer makes of the tokens that are read; the others serve as keys and values only. The same
    result as cutting them out of all, without the work on the others.

    Args:
        layer (`nn.Module`): an `IJepaLayer` or `ViTLayer`.
        hidden_states (`torch.Tensor` of shape `(batch, tokens, width)`).
        read (`slice`): of the tokens.

    Returns:
        `torch.Tensor` of shape `(batch, tokens read, width)`.
    """
    attention, everything = layer.attention, read == slice(None)
    tail = hidden_states if everything else hidden_states[:, read]
    normed = cast_once(layer.layernorm_before(hidden_states))

    def heads(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.view(*tokens.shape[:-1], -1, attention.head_dim).transpose(1, 2)

    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    output, _ = attend(
        attention,
        heads(attention.q_proj(normed if everything else normed[:, read])),
        heads(attention.k_proj(normed)),
        heads(attention.v_proj(normed)),
        None,
        dropout=attention.attention_dropout if layer.training else 0.0,
        scaling=attention.scaling,
    )
    tail = tail + layer.dropout(attention.o_proj(output.reshape(*tail.shape[:-1], -1)))
    return tail + layer.dropout(layer.mlp(layer.layernorm_after(tail)))


class PredictorLayer(IJepaLayer):
    """An in-tree layer that computes only what is read of it, and under autocast casts its tokens once."""

    def forward(self, hidden_states: torch.Tensor, start: int | None = None) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch, tokens, width)`).
            start (`int`, *optional*): the first token that is read; all when omitted.

        Returns:
            `torch.Tensor` of shape `(batch, tokens - start, width)`.
        """
        return read_layer(self, hidden_states, slice(start, None))


class MaskedTokenPredictor(IJepaPreTrainedModel):
    """
    Predicts the target encoder's tokens at masked positions from the context encoder's visible tokens
    (I-JEPA, arXiv 2301.08243, section 3 and released code): a narrow ViT with its own position table and one shared
    mask token. Each target block is predicted on its own, one per batch row, so blocks never see each other.

    Args:
        config (`IJepaConfig`): the predictor's transformer (`hidden_size` is the predictor's width).
        encoder_hidden_size (`int`): width of the encoder's tokens.
        grid_size (`tuple[int, int]`): rows and columns of the stored position table, in patches.
        target_hidden_size (`int`, *optional*): width of what is predicted; defaults to the encoder's.
    """

    config: IJepaConfig
    _no_split_modules = ["PredictorLayer"]

    def __init__(
        self,
        config: IJepaConfig,
        encoder_hidden_size: int,
        grid_size: tuple[int, int],
        target_hidden_size: int | None = None,
    ):
        super().__init__(config)
        self.grid_size = grid_size
        self.embed = nn.Linear(encoder_hidden_size, config.hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(
            torch.zeros(1, grid_size[0] * grid_size[1], config.hidden_size), requires_grad=False
        )
        self.layers = nn.ModuleList(PredictorLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.proj = nn.Linear(config.hidden_size, target_hidden_size or encoder_hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.mask_token, std=self.config.initializer_range)
            init.copy_(self.position_embeddings, sincos_2d(self.grid_size, self.config.hidden_size)[None])

    def position_table(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """The stored table at the configured grid, the sine-cosine table of any other; `(1, tokens, width)`."""
        if grid_size == self.grid_size:
            return self.position_embeddings
        table = sincos_2d(grid_size, self.config.hidden_size, device=self.position_embeddings.device)
        return table[None].to(self.position_embeddings.dtype)

    def forward(
        self,
        context: torch.Tensor,
        context_mask: list[torch.Tensor],
        target_mask: list[torch.Tensor],
        grid_size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """
        Args:
            context (`torch.Tensor` of shape `(num_context_masks * batch, context_kept, encoder_width)`):
                visible tokens, context mask major.
            context_mask (`list` of int64 tensors of shape `(batch, context_kept)`): where those tokens lie.
            target_mask (`list` of int64 tensors of shape `(batch, target_kept)`): the blocks to predict, all of one
                length.
            grid_size (`tuple[int, int]`, *optional*): rows and columns of the input; defaults to the configured ones.

        Returns:
            `torch.Tensor` of shape `(num_target_masks * num_context_masks * batch, target_kept, target_width)`,
            target block major, then context mask, then image.
        """
        num_context, num_target = len(context_mask), len(target_mask)
        positions = self.position_table(grid_size or self.grid_size)

        visible = self.embed(context) + gather_tokens(positions, torch.cat(context_mask))
        queries = torch.cat([mask.repeat(num_context, 1) for mask in target_mask])
        masked = self.mask_token + gather_tokens(positions, queries)

        hidden_states = torch.cat([visible.repeat(num_target, 1, 1), masked.to(visible.dtype)], dim=1)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states)
        # The context has served once the last layer has its keys and values.
        return self.proj(self.layernorm(self.layers[-1](hidden_states, start=visible.shape[1])))
