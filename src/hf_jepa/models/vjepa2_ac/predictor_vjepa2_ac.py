"""The action-conditioned predictor: a transformer that is causal over frames and full within each."""

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2MLP

from ...attention import cast_once
from ...positions import rotary_3d
from ..vjepa.layers_vjepa import VJepaAttention, VJepaPreTrainedModel, rotate
from .configuration_vjepa2_ac import VJepa2ACConfig

# Keys and values of the frames so far, each `(batch, heads, tokens, head_dim)`, per layer.
KeyValues = tuple[torch.Tensor, torch.Tensor]


class VJepa2ACAttention(VJepaAttention):
    """
    Self-attention in which a frame sees itself and those before it. Each frame's queries meet the keys up to its end,
    so that there is no mask to store, any attention kernel will do, and nothing is computed to be thrown away.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        frame_length: int,
        past: KeyValues | None,
    ) -> tuple[torch.Tensor, KeyValues]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch, frames * frame_length, width)`).
            rotary (`tuple` of `torch.Tensor` of shape `(1, 1, frames * frame_length, head_dim)`): cosines and sines.
            frame_length (`int`): tokens of a frame.
            past (`tuple` of `torch.Tensor`, *optional*): keys and values of the frames before.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`, and keys and values of all frames so far.
        """
        hidden_states = cast_once(hidden_states)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        before = 0
        if past is not None:
            before = past[0].shape[2]
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        outputs = []
        for start in range(0, query.shape[2], frame_length):
            stop = start + frame_length
            output, _ = attend(
                self,
                query[:, :, start:stop],
                key[:, :, : before + stop],
                value[:, :, : before + stop],
                None,
                dropout=self.dropout if self.training else 0.0,
                scaling=self.scaling,
                is_causal=False,
            )
            outputs.append(output.flatten(2))
        return self.proj(torch.cat(outputs, dim=1)), (key, value)


class VJepa2ACLayer(GradientCheckpointingLayer):
    """A pre-norm block. `index`, from 0, scales its initialisation."""

    def __init__(self, config: VJepa2ACConfig, index: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VJepa2ACAttention(config, config.hidden_size, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VJEPA2MLP(config, config.hidden_size, config.mlp_ratio)
        self.attention.proj.init_divisor = self.mlp.fc2.init_divisor = (2 * (index + 1)) ** 0.5

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        frame_length: int,
        past: KeyValues | None,
    ) -> tuple[torch.Tensor, KeyValues]:
        """As [`VJepa2ACAttention`]."""
        branch, key_values = self.attention(self.norm1(hidden_states), rotary, frame_length, past)
        hidden_states = hidden_states + branch
        return hidden_states + self.mlp(self.norm2(hidden_states)), key_values


class VJepa2ACPredictor(VJepaPreTrainedModel):
    """
    From frames, actions and states to the frames that follow (arXiv 2506.09985 §3.1, released code). The tokens of a
    step are action, state, extrinsics where used, and patches, at which the prediction of the next frame is read.
    """

    config: VJepa2ACConfig
    _no_split_modules = ["VJepa2ACLayer"]

    def __init__(self, config: VJepa2ACConfig):
        super().__init__(config)
        width = config.hidden_size

        def by_embodiment(size: int) -> nn.ModuleDict:
            return nn.ModuleDict({name: nn.Linear(size, width) for name in config.embodiments})

        self.embed = nn.Linear(config.latent_size, width)
        self.action_encoder = by_embodiment(config.action_dim)
        self.state_encoder = by_embodiment(config.state_dim)
        self.extrinsics_encoder = by_embodiment(config.extrinsics_dim)
        self.layer = nn.ModuleList(VJepa2ACLayer(config, index) for index in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.proj = nn.Linear(width, config.latent_size)
        self.post_init()

    def forward(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        states: torch.Tensor,
        extrinsics: torch.Tensor | None = None,
        past: list[KeyValues] | None = None,
        use_cache: bool = False,
        embodiment: str | None = None,
    ) -> tuple[torch.Tensor, list[KeyValues] | None]:
        """
        Args:
            latents (`torch.FloatTensor` of shape `(batch, time, tokens, latent_size)`).
            actions (`torch.FloatTensor` of shape `(batch, time, action_dim)`).
            states (`torch.FloatTensor` of shape `(batch, time, state_dim)`).
            extrinsics (`torch.FloatTensor` of shape `(batch, time, extrinsics_dim)`, *optional*): with
                `use_extrinsics`.
            past (`list` of `tuple` of `torch.Tensor`, *optional*): keys and values of the frames before these.
            use_cache (`bool`): whether to return those of all frames so far.
            embodiment (`str`, *optional*): the robot; by default the first of the config.

        Returns:
            `torch.FloatTensor` of shape `(batch, time, tokens, latent_size)`: frame `t + 1` as predicted from frames
            up to `t`, not yet layer-normed; and the keys and values, or `None`.

        Raises:
            `ValueError`: for an unknown robot, or tokens that the grid of a frame does not have.
        """
        embodiment = self.config.embodiments[0] if embodiment is None else embodiment
        if embodiment not in self.action_encoder:
            raise ValueError(f"Unknown embodiment {embodiment!r}; this model has {', '.join(self.action_encoder)}.")
        dtype = self.embed.weight.dtype
        conditions = [(self.action_encoder, actions), (self.state_encoder, states)]
        if self.config.use_extrinsics:
            conditions.append((self.extrinsics_encoder, extrinsics))
        tokens = [encoder[embodiment](values.to(dtype)).unsqueeze(2) for encoder, values in conditions]
        hidden_states = torch.cat([*tokens, self.embed(latents.to(dtype))], dim=2)
        _, time, frame_length, _ = hidden_states.shape
        start = 0 if past is None else past[0][0].shape[2] // frame_length
        rotary = self.rotary(start, time, latents.shape[2], latents.device)

        hidden_states = hidden_states.flatten(1, 2)
        key_values = []
        for index, layer in enumerate(self.layer):
            hidden_states, kept = layer(hidden_states, rotary, frame_length, None if past is None else past[index])
            if use_cache:
                key_values.append(kept)
        patches = hidden_states.unflatten(1, (time, frame_length))[:, :, len(conditions) :]
        return self.proj(self.layernorm(patches)), key_values if use_cache else None

    def rotary(
        self, start: int, time: int, num_patches: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Rotary tables of `time` frames from frame `start` on, `(1, 1, time * frame_length, head_dim)`, in float32 as
        released. Condition tokens have their frame's time, and stand at row and column 0, which turn nothing.
        """
        grid = frame_grid(self.config, num_patches)
        patches = torch.arange(num_patches, device=device)
        frame = torch.cat([patches.new_zeros(self.config.tokens_per_step), patches])
        steps = torch.arange(start, start + time, device=device) * num_patches
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        with torch.autocast(device.type, enabled=False):
            return rotary_3d((steps[:, None] + frame).flatten()[None], grid, head_dim, "tiled", torch.float32)


def frame_grid(config: VJepa2ACConfig, num_patches: int) -> tuple[int, int]:
    """
    Rows and columns of a frame of `num_patches` tokens.

    Raises:
        `ValueError`: if the configured grid has another number of tokens, or none is configured and the number is no
            square.
    """
    side = math.isqrt(num_patches)
    rows, columns = (side, side) if config.frame_grid is None else config.frame_grid
    if rows * columns != num_patches:
        raise ValueError(
            f"A frame has {num_patches} tokens, but its grid is {rows}x{columns}: set `frame_grid` in the config to "
            "the rows and columns of frames that are not square."
        )
    return rows, columns
