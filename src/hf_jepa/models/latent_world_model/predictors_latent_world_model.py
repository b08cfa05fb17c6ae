"""Predictors of the next latent frame: MLPs, a GRU whose hidden state is the latent, a frame-causal transformer."""

import torch
import torch.nn.functional as F
from torch import nn

# Keys and values of every layer, each `(batch, heads, frames * tokens, head_dim)`.
KeyValues = list[tuple[torch.Tensor, torch.Tensor]]

# LeWM's action encoder first maps a block of any width to this many numbers (released code).
_SMOOTHED_ACTION_SIZE = 10


class MLPPredictor(nn.Module):
    """
    Maps a frame and its action to the next frame: three linear layers (SMWM's toy, arXiv 2606.20104, released code),
    or, `residual`, the same with layer norm, GELU and a skip around them.
    """

    is_markov = True

    def __init__(self, width: int, condition_size: int, hidden_size: int, residual: bool):
        super().__init__()
        self.residual = residual
        sizes = [width + condition_size, hidden_size, hidden_size]
        layers: list[nn.Module] = []
        for before, after in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(before, after), *([nn.LayerNorm(after), nn.GELU()] if residual else [nn.ReLU()])]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_size, width))

    def forward(self, latents: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """`(batch, frames, tokens, width)` and `(batch, frames, condition_size)` to the frames after each."""
        conditions = conditions[:, :, None].expand(*latents.shape[:3], -1)
        update = self.layers(torch.cat([latents, conditions.to(latents.dtype)], dim=-1))
        return latents + update if self.residual else update


class GRUPredictor(nn.Module):
    """A GRU cell whose hidden state is the latent and whose input is the action (EB-JEPA, arXiv 2602.03604)."""

    is_markov = True

    def __init__(self, width: int, condition_size: int):
        super().__init__()
        self.cell = nn.GRUCell(condition_size, width)

    def forward(self, latents: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """As [`MLPPredictor.forward`]."""
        conditions = conditions[:, :, None].expand(*latents.shape[:3], -1).to(latents.dtype)
        return self.cell(conditions.flatten(0, 2), latents.flatten(0, 2)).view_as(latents)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, head_dim: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, width)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, past: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        qkv = self.qkv(self.norm(hidden_states)).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        dropout = self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        output = self.proj(output.transpose(1, 2).flatten(2)).view_as(hidden_states)
        return F.dropout(output, self.dropout, self.training), (key, value)


class _Block(nn.Module):
    """
    Attention and MLP, each with a layer norm of its own inside. With AdaLN-zero (arXiv 2212.09748) an affine-free norm
    stands before that one, shifted, scaled and gated by the frame's action; zero gates make a new block the identity.
    """

    def __init__(self, width: int, num_heads: int, head_dim: int, mlp_size: int, dropout: float, modulated: bool):
        super().__init__()
        self.attention = _Attention(width, num_heads, head_dim, dropout)
        layers = [nn.LayerNorm(width), nn.Linear(width, mlp_size), nn.GELU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers, nn.Linear(mlp_size, width), nn.Dropout(dropout))
        self.modulation = nn.Linear(width, 6 * width) if modulated else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        conditions: torch.Tensor | None,
        mask: torch.Tensor | None,
        past: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        if self.modulation is None:
            attended, present = self.attention(hidden_states, mask, past)
            hidden_states = hidden_states + attended
            return hidden_states + self.mlp(hidden_states), present
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(conditions).chunk(6, dim=-1)
        attended, present = self.attention(_modulate(hidden_states, shift_a, scale_a), mask, past)
        hidden_states = hidden_states + gate_a * attended
        return hidden_states + gate_m * self.mlp(_modulate(hidden_states, shift_m, scale_m)), present


def _modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=1e-6) * (1 + scale) + shift


class TransformerPredictor(nn.Module):
    """
    A transformer over the last `num_frames` frames in which every frame sees itself and those before it, with learned
    positions. Actions condition it through AdaLN-zero, per frame (LeWM, arXiv 2603.19312, released code), or join
    every token's channels (DINO-WM, arXiv 2411.04983).

    Args:
        width (`int`): of a latent token.
        condition_size (`int`): of the action block and latent variable of a frame.
        tokens (`int`): per frame.
        num_frames (`int`): positions.
        action_embedding_size (`int`, *optional*): channels of the joined action; `None` for AdaLN-zero.
    """

    is_markov = False

    def __init__(
        self,
        width: int,
        condition_size: int,
        tokens: int,
        num_frames: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        head_dim: int,
        intermediate_size: int,
        dropout: float,
        action_embedding_size: int | None,
    ):
        super().__init__()
        self.latent_width, self.num_frames = width, num_frames
        self.joins_actions = action_embedding_size is not None
        if self.joins_actions:
            self.action_encoder: nn.Module = nn.Linear(condition_size, action_embedding_size)
            width = width + action_embedding_size
        else:
            smooth, hidden = nn.Linear(condition_size, _SMOOTHED_ACTION_SIZE), 4 * width
            self.action_encoder = nn.Sequential(
                smooth, nn.Linear(_SMOOTHED_ACTION_SIZE, hidden), nn.SiLU(), nn.Linear(hidden, width)
            )
        self.position_embeddings = nn.Parameter(torch.randn(1, num_frames, tokens, width))
        sizes = width, num_attention_heads, head_dim, intermediate_size, dropout
        self.layers = nn.ModuleList(_Block(*sizes, not self.joins_actions) for _ in range(num_hidden_layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, latents: torch.Tensor, conditions: torch.Tensor, past: KeyValues | None = None
    ) -> tuple[torch.Tensor, KeyValues]:
        """
        Args:
            latents (`torch.Tensor` of shape `(batch, frames, tokens, width)`): with those of `past` at most
                `num_frames` frames.
            conditions (`torch.Tensor` of shape `(batch, frames, condition_size)`).
            past (`list` of pairs of tensors, *optional*): of an earlier call, for the frames before these.

        Returns:
            The frames after each, of latents' shape, and keys and values of all frames.
        """
        frames, tokens = latents.shape[1:3]
        known = past[0][0].shape[2] // tokens if past else 0
        conditions = self.action_encoder(conditions.to(self.norm.weight.dtype))[:, :, None]
        hidden_states = latents
        if self.joins_actions:
            hidden_states = torch.cat([latents, conditions.expand(-1, -1, tokens, -1)], dim=-1)
        hidden_states = hidden_states + self.position_embeddings[:, known : known + frames]
        modulation = None if self.joins_actions else F.silu(conditions)
        mask = _frame_causal_mask(frames, known, tokens, latents.device)
        presents = []
        for index, layer in enumerate(self.layers):
            hidden_states, present = layer(hidden_states, modulation, mask, past[index] if past else None)
            presents.append(present)
        return self.norm(hidden_states)[..., : self.latent_width], presents


def _frame_causal_mask(frames: int, known: int, tokens: int, device: torch.device) -> torch.Tensor | None:
    """True where a token of the new frames may look: frames up to its own. `None` where it may look everywhere."""
    if frames == 1:
        return None
    last = torch.arange(known, known + frames, device=device).repeat_interleave(tokens)
    return last[:, None] >= torch.arange(known + frames, device=device).repeat_interleave(tokens)
