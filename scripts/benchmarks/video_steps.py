"""
The contestants of `benchmark_video.py`: one V-JEPA 2 training step each, on the same clips, masks and weights. "As
released" is the same arithmetic in the order and the form that the released training code is described to have: a pass
for every mask, the patch convolution over the whole clip each time, rotary angles anew in every layer and for every
head, tokens sorted and unsorted by position around the predictor, targets gathered after the whole encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model

from hf_jepa import VJepa2ForPreTraining, VJepa2PreTrainingConfig, VJepaModel
from hf_jepa.masking import LONG_RANGE, SHORT_RANGE, MultiBlock3DMaskGenerator

MOMENTUM = 0.99925
Masks = list[Tensor]


@dataclass(frozen=True)
class ClipSizes:
    """What is trained on: ViT-S/16 with the released predictor (width 384, 12 layers and heads)."""

    image_size: int
    batch_size: int
    num_frames: int = 16
    device: str = "cpu"

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.num_frames // 2, self.image_size // 16, self.image_size // 16


def make_batch(sizes: ClipSizes) -> tuple[Tensor, Masks, Masks]:
    """Clips, and short- and long-range masks cut as released, the same on every call."""
    torch.manual_seed(0)
    pairs = [
        MultiBlock3DMaskGenerator(sizes.image_size, 16, sizes.num_frames, 2, mode="reference", **recipe)(
            sizes.batch_size
        )
        for recipe in (SHORT_RANGE, LONG_RANGE)
    ]
    clips = torch.randn(sizes.batch_size, sizes.num_frames, 3, sizes.image_size, sizes.image_size)
    contexts, targets = ([mask.to(sizes.device) for mask in masks] for masks in zip(*pairs, strict=True))
    return clips.to(sizes.device), contexts, targets


def build_model(sizes: ClipSizes) -> VJepa2ForPreTraining:
    torch.manual_seed(1)
    config = VJepa2PreTrainingConfig.from_size("small", crop_size=sizes.image_size, frames_per_clip=sizes.num_frames)
    attention = "cpu_bf16" if sizes.device == "cpu" else None
    return VJepa2ForPreTraining._from_config(config, attn_implementation=attention).train().to(sizes.device)


def turn(axis: Tensor, position: Tensor) -> Tensor:
    """Rotary positions along one axis of `(batch, heads, tokens, channels)`, tiled form, angles for each head."""
    half = axis.shape[-1] // 2
    frequencies = 1.0 / 10000 ** (torch.arange(half, dtype=axis.dtype, device=axis.device) / half)
    angles = position.unsqueeze(-1) * frequencies
    sin, cos = angles.sin().repeat(1, 1, 1, 2), angles.cos().repeat(1, 1, 1, 2)
    left, right = axis.unflatten(-1, (-1, 2)).unbind(-1)
    return axis * cos + torch.stack([-right, left], dim=-1).flatten(-2) * sin


class PlainBlock(nn.Module):
    """A pre-norm block with fused projections that works its rotary angles out by itself."""

    def __init__(self, source: nn.Module, grid: tuple[int, int, int]):
        super().__init__()
        attention = source.attention
        self.grid, self.heads = grid, attention.query.in_features // attention.head_dim
        self.norm1, self.norm2 = copy.deepcopy(source.norm1), copy.deepcopy(source.norm2)
        self.proj = copy.deepcopy(attention.proj)
        self.mlp = copy.deepcopy(source.mlp)
        width = attention.query.in_features
        self.qkv = nn.Linear(width, 3 * width, device=attention.query.weight.device)
        parts = (attention.query, attention.key, attention.value)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            self.qkv.bias.copy_(torch.cat([part.bias for part in parts]))

    def positioned(self, tokens: Tensor, ids: Tensor) -> Tensor:
        rows, columns = self.grid[1:]
        channels = tokens.shape[-1] // 3 // 2 * 2
        ids = ids.unsqueeze(1).repeat(1, self.heads, 1)
        places = (ids // (rows * columns), ids % (rows * columns) // columns, ids % columns)
        axes = [turn(tokens[..., axis * channels : (axis + 1) * channels], place) for axis, place in enumerate(places)]
        return torch.cat([*axes, tokens[..., 3 * channels :]], dim=-1)

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        query, key, value = (
            self.qkv(self.norm1(tokens)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(self.positioned(query, ids), self.positioned(key, ids), value)
        tokens = tokens + self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return tokens + self.mlp(self.norm2(tokens))


class PlainEncoder(nn.Module):
    def __init__(self, source: nn.Module, grid: tuple[int, int, int]):
        super().__init__()
        self.patches = copy.deepcopy(source.embeddings.patch_embeddings.proj)
        self.blocks = nn.ModuleList(PlainBlock(layer, grid) for layer in source.layer)
        self.norm = copy.deepcopy(source.layernorm)

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = self.patches(clips.transpose(1, 2)).flatten(2).transpose(1, 2)
        ids = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        if mask is not None:
            tokens, ids = torch.gather(tokens, 1, mask.unsqueeze(-1).repeat(1, 1, tokens.shape[-1])), mask
        for block in self.blocks:
            tokens = block(tokens, ids)
        return self.norm(tokens)


class PlainPredictor(nn.Module):
    def __init__(self, source: nn.Module, grid: tuple[int, int, int]):
        super().__init__()
        self.num_tokens = grid[0] * grid[1] * grid[2]
        self.embed = copy.deepcopy(source.embeddings.predictor_embeddings)
        self.mask_token = nn.Parameter(source.embeddings.mask_tokens[0].detach().clone())
        self.blocks = nn.ModuleList(PlainBlock(layer, grid) for layer in source.layer)
        self.norm, self.proj = copy.deepcopy(source.layernorm), copy.deepcopy(source.proj)

    def forward(self, context: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        context = self.embed(context)
        everywhere = self.mask_token.repeat(len(context), self.num_tokens, 1).to(context.dtype)
        masked = torch.gather(everywhere, 1, hidden.unsqueeze(-1).repeat(1, 1, context.shape[-1]))
        tokens, ids = torch.cat([context, masked], dim=1), torch.cat([visible, hidden], dim=1)
        order = ids.argsort(dim=1)
        tokens = torch.stack([tokens[row, order[row]] for row in range(len(tokens))])
        ids = torch.stack([ids[row, order[row]] for row in range(len(ids))])
        for block in self.blocks:
            tokens = block(tokens, ids)
        tokens = self.norm(tokens)
        back = order.argsort(dim=1)
        tokens = torch.stack([tokens[row, back[row]] for row in range(len(tokens))])
        return self.proj(tokens[:, visible.shape[1] :])


Step = Callable[[], float]


def _step(
    parameters: list[nn.Parameter], loss_of: Callable[[], Tensor], update: Callable[[], None], dtype: torch.dtype
) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # every contestant gets the fastest optimizer

    def step() -> float:
        with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update()
        return loss.item()

    return step


def hf_jepa_step(sizes: ClipSizes, dtype: torch.dtype) -> Step:
    model = build_model(sizes)
    batch = make_batch(sizes)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _step(parameters, lambda: model(*batch).loss, lambda: model.update_target(MOMENTUM), dtype)


def as_released_step(sizes: ClipSizes, dtype: torch.dtype) -> Step:
    model = build_model(sizes)
    encoder, predictor = PlainEncoder(model.encoder, sizes.grid), PlainPredictor(model.predictor, sizes.grid)
    target_encoder = copy.deepcopy(encoder).requires_grad_(False)
    del model
    clips, context_mask, target_mask = make_batch(sizes)

    def loss_of() -> Tensor:
        with torch.no_grad():
            features = target_encoder(clips)
            features = F.layer_norm(features, features.shape[-1:])
        losses = []
        for visible, hidden in zip(context_mask, target_mask, strict=True):
            predicted = predictor(encoder(clips, visible), visible, hidden)
            target = torch.gather(features, 1, hidden.unsqueeze(-1).repeat(1, 1, features.shape[-1]))
            losses.append((predicted - target).abs().mean())
        return sum(losses) / len(losses)

    @torch.no_grad()
    def update() -> None:
        for source, target in zip(encoder.parameters(), target_encoder.parameters(), strict=True):
            target.mul_(MOMENTUM).add_((1.0 - MOMENTUM) * source)

    return _step([*encoder.parameters(), *predictor.parameters()], loss_of, update, dtype)


CONTESTANTS: dict[str, Callable[[ClipSizes, torch.dtype], Step]] = {
    "hf_jepa": hf_jepa_step,
    "as released": as_released_step,
}


def whole_encoder(sizes: ClipSizes, dtype: torch.dtype, in_tree: bool) -> Callable[[], Tensor]:
    """Encoding of whole clips, by a model with a predictor and nothing else beside."""
    config = VJepa2PreTrainingConfig.from_size(
        "small", crop_size=sizes.image_size, frames_per_clip=sizes.num_frames
    ).encoder_config
    if in_tree:
        known = VJEPA2Config().to_dict()
        config = VJEPA2Config(**{name: value for name, value in config.to_dict().items() if name in known})
    model = (VJEPA2Model if in_tree else VJepaModel)(config).eval().to(sizes.device)
    clips = make_batch(sizes)[0]

    @torch.no_grad()
    def encode() -> Tensor:
        with torch.autocast(sizes.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model(clips, skip_predictor=True).last_hidden_state

    return encode


ENCODERS = {
    "hf_jepa": partial(whole_encoder, in_tree=False),
    "in-tree VJEPA2Model": partial(whole_encoder, in_tree=True),
}
